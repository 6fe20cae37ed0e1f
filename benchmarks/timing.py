"""What the measurements of times have in common."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
from celery import Celery

__all__ = ["answers", "milliseconds_since", "pop", "rest"]


def answers(app: Celery, queue: str) -> Callable[[], bool]:
    """Send a task to that queue, and return what tells whether a worker has done it."""
    result = app.tasks["plain"].apply_async(queue=queue)
    return lambda: bool(result.ready())


def rest() -> None:
    """Let all that the set-up has woken fall asleep again: what follows is measured from there."""
    time.sleep(0.02)


def pop(client: redis.Redis, key: str) -> str:
    """What comes to that list. Raises RuntimeError after half a minute."""
    popped = client.blpop([key], timeout=30)
    if popped is None:
        raise RuntimeError(f"nothing came to {key}")
    return str(popped[1])


def milliseconds_since(began: int, moment: str) -> float:
    """From one reading of the monotonic clock, in nanoseconds, to another."""
    return (int(moment) - began) / 1e6
