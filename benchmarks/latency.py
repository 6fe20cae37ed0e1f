"""From `revoke()` to a body that knows, per pool, against a bare stream that wakes a bare reader."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import redis
from celery import Celery

from benchmarks.app import READY, make_app
from benchmarks.processes import Background, worker
from benchmarks.report import Row
from benchmarks.stream_reader import STAMPS, STREAM
from benchmarks.timing import answers, milliseconds_since, pop, rest
from celery_canceltoken import State, revoke

__all__ = ["measure"]

LIMIT = 4.0
POOLS = ("prefork", "threads", "solo")


def measure(url: str, rounds: int) -> Iterator[Row]:
    """Measure all in turns, so that whatever else the machine does hits all alike."""
    app = make_app(url)
    client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=30)
    with ExitStack() as stack:
        stack.enter_context(
            Background("benchmarks.stream_reader", url, ready=lambda: client.lpop(STAMPS) is not None)
        )
        for pool in POOLS:
            stack.enter_context(worker(url, pool, queue=pool, ready=answers(app, pool)))
        raw: list[float] = []
        ours: dict[str, list[float]] = {pool: [] for pool in POOLS}
        for number in range(-5, rounds):
            samples = {pool: _revoke_to_observed(app, client, pool) for pool in POOLS}
            sample = _raw_wake_up(client)
            if number < 0:
                continue  # Connections are opened and scripts loaded in the first ones.
            raw.append(sample)
            for pool, one in samples.items():
                ours[pool].append(one)
    yield Row("raw wake-up, XADD to XREAD", _summary(raw))
    for pool, times in ours.items():
        ratio = statistics.median(times) / statistics.median(raw)
        yield Row(
            f"revoke() to observed, {pool}",
            f"{ratio:.1f}x raw; {_summary(times)}",
            f"at most {LIMIT:g}x",
            ratio <= LIMIT,
        )


def _raw_wake_up(client: redis.Redis) -> float:
    rest()
    began = time.monotonic_ns()
    client.xadd(STREAM, {"task": "0" * 36, "execution": "0" * 32})
    return milliseconds_since(began, pop(client, STAMPS))


def _revoke_to_observed(app: Celery, client: redis.Redis, pool: str) -> float:
    result = app.tasks["wait_for_cancellation"].apply_async(queue=pool)
    pop(client, READY)
    rest()
    began = time.monotonic_ns()
    handle = revoke(result)
    sample = milliseconds_since(began, pop(client, STAMPS))
    outcome = handle.wait(timeout=30)
    if outcome.state is not State.REVOKED:
        raise RuntimeError(f"the body was not told: {outcome}")
    return sample


def _summary(times: Sequence[float]) -> str:
    p95 = statistics.quantiles(times, n=20)[-1]
    return f"{statistics.median(times):.2f} ms, p95 {p95:.2f}"
