"""What stays native under gevent and eventlet, whose patches turn threads and locks into green ones.

The agent must beat while a greenlet computes, so it lives in real threads, and real threads may share
nothing with greenlets but what the interpreter itself makes atomic: a dict, and this queue in C.
"""

from __future__ import annotations

import sys
import threading
from _queue import Empty, SimpleQueue
from collections.abc import Callable
from typing import Any

__all__ = ["Empty", "NativeThread", "SimpleQueue", "is_green"]


def is_green() -> bool:
    """Tell whether this process's threads have been replaced by greenlets."""
    return _original_start() is not None


class NativeThread:
    """A daemon thread of the operating system, under any pool."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self._ended: SimpleQueue[None] = SimpleQueue()
        start = _original_start()
        if start is None:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        else:
            start(self._run, ())

    def join(self, timeout: float) -> bool:
        """Wait *timeout* seconds at most, without a hub's help; tell whether it has ended."""
        try:
            self._ended.get(timeout=timeout)
        except Empty:
            return False
        self._ended.put(None)
        return True

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.put(None)


def _original_start() -> Callable[..., Any] | None:
    """Python's own `start_new_thread` where it has been replaced, else None."""
    original: Callable[..., Any] | None = None
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        original = gevent.get_original("_thread", "start_new_thread")
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        original = eventlet.original("_thread").start_new_thread
    return original
