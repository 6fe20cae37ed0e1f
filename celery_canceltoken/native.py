"""What stays native under gevent and eventlet, whose patches turn threads and locks into green ones.

The agent must beat while a greenlet computes, so it lives in real threads, and real threads may share
nothing with greenlets but what the interpreter itself makes atomic: a dict, and this queue.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import Any, Generic, TypeVar

__all__ = ["Empty", "NativeQueue", "NativeThread", "is_green"]

T = TypeVar("T")


def is_green() -> bool:
    """Tell whether this process's threads have been replaced by greenlets."""
    return _original("start_new_thread") is not _thread.start_new_thread


class NativeQueue(Generic[T]):
    """Anybody puts, greenlets too, and never waits; one native thread gets.

    Not `queue.SimpleQueue`: with a timeout that has passed before it looks at its lock (0, or a busy
    machine) CPython's may wait for ever. Seen on 3.10; a heartbeat cannot have that.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        # Open while there may be something to get. Being one of Python's own, it minds its deadline.
        self._signal = _original("allocate_lock")()
        self._signal.acquire()

    def put(self, item: T) -> None:
        """Leave *item*."""
        self._items.append(item)
        # Open already: somebody else has put something that was not got yet.
        with contextlib.suppress(RuntimeError):
            self._signal.release()

    def get(self, timeout: float = 0.0) -> T:
        """Return the next item, waiting *timeout* seconds at most. Raises Empty, now and then too early."""
        if not self._items and timeout > 0:
            self._signal.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))
        try:
            return self._items.popleft()
        except IndexError:
            raise Empty from None


class NativeThread:
    """A daemon thread of the operating system, under any pool."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self._running = _original("allocate_lock")()
        self._running.acquire()
        if is_green():
            _original("start_new_thread")(self._run, ())
        else:
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def join(self, timeout: float) -> bool:
        """Wait *timeout* seconds at most, without a hub's help; tell whether it has ended."""
        ended: bool = self._running.acquire(timeout=timeout)
        if ended:
            self._running.release()
        return ended

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._running.release()


def _original(name: str) -> Any:
    """Python's own function of the module `_thread`, also where that has been patched."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return gevent.get_original("_thread", name)
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return getattr(eventlet.original("_thread"), name)
    return getattr(_thread, name)
