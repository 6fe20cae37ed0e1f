"""The token of the task that runs here, for code that nobody handed one to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from celery_canceltoken.token import CancellationToken

__all__ = ["as_current", "current_token"]

_current: ContextVar[CancellationToken] = ContextVar(
    "celery_canceltoken.current_token", default=CancellationToken.none
)


def current_token() -> CancellationToken:
    """Return the token of the task that runs in this context, `CancellationToken.none` outside a task.

    For code far below the body. Being a context variable it follows `asyncio` tasks and
    `asyncio.to_thread`, and is the body's own in a callback of `CancellationToken.on_cancel`; a
    thread or greenlet that the body starts by itself has `none`: hand it the token. Safe in any thread.
    """
    return _current.get()


@contextmanager
def as_current(token: CancellationToken) -> Iterator[CancellationToken]:
    """Make `token` the current one while the block runs, and the previous one again after it.

    For whoever runs a body. Blocks nest (a task that runs another one inline), and one that
    ends by any exception is undone as well, so that a pool's thread carries nothing over.
    """
    previous = _current.set(token)
    try:
        yield token
    finally:
        _current.reset(previous)
