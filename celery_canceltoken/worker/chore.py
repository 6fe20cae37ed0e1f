"""Something that is to be done every so often."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod

__all__ = ["NEVER", "Chore"]

NEVER = float("inf")


class Chore(ABC):
    """A duty of the keeper, done in its thread. *due* is on the monotonic clock, in seconds."""

    def __init__(self, interval: float, *, jitter: float = 0.0) -> None:
        self._interval = interval
        self._jitter = jitter
        self.due = 0.0

    def run(self) -> None:
        """Do it, and plan the next time; a chore that fails is due again at its next time as well."""
        # Spread over the fleet: workers started together would all ask at the same moment.
        self.due = time.monotonic() + self._interval * (1 + random.uniform(0, self._jitter))
        self.work()

    def hasten(self) -> None:
        """Have it done in the keeper's next turn."""
        self.due = 0.0

    @abstractmethod
    def work(self) -> None:
        """Do what is due."""

    def store_found(self) -> None:
        """The store answers again after a while: do not wait for the next time."""
        self.hasten()
