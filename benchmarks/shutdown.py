"""From SIGTERM to a body that knows, per pool: a worker is started for each figure, and stopped by it."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator, Sequence

import redis
from celery import Celery

from benchmarks.app import READY, make_app
from benchmarks.processes import Background, worker
from benchmarks.report import Row
from benchmarks.stream_reader import STAMPS
from benchmarks.timing import answers, milliseconds_since, pop, rest

__all__ = ["measure"]

LIMIT = 5.0
"""Milliseconds; for bodies that wait. Where one computes, it is the interpreter that says who runs when."""
POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")
BODIES = {"wait": "waiting", "compute": "computing"}


def measure(url: str, rounds: int) -> Iterator[Row]:
    """Measure all in turns, so that whatever else the machine does hits all alike."""
    app = make_app(url)
    client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=40)
    raw: list[float] = []
    ours: dict[tuple[str, str], list[float]] = {(body, pool): [] for body in BODIES for pool in POOLS}
    for _ in range(rounds):
        raw.append(_raw_signal(client, url))
        for (body, pool), samples in ours.items():
            samples.append(_sigterm_to_observed(app, client, url, body, pool))
    yield Row("raw signal, kill() to a woken thread", _summary(raw))
    for (body, pool), samples in ours.items():
        median = statistics.median(samples)
        limited = body == "wait"
        yield Row(
            f"SIGTERM to observed, {pool}, {BODIES[body]}",
            _summary(samples),
            f"below {LIMIT:g} ms" if limited else "",
            not limited or median < LIMIT,
        )


def _raw_signal(client: redis.Redis, url: str) -> float:
    with Background(
        *("benchmarks.signal_reader", url), ready=lambda: client.lpop(STAMPS) is not None
    ) as process:
        rest()
        began = time.monotonic_ns()
        process.send_signal(signal.SIGUSR1)
        return milliseconds_since(began, pop(client, STAMPS))


def _sigterm_to_observed(app: Celery, client: redis.Redis, url: str, body: str, pool: str) -> float:
    queue = f"shutdown-{pool}"
    with worker(url, pool, queue=queue, ready=answers(app, queue)) as process:
        app.tasks[f"{body}_until_shutdown"].apply_async(queue=queue)
        pop(client, READY)
        rest()
        began = time.monotonic_ns()
        process.send_signal(signal.SIGTERM)
        return milliseconds_since(began, pop(client, STAMPS))


def _summary(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples):.2f} ms, at most {max(samples):.2f}"
