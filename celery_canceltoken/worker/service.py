"""The one way threads are started and stopped here."""

from __future__ import annotations

import logging
import random
import threading
from abc import ABC, abstractmethod

from celery_canceltoken.errors import StoreUnavailableError

__all__ = ["PeriodicService", "Service"]

logger = logging.getLogger("celery_canceltoken.worker")


class Service(ABC):
    """One daemon thread of the worker's main process.

    It belongs to the agent, which starts and stops it. At fork it stays behind: a child has the
    object but no thread, and never touches either.
    """

    name: str
    retry_delay = 1.0

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._store_is_down = False

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=f"canceltoken-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; returns at once."""
        self.stopping.set()
        self.interrupt()

    def join(self, timeout: float) -> None:
        """Wait *timeout* seconds at most for the thread to have ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def interrupt(self) -> None:  # noqa: B027 - most services have nothing to interrupt
        """End whatever wait the thread is in."""

    @abstractmethod
    def turn(self) -> None:
        """Do one round; called again and again until the service stops."""

    def store_lost(self) -> None:  # noqa: B027 - likewise
        """A turn could not reach the store."""

    def store_found(self) -> None:  # noqa: B027 - likewise
        """A turn went through again after some that could not reach the store."""

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.turn()
            except StoreUnavailableError as error:
                if self.stopping.is_set():
                    return
                if not self._store_is_down:
                    # Once per outage, not once per try.
                    logger.warning("%s: %s; trying again until it does", self.name, error)
                self._store_is_down = True
                self.store_lost()
                self.stopping.wait(self.retry_delay)
            except Exception:
                if self.stopping.is_set():
                    # Its connection was closed under it, to end its wait.
                    return
                # One bad record or one bug must not end the heartbeat of a worker.
                logger.exception("%s: a turn failed", self.name)
                self.stopping.wait(self.retry_delay)
            else:
                if self._store_is_down:
                    self._store_is_down = False
                    logger.info("%s: the store answers again", self.name)
                    self.store_found()


class PeriodicService(Service):
    """A service that does its work every *interval* seconds, or as soon as it is poked."""

    def __init__(self, interval: float, *, jitter: float = 0.0) -> None:
        super().__init__()
        self._interval = interval
        self._jitter = jitter
        self._poked = threading.Event()

    def poke(self) -> None:
        """Have the work done now; from any thread."""
        self._poked.set()

    def interrupt(self) -> None:
        """End the pause between two rounds."""
        self._poked.set()

    def turn(self) -> None:
        """Pause, then work."""
        # Spread over the fleet: workers started together would all ask at the same moment.
        self._poked.wait(self._interval * (1 + random.uniform(0, self._jitter)))
        self._poked.clear()
        if not self.stopping.is_set():
            self.work()

    @abstractmethod
    def work(self) -> None:
        """Do what is due."""
