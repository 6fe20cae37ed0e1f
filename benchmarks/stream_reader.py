"""The other end of a raw stream wake-up: blocks in XREAD and notes when it returned."""

from __future__ import annotations

import sys
import time

import redis

__all__ = ["STAMPS", "STREAM"]

STREAM = "bench:stream"
STAMPS = "bench:stamps"
"""The list on which both kinds of readers say when they were woken: what follows is the same for both."""


def main(url: str) -> None:
    # redis-py would give up a read after some seconds.
    client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=None)
    last_id = client.xadd(STREAM, {"hello": "1"})
    client.rpush(STAMPS, 0)
    while True:
        entries = client.xread({STREAM: last_id}, block=0)
        now = time.monotonic_ns()
        last_id = entries[0][1][-1][0]
        client.rpush(STAMPS, now)


if __name__ == "__main__":
    main(sys.argv[1])
