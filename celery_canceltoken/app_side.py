"""What the control functions, blocking and asynchronous, need of a Celery app."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celery import Celery, current_app
from celery.result import AsyncResult, GroupResult, ResultBase

from celery_canceltoken.control.many import ForeignContentError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.publishing import as_sent_again, publish
from celery_canceltoken.results import backend_of, decode_arguments, forget, write_revoked
from celery_canceltoken.store.answers import Enqueued

__all__ = ["Actions", "decoder_of", "ids_of", "resolve", "resolve_many"]


class Actions:
    """What an order has done by Celery. May be used from any thread."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, message: KeptMessage, waiting: Enqueued) -> None:
        """Put *message* back into its queue, as the generation that waits."""
        publish(self._app, as_sent_again(message, waiting))

    def end_result(self, task_id: str, name: str | None, reason: str) -> None:
        """Make the result REVOKED."""
        write_revoked(backend_of(self._app, name), task_id, reason)

    def forget_result(self, task_id: str, name: str | None) -> None:
        """Make the result unknown."""
        forget(backend_of(self._app, name), task_id)

    def broadcast(self, task_ids: Sequence[str]) -> None:
        """Revoke by Celery's own remote control."""
        self._app.control.revoke(list(task_ids))


def decoder_of(app: Celery) -> Callable[[KeptMessage], tuple[Any, Any, Any]]:
    """Return what reads the arguments of a kept message."""

    def decode(message: KeptMessage) -> tuple[Any, Any, Any]:
        try:
            return decode_arguments(app, message)
        except Exception as error:
            raise ForeignContentError(str(error)) from error

    return decode


def resolve(task: Any, app: Celery | None) -> tuple[Celery, Any]:
    """Return the app that an order concerns, and the id where *task* is a result."""
    if isinstance(task, ResultBase):
        app, task = app or getattr(task, "app", None), getattr(task, "id", "")
    if app is None:
        app = current_app._get_current_object()  # type: ignore[attr-defined]
    return app, task


def ids_of(result: Any, *, with_parents: bool) -> list[str]:
    """The ids of all tasks that *result* knows of, each once: members of groups, and what led to it."""
    found: dict[str, None] = {}
    todo, seen = [result], set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, GroupResult):
            todo += reversed(one.results or [])
        elif isinstance(one, AsyncResult):
            found[one.id] = None
        if with_parents:
            todo.append(getattr(one, "parent", None))
    return list(found)


def resolve_many(tasks: Any, app: Celery | None) -> tuple[Celery, Any]:
    """The same for several tasks; the app is that of the first result among them."""
    if isinstance(tasks, (str, bytes)) or not isinstance(tasks, Iterable):
        # Refused by the checks, which have the words for it.
        return resolve("", app)[0], tasks
    found = list(tasks)
    first = next((one for one in found if isinstance(one, AsyncResult)), "")
    return resolve(first, app)[0], [one.id if isinstance(one, AsyncResult) else one for one in found]
