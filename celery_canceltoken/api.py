"""The functions app code calls: from a Celery app to its store, and on to `control`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery, current_app
from celery.result import AsyncResult

from celery_canceltoken.configuration import client_store
from celery_canceltoken.control import RequestHandle, read_record, request_revoke
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import State

__all__ = ["get_record", "revoke"]


def revoke(
    task_id: str | AsyncResult[Any],
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: State | str | Iterable[State | str] | None = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> RequestHandle:
    """Ask a task to stop, wherever it is. Hangfire's `Delete`, but it keeps the task and says why.

    A running body is told through its token, within milliseconds. A queued task never starts, and
    neither does one with an eta, or one whose message no worker has seen yet, online or not. A task
    that has ended is left alone. Of two requests the first one's reason stays.

    *reason* (at most 1,024 characters) reaches the token, the record and Celery's result; *actor*
    says who asked. With *from_state* the request is applied only where the task is in that state, or
    in one of those. With *must_exist* an id that no worker has claimed is refused; without it the
    request is kept for `canceltoken_request_expires` and used up by the next message with that id.
    The app is that of the AsyncResult, else *app*, else Celery's current one.

    Safe from any thread and process. Raises InvalidArgumentError and SettingsError (nothing was
    written), StoreUnavailableError (the store did not answer: not known to be applied; asking again
    is safe) and RecordUnreadableError.
    """
    app, task_id = _resolve(task_id, app)
    return request_revoke(
        client_store(app),
        task_id,
        reason=reason,
        actor=actor,
        from_state=from_state,
        must_exist=must_exist,
    )


def get_record(task_id: str | AsyncResult[Any], *, app: Celery | None = None) -> TaskRecord | None:
    """Return what is recorded of a task; None for an id that nobody has claimed or asked anything of.

    Raises InvalidArgumentError, SettingsError, StoreUnavailableError, RecordUnreadableError.
    """
    app, task_id = _resolve(task_id, app)
    return read_record(client_store(app), task_id)


def _resolve(task: str | AsyncResult[Any], app: Celery | None) -> tuple[Celery, str]:
    if isinstance(task, AsyncResult):
        app, task = app or task.app, task.id
    if app is None:
        app = current_app._get_current_object()  # type: ignore[attr-defined]
    return app, task
