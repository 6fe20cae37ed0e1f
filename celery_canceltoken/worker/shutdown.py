"""The shutdown of a worker, as its tasks see it: draining, then told to stop, then gone."""

from __future__ import annotations

import _socket
import contextlib
import logging
import socket
import time
from enum import Enum
from typing import TYPE_CHECKING

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.worker.service import Service

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent, LiveExecution

__all__ = ["Phase", "Shutdown"]

logger = logging.getLogger("celery_canceltoken.worker")

_SHUTDOWN = Cancellation(Cause.SHUTDOWN, "its worker is stopping")
_EVICTED = Cancellation(Cause.SHUTDOWN, "its worker takes no more work")
_IDLE = 3600.0
_GLANCE = 0.5
"""Seconds between two looks at what no signal tells."""


class Phase(str, Enum):
    """Where a worker is in its life. Hangfire's three stages of stopping, as one state."""

    RUNNING = "running"
    DRAINING = "draining"
    """No body starts here any more; those that run may finish within their shutdown_grace."""
    STOPPING = "stopping"
    """Whoever still runs has been told to stop."""
    STOPPED = "stopped"


class Shutdown(Service):
    """Takes the agent through its phases.

    `begin_shutdown` and its likes may be called from anywhere, a signal handler included: they set an
    attribute and write a byte. What follows is done by this thread: it tells children and trips tokens,
    with or without Redis.
    """

    name = "shutdown"

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent
        self.phase = Phase.RUNNING
        self.is_closed = False
        """The worker takes no messages any more."""
        self._since = 0.0
        self._hurry = False
        self._cancellation = _SHUTDOWN
        # Python's own on both ends, whatever the process was patched with: the reader is a native thread, and
        # the writer may be a signal handler in the middle of a greenlet.
        reader, writer = socket.socketpair()
        self._reader = _socket.socket(fileno=reader.detach())
        self._writer = _socket.socket(fileno=writer.detach())
        self._writer.setblocking(False)

    # -- from anywhere

    def begin_shutdown(self, *, hurry: bool = False) -> None:
        """The worker has begun to stop. *hurry*: bodies get no grace any more."""
        if self.phase is Phase.RUNNING:
            self._since = time.monotonic()
            self.phase = Phase.DRAINING
        self._hurry = self._hurry or hurry
        self._cancellation = _SHUTDOWN
        self.look()

    def evict(self) -> None:
        """Have this worker give its work to others, without stopping."""
        self.begin_shutdown()
        self._cancellation = _EVICTED

    def close(self) -> None:
        """No messages are taken any more."""
        self.is_closed = True
        self.look()

    def resume(self) -> None:
        """Take work again."""
        self.phase = Phase.RUNNING
        self.is_closed = self._hurry = False
        self.look()

    def look(self) -> None:
        """Have the thread look at what is due."""
        # It has enough to wake it, or has ended.
        with contextlib.suppress(OSError):
            self._writer.send(b".")

    # -- the thread

    def interrupt(self) -> None:
        """End the wait."""
        self.look()

    def begin(self) -> None:
        """Begin with nothing told to the children."""
        self._told: tuple[bool, bool] = (True, False)
        self._next = _IDLE

    def turn(self) -> None:
        """Wait for a byte or for the end of somebody's grace, and do what is due."""
        self._reader.settimeout(min(self._next, _GLANCE))
        with contextlib.suppress(TimeoutError):
            self._reader.recv(4096)
        if self.phase is Phase.RUNNING and self._agent.celery.was_told_to_stop():
            # By SIGHUP, or from within its process; a solo worker sees it only when its body has ended.
            self.begin_shutdown()
        self._tell_children()
        self._next = self._trip_what_is_due()

    def last_turn(self) -> None:
        """It is over."""
        self.phase = Phase.STOPPED
        self._reader.close()
        self._writer.close()

    def _tell_children(self) -> None:
        word = (self.phase is Phase.RUNNING, self.is_closed)
        if word != self._told:
            logger.info("this worker is %s", self.phase.value)
            if self._agent.link is not None:
                self._agent.link.broadcast_phase()
            self._told = word

    def _trip_what_is_due(self) -> float:
        """Trip, and return the seconds until the next one is due."""
        if self.phase not in (Phase.DRAINING, Phase.STOPPING):
            return _IDLE
        now, following = time.monotonic(), _IDLE
        waiting = [one for one in self._agent.live() if not one.tripped and _may_be_stopped(one)]
        for execution in waiting:
            left = self._since + (0.0 if self._hurry else execution.claim.shutdown_grace) - now
            if left > 0:
                following = min(following, left)
            else:
                self._agent.trip(execution, self._cancellation)
        if following == _IDLE and self.phase is Phase.DRAINING:
            self.phase = Phase.STOPPING
        return following


def _may_be_stopped(execution: LiveExecution) -> bool:
    return execution.claim.shutdown_policy != "ignore"
