"""No fork while a thread connects: the child would inherit a resolver, or a module, locked for ever."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery_canceltoken.native import is_green

__all__ = ["with_fork_guard"]


class _Guard:
    """Any number may connect at once, or one may fork.

    Whoever forks waits for attempts that are under way, which the store timeout limits, and keeps
    new ones waiting meanwhile.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._connecting = 0

    def __enter__(self) -> None:
        with self._condition:
            self._connecting += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._connecting -= 1
            self._condition.notify_all()

    def before_fork(self) -> None:
        self._condition.acquire()
        self._condition.wait_for(lambda: self._connecting == 0)

    def after_fork(self) -> None:
        self._condition.release()


_guard = _Guard()


def with_fork_guard(connection_class: type[Any]) -> type[Any]:
    """Return *connection_class* with its `connect` kept apart from forks."""
    if is_green():
        # Green pools do not fork, and a green lock is of no use to the agent's native threads.
        return connection_class

    class Guarded(connection_class):  # type: ignore[misc]
        def connect(self) -> None:
            with _guard:
                super().connect()

    return Guarded


def _renew_in_child() -> None:
    global _guard
    # Nobody in the child is connecting, whatever the parent's threads were about to do.
    _guard = _Guard()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _guard.before_fork(),
        after_in_parent=lambda: _guard.after_fork(),
        after_in_child=_renew_in_child,
    )
