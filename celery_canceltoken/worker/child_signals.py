"""SIGTERM in a child process: systemd sends it to the whole group, and a body is not to die of it unheard."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.worker.bodies import AgentPort, Bodies

__all__ = ["TermWatch"]

_SHUTDOWN = Cancellation(Cause.SHUTDOWN, "its process was told to end")
_WORD_FROM_THE_AGENT = 1.0
"""Seconds in which a worker that stops as well would have said so."""
_LAST_RESULT = 0.5
"""Seconds in which a body's result is on its way to the main process."""
_LOOK = 0.02


class TermWatch:
    """What a child does on SIGTERM, instead of dying at once.

    Before its first execution it dies as it always did. After that, where the agent says that the
    worker is stopping, the signal is the whole group's, and the agent sees to the rest. Else it is
    meant for this child: its bodies are told to stop, and when they have, or after *patience* seconds,
    it ends. Celery's `terminate=True` does not come this way: the agent has the child killed.

    Owner: the child. The handler runs in the main thread and only writes a byte; all else is done by
    a thread, which starts with the first execution.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._bodies: Bodies = Bodies()
        self._port: AgentPort | None = None
        self._patience = 0.0

    def watch(self, bodies: Bodies, port: AgentPort, patience: float) -> None:
        """Begin to look after the bodies of this process; in its main thread, where they run.

        Not sooner: the pool installs a handler of its own (which raises SystemExit in the body) after
        the last hook that a new child has.
        """
        begun = self._port is not None
        self._bodies, self._port, self._patience = bodies, port, patience
        if not begun and threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._watch, name="canceltoken-signals", daemon=True).start()
            signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b".")

    def _watch(self) -> None:
        while self._reader.recv(4096):
            if _until(lambda: self._port is not None and not self._port.takes_work, _WORD_FROM_THE_AGENT):
                continue
            self._bodies.cancel_all(_SHUTDOWN)
            if _until(lambda: len(self._bodies) == 0, self._patience):
                time.sleep(_LAST_RESULT)
            os.kill(os.getpid(), signal.SIGKILL)


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK)
    return True
