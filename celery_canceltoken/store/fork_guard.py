"""No fork while a thread connects: the child would inherit a resolver, or a module, locked for ever."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery_canceltoken.native import is_green

__all__ = ["with_fork_guard"]

# Held by whoever connects, and by whoever forks. Waits for a connection attempt at most, which the store
# timeout limits. In the child it is free: nobody there is connecting.
_connecting = threading.Lock()


def with_fork_guard(connection_class: type[Any]) -> type[Any]:
    """Return *connection_class* with its `connect` kept apart from forks."""
    if is_green():
        # Green pools do not fork, and a green lock is of no use to the agent's native threads.
        return connection_class

    class Guarded(connection_class):  # type: ignore[misc]
        def connect(self) -> None:
            with _connecting:
                super().connect()

    return Guarded


def _release_in_child() -> None:
    global _connecting
    _connecting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _connecting.acquire(),
        after_in_parent=lambda: _connecting.release(),
        after_in_child=_release_in_child,
    )
