"""A bare signal's wake-up: a handler that writes a byte, and a thread that notes when it has read it."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time

import redis

from benchmarks.stream_reader import STAMPS

__all__: list[str] = []


def main(url: str) -> None:
    client = redis.Redis.from_url(url, decode_responses=True)
    reader, writer = socket.socketpair()
    signal.signal(signal.SIGUSR1, lambda *_: writer.send(b"."))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())

    def note() -> None:
        while reader.recv(1):
            now = time.monotonic_ns()
            client.rpush(STAMPS, now)

    threading.Thread(target=note, daemon=True).start()
    client.rpush(STAMPS, 0)
    ended.wait()


if __name__ == "__main__":
    main(sys.argv[1])
