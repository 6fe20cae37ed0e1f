"""Where bodies live, and how the agent's native threads have something done there."""

from __future__ import annotations

import _socket
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from celery_canceltoken.native import is_green
from celery_canceltoken.token import run_in_thread

__all__ = ["GreenWorld", "ThreadWorld", "World", "world_of_this_process"]

logger = logging.getLogger("celery_canceltoken.worker")

Work = Callable[[], None]


class World(Protocol):
    """The bodies' side of a worker's process."""

    def start(self) -> None:
        """Begin; called in the main thread."""

    def stop(self) -> None:
        """End; what is on its way may be lost."""

    def post(self, work: Work) -> None:
        """Have something short done there (waking a waiter); from any thread, never waits."""

    def spawn(self, work: Work) -> None:
        """Have something done there that may take its time."""


class ThreadWorld:
    """Bodies are threads, or the main thread itself: memory is shared, and so are locks."""

    def start(self) -> None:
        """Nothing to begin."""

    def stop(self) -> None:
        """Nothing to end."""

    def post(self, work: Work) -> None:
        """Do it here and now."""
        work()

    def spawn(self, work: Work) -> None:
        """Do it on a thread of its own."""
        run_in_thread(work)


class GreenWorld:
    """Bodies are greenlets of one thread. Its locks and events are of no use to any other thread.

    Work is left in a deque, and a byte wakes a green receiver, which lives in the bodies' hub
    and does it there. While a greenlet computes without yielding, nothing else runs in that
    world; but flags that were set directly are seen even then.
    """

    def __init__(self) -> None:
        self._work: deque[Work] = deque()
        self._reader, writer = socket.socketpair()
        # The receiver's end is green. Ours is Python's own: a green socket that finds its buffer full would
        # have a native thread wait in the bodies' hub, which is not to be entered by anybody else.
        self._writer = _socket.socket(fileno=writer.detach())
        self._writer.setblocking(False)
        self._notified = False
        self._stopping = False

    def start(self) -> None:
        """Start the receiver; under the patches a thread is a greenlet of this hub."""
        logger.addHandler(_HandOver(self))
        logger.propagate = False
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            # Asked for the first time, logging takes a lock; let that not be a native thread's first time.
            logger.isEnabledFor(level)
        threading.Thread(target=self._receive, name="canceltoken-receiver", daemon=True).start()

    def stop(self) -> None:
        """End the receiver."""
        for handler in logger.handlers[:]:
            if isinstance(handler, _HandOver) and handler.world is self:
                logger.removeHandler(handler)
        logger.propagate = True
        self._stopping = True
        self._notify()

    def post(self, work: Work) -> None:
        """Leave it for the receiver."""
        self._work.append(work)
        self._notify()

    def spawn(self, work: Work) -> None:
        """Leave it for a greenlet of its own."""
        self.post(lambda: run_in_thread(work))

    def _notify(self) -> None:
        if not self._notified:
            self._notified = True
            self._writer.send(b".")

    def _receive(self) -> None:
        while not self._stopping:
            self._reader.recv(4096)
            # First this, then the work: what is left from here on brings a byte of its own.
            self._notified = False
            while self._work:
                work = self._work.popleft()
                try:
                    work()
                except Exception:
                    # The next one is somebody else's.
                    logger.exception("something that was left for the bodies' world failed")
        self._reader.close()
        self._writer.close()


class _HandOver(logging.Handler):
    """Has what native threads log written in the bodies' world.

    The locks of all other handlers are green ones by now. A native thread that finds one taken
    would wait for ever.
    """

    def __init__(self, world: GreenWorld) -> None:
        super().__init__()
        self.world = world

    def handle(self, record: logging.LogRecord) -> bool:
        """Leave the record, without a lock."""
        parent = logger.parent
        if parent is not None:
            self.world.post(lambda: parent.handle(record))
        return True


def world_of_this_process() -> World:
    """Return the world that fits how this process was patched."""
    return GreenWorld() if is_green() else ThreadWorld()
