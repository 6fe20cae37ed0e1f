"""The one way threads are started and stopped here."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.native import Empty, NativeQueue, NativeThread

__all__ = ["Service"]

logger = logging.getLogger("celery_canceltoken.worker")

_RETRY_DELAY = 1.0


class Service(ABC):
    """One native thread of the worker's main process.

    It belongs to the agent, which starts and stops it. At fork it stays behind: a child has the
    object but no thread, and never touches either.
    """

    name: str

    def __init__(self) -> None:
        self.stopping = False
        self._thread: NativeThread | None = None
        self._store_is_down = False
        self._stop_signal: NativeQueue[None] = NativeQueue()

    def start(self) -> None:
        """Start the thread."""
        self._thread = NativeThread(self._run, name=f"canceltoken-{self.name}")

    def stop(self) -> None:
        """Ask the thread to end; returns at once."""
        self.stopping = True
        self._stop_signal.put(None)
        self.interrupt()

    def join(self, timeout: float) -> None:
        """Wait *timeout* seconds at most for the thread to have ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def interrupt(self) -> None:  # noqa: B027 - not every service has something to interrupt
        """End whatever wait the thread is in."""

    def begin(self) -> None:  # noqa: B027 - likewise
        """Make what is this thread's own: under gevent a connection belongs to the thread that made it."""

    @abstractmethod
    def turn(self) -> None:
        """Do one round; called again and again until the service stops."""

    def last_turn(self) -> None:  # noqa: B027 - likewise
        """Leave things in order, at the end."""

    def store_lost(self) -> None:  # noqa: B027 - likewise
        """A turn could not reach the store."""

    def store_found(self) -> None:  # noqa: B027 - likewise
        """A turn went through again after some that could not reach the store."""

    def _run(self) -> None:
        self.begin()
        while not self.stopping:
            self._guarded_turn()
        try:
            self.last_turn()
        except StoreUnavailableError as error:
            logger.info("%s: %s; what it would have said shows by itself in time", self.name, error)

    def _guarded_turn(self) -> None:
        try:
            self.turn()
        except StoreUnavailableError as error:
            if self.stopping:
                return
            if not self._store_is_down:
                # Once per outage, not once per try.
                logger.warning("%s: %s; trying again until it does", self.name, error)
            self._store_is_down = True
            self.store_lost()
            self._pause()
        except Exception:
            if self.stopping:
                # Its connection was closed under it, to end its wait.
                return
            # One bad record or one bug must not end the heartbeat of a worker.
            logger.exception("%s: a turn failed", self.name)
            self._pause()
        else:
            if self._store_is_down:
                self._store_is_down = False
                logger.info("%s: the store answers again", self.name)
                self.store_found()

    def _pause(self) -> None:
        try:
            self._stop_signal.get(timeout=_RETRY_DELAY)
        except Empty:
            return
