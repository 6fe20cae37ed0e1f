"""After one failure, no task waits for a dead store."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Breaker"]


class Breaker:
    """Refuses calls for a while after one has failed, then lets a single one try.

    Shared by all threads of a process. It takes no lock: two threads may both be let through
    when the pause ends, which costs one more short timeout and nothing else.
    """

    def __init__(self, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause = pause
        self._clock = clock
        self._closed_again_at = 0.0
        self.open = False

    def refuses(self) -> bool:
        """Tell whether a call is to fail without being tried."""
        if not self.open:
            return False
        now = self._clock()
        if now < self._closed_again_at:
            return True
        self._closed_again_at = now + self._pause
        return False

    def failed(self) -> None:
        """A call could not reach the store."""
        self._closed_again_at = self._clock() + self._pause
        self.open = True

    def succeeded(self) -> None:
        """A call was answered."""
        self.open = False
