"""Where bodies live, and how the agent's native threads have something done there."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from celery_canceltoken.native import is_green
from celery_canceltoken.token import run_in_thread

__all__ = ["GreenWorld", "ThreadWorld", "World", "world_of_this_process"]

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
        self._reader, self._writer = socket.socketpair()
        self._stopping = False

    def start(self) -> None:
        """Start the receiver; under the patches a thread is a greenlet of this hub."""
        threading.Thread(target=self._receive, name="canceltoken-receiver", daemon=True).start()

    def stop(self) -> None:
        """End the receiver."""
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
        try:
            self._writer.send(b".")
        except BlockingIOError:
            # So many wake-ups are waiting there that one more says nothing new.
            return

    def _receive(self) -> None:
        while not self._stopping:
            self._reader.recv(4096)
            while self._work:
                self._work.popleft()()
        self._reader.close()
        self._writer.close()


def world_of_this_process() -> World:
    """Return the world that fits how this process was patched."""
    return GreenWorld() if is_green() else ThreadWorld()
