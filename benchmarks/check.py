"""What it costs a body to ask its token, against reading an attribute that is nobody's invention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat

from benchmarks.report import Row
from celery_canceltoken import CancellationSource

__all__ = ["measure"]

LIMIT = 2.0
READS = 100_000
ROUNDS = 150
"""Short and many: on a busy machine only a short one has a chance of not being interrupted."""


class Plain:
    __slots__ = ("attribute",)

    def __init__(self) -> None:
        self.attribute = False


def measure() -> Iterator[Row]:
    """Time both loops and an empty one in turns, and compare the best of each."""
    source = CancellationSource()
    token, plain = source.token, Plain()

    # Three functions, not one with a parameter: the interpreter adapts each read to what it meets.
    def nothing() -> None:
        for _ in repeat(None, READS):
            pass

    def read_attribute() -> None:
        for _ in repeat(None, READS):
            plain.attribute  # noqa: B018

    def ask_token() -> None:
        for _ in repeat(None, READS):
            token.cancel_requested  # noqa: B018

    loops: tuple[Callable[[], None], ...] = (nothing, read_attribute, ask_token)
    best = {loop: float("inf") for loop in loops}
    for _ in range(ROUNDS):
        for loop in loops:
            began = time.perf_counter_ns()
            loop()
            best[loop] = min(best[loop], (time.perf_counter_ns() - began) / READS)
    attribute, check = best[read_attribute] - best[nothing], best[ask_token] - best[nothing]
    ratio = check / attribute
    yield Row(
        "token check / slot read",
        f"{ratio:.2f}x ({check:.1f} / {attribute:.1f} ns)",
        f"at most {LIMIT:g}x",
        ratio <= LIMIT,
    )
