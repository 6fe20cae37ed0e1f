"""Waiting for something to become true, with a name for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

Value = TypeVar("Value")


def wait_until(
    predicate: Callable[[], Value],
    *,
    timeout: float = 10.0,
    description: str | Callable[[], str],
    interval: float = 0.01,
) -> Value:
    """Return the predicate's first true value.

    Raises `AssertionError` with the description and the last value once `timeout` seconds have passed. A
    description that has to be made is made only then.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            goal = description() if callable(description) else description
            raise AssertionError(f"waited {timeout:g} s in vain until {goal}; last value: {value!r}")
        time.sleep(interval)
