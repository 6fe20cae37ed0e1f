"""The functions app code calls: from a Celery app to its store, and on to `control`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar, overload

from celery import Celery
from celery.result import AsyncResult, GroupResult

from celery_canceltoken.app_side import Actions, decoder_of, ids_of, resolve, resolve_many
from celery_canceltoken.configuration import client_store
from celery_canceltoken.control.arguments import (
    checked_flag,
    checked_id,
    checked_seconds,
    checked_states,
)
from celery_canceltoken.control.handle import RequestHandle, RequestHandles
from celery_canceltoken.control.listing import RecordPage, list_steps
from celery_canceltoken.control.many import (
    StoredTask,
    criteria_of,
    revoke_many_steps,
    revoke_where_steps,
    revoke_workflow_steps,
    select_steps,
)
from celery_canceltoken.control.orders import (
    Answered,
    FromState,
    checked_store_down,
    delete_steps,
    order_of,
    read_steps,
    requeue_steps,
    reschedule_steps,
    revoke_steps,
    withdraw_order,
    withdraw_steps,
)
from celery_canceltoken.control.steps import Steps, perform
from celery_canceltoken.draining import ask_worker
from celery_canceltoken.record import TaskRecord

__all__ = [
    "delete",
    "drain",
    "get_record",
    "list_records",
    "requeue",
    "reschedule",
    "revoke",
    "revoke_group",
    "revoke_many",
    "revoke_where",
    "revoke_workflow",
    "undrain",
    "withdraw",
]

T = TypeVar("T")

# As a string: before Celery 5.7 it is no generic class at run time.
Task: TypeAlias = "str | AsyncResult[Any]"


def revoke(
    task_id: Task,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    store_down: Literal["raise", "broadcast"] = "raise",
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
    With ``store_down="broadcast"`` a store that does not answer is no error: the workers that are
    online are told by Celery's own revoke, and the handle is false, with `broadcast` set. The app is
    *app*, else that of the AsyncResult, else Celery's current one.

    Safe from any thread and process. Raises InvalidArgumentError and SettingsError (nothing was
    written), StoreUnavailableError (the store did not answer: not known to be applied; asking again
    is safe) and RecordUnreadableError.
    """
    app, task = resolve(task_id, app)
    order = order_of("revoke", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist)
    checked_store_down(store_down)
    return _one(app, revoke_steps(client_store(app).calls, order, store_down))


def delete(
    task_id: Task,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> RequestHandle:
    """Ask a task to stop and be forgotten. Hangfire's `Delete`.

    As `revoke`, with these differences. Celery's result is REVOKED at once, so that nobody waits in
    `AsyncResult.get()` for it. Whatever the body does, the record ends DELETED, and the message and
    the value are gone with it; so there is nothing to requeue. A delete outranks a revoke or a
    requeue that was asked for before.
    """
    app, task = resolve(task_id, app)
    order = order_of("delete", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist)
    return _one(app, delete_steps(client_store(app).calls, order))


def requeue(
    task_id: Task,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> RequestHandle:
    """Ask for a task to run again from its queue, under the same id. Hangfire's `Requeue`.

    A running body is told through its token (cause REQUEUED), and when it has ended the message goes
    back to where it came from: exchange, routing key, priority, headers, links, chord, stamps and
    expiry as they were, `retries` unchanged. A task that has ended, or whose worker is lost, is sent
    at once from the message in its record, and its Celery result is forgotten until the next one.
    What the old run does from then on counts for nothing.

    Refused, with the reason: an id of which nothing is known, a task that is in its queue, one whose
    message is not kept (`canceltoken_keep_message`). Asked twice it happens once. Arguments and
    errors are those of `revoke`; where the broker does not answer, a worker sends the message later.
    """
    app, task = resolve(task_id, app)
    order = order_of(
        "requeue", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist
    )
    return _one(app, requeue_steps(client_store(app).calls, order))


def reschedule(
    task_id: Task,
    *,
    eta: datetime | None = None,
    countdown: float | None = None,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> RequestHandle:
    """Ask for a task to run, or run again, at *eta* (with a time zone) or in *countdown* seconds.

    As `requeue`, but for the time; and a task that waits in its queue, or for a time, is moved to the
    new one where its message is kept already (`canceltoken_track_enqueued`, a requeue).
    Hangfire's `Reschedule`.
    """
    app, task = resolve(task_id, app)
    order = order_of(
        "requeue", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist
    )
    return _one(app, reschedule_steps(client_store(app).calls, order, eta=eta, countdown=countdown))


def withdraw(
    task_id: Task | RequestHandle, *, from_state: FromState = None, app: Celery | None = None
) -> RequestHandle:
    """Take back what was asked of a task, as long as nobody has heeded it.

    Of a task, whatever is pending; of a handle, that one request. True: it was in time, and has no
    effect. False: there is nothing to take back, or the body has been told already. What was asked
    by `revoke_workflow` and by `revoke_where` of those still to come stays. Raises as `revoke` does.
    """
    handle = task_id if isinstance(task_id, RequestHandle) else None
    if handle is not None:
        app, task_id = app or handle.app, handle.task_id
    app, task = resolve(task_id, app)
    request_id = handle.request_id if handle is not None else None
    order = withdraw_order(checked_id(task), request_id, checked_states(from_state))
    return _one(app, withdraw_steps(client_store(app).calls, order))


def revoke_many(
    task_ids: Iterable[Task],
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> RequestHandles:
    """Ask many tasks to stop, in few round trips; an answer for each id, in the order of the ids.

    A bad argument is refused before anything is asked. If the store goes away in between,
    StoreUnavailableError is raised, and asking again for all of them is safe.
    """
    app, ids = resolve_many(task_ids, app)
    steps = revoke_many_steps(
        client_store(app).calls,
        ids,
        reason=reason,
        actor=actor,
        from_state=from_state,
        must_exist=must_exist,
    )
    return _several(app, steps)


def revoke_group(
    group: GroupResult,
    *,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> RequestHandles:
    """Ask all members of a group to stop, those of groups within it as well. Raises as `revoke` does."""
    app, _ = resolve(group, app)
    steps = revoke_many_steps(
        client_store(app).calls, ids_of(group, with_parents=False), reason=reason, actor=actor
    )
    return _several(app, steps)


def revoke_workflow(
    workflow: Task | GroupResult,
    *,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> RequestHandles:
    """Ask all of a chain, group, chord or a nest of them to stop, and what its tasks send from now on.

    *workflow* is the result of the whole, or the id of its first task. What runs is told, what is
    queued never starts, and what is published later by its tasks is told when a worker claims it: a
    mark on the workflow's root, kept for `canceltoken_request_expires`, which each claim reads in its
    own step. Sending the root's id again lifts it. No chord is left waiting.

    The handles are those of the ids that are known by now. An id that is given alone finds the tasks
    of its root that workers have seen; members of a group that have no root in common are found by
    the group's own result only. Raises as `revoke` does.
    """
    app, _ = resolve(workflow, app)
    ids = [workflow] if isinstance(workflow, str) else ids_of(workflow, with_parents=True)
    store = client_store(app)
    answers = _perform(app, revoke_workflow_steps(store.calls, ids, reason=reason, actor=actor))
    return RequestHandles((RequestHandle(store, one) for one in answers), awaits_unclaimed=False)


@overload
def revoke_where(
    *,
    name: str | None = None,
    queue: str | None = None,
    stamps: Mapping[str, Any] | None = None,
    where: Callable[[StoredTask], bool] | None = None,
    until: datetime | timedelta | None = None,
    dry_run: Literal[False] = False,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> RequestHandles: ...


@overload
def revoke_where(
    *,
    name: str | None = None,
    queue: str | None = None,
    stamps: Mapping[str, Any] | None = None,
    where: Callable[[StoredTask], bool] | None = None,
    until: datetime | timedelta | None = None,
    dry_run: Literal[True],
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> list[TaskRecord]: ...


def revoke_where(
    *,
    name: str | None = None,
    queue: str | None = None,
    stamps: Mapping[str, Any] | None = None,
    where: Callable[[StoredTask], bool] | None = None,
    until: datetime | timedelta | None = None,
    dry_run: bool = False,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> RequestHandles | list[TaskRecord]:
    """Ask all tasks to stop that fit every criterion given: those that run, and those that wait.

    *name* is a task's name, *queue* a routing key, *stamps* maps Celery's stamped headers to values,
    *where* is asked about each `StoredTask` that is left. Tasks that wait are known where they are
    tracked (`canceltoken_track_enqueued`), retried or requeued; with *until*, a time or a duration,
    those still to come are stopped as they are claimed, for which *where* cannot be used. Stamps and
    *where* need the message: tasks whose message is not kept are left alone.

    With *dry_run* nothing is written, and the records of those that would be told are returned.
    Raises as `revoke` does, whatever *where* raises (then nothing was asked), and CancelTokenError
    where 100 orders with *until* stand already.
    """
    app, _ = resolve("", app)
    calls, decode = client_store(app).calls, decoder_of(app)
    criteria = criteria_of(name=name, queue=queue, stamps=stamps, where=where, until=until)
    if checked_flag("dry_run", dry_run):
        return _perform(app, select_steps(calls, criteria, decode))
    return _several(app, revoke_where_steps(calls, criteria, decode, reason=reason, actor=actor))


def drain(worker: str, *, timeout: float = 1.0, app: Celery | None = None) -> bool:
    """Empty one worker, by its node name, without stopping it: for a machine that is to be freed.

    It takes no more tasks; what has not started is given back, and what runs is told to stop (cause
    SHUTDOWN) and goes back to its queue, each as its `shutdown_policy` and `shutdown_grace` say. Sent
    by Celery's remote control. True: the worker has answered within *timeout* seconds. On the solo
    pool it hears of it when its task has ended. Raises InvalidArgumentError, and what Celery raises
    where the broker does not answer.
    """
    app, _ = resolve("", app)
    name, seconds = checked_id(worker, "worker"), checked_seconds("timeout", timeout)
    return ask_worker(app, name, drain=True, timeout=seconds)


def undrain(worker: str, *, timeout: float = 1.0, app: Celery | None = None) -> bool:
    """Have a worker take tasks again that was drained. As `drain`."""
    app, _ = resolve("", app)
    name, seconds = checked_id(worker, "worker"), checked_seconds("timeout", timeout)
    return ask_worker(app, name, drain=False, timeout=seconds)


def get_record(task_id: Task, *, app: Celery | None = None) -> TaskRecord | None:
    """Return what is recorded of a task; None for an id that nobody has claimed or asked anything of.

    Raises InvalidArgumentError, SettingsError, StoreUnavailableError, RecordUnreadableError.
    """
    app, task = resolve(task_id, app)
    return _perform(app, read_steps(client_store(app).calls, checked_id(task)))


def list_records(
    *,
    state: FromState = None,
    name: str | None = None,
    worker: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
    app: Celery | None = None,
) -> RecordPage:
    """Return records that fit every criterion given, of each state those that changed last first.

    From indexes: no key is searched for. They hold the last 10,000 of each final state, task name
    and worker, and of what has not ended a million of each state. The page's *cursor* leads to the
    next one; a record that changes in between may be met twice, or not at all. Raises
    InvalidArgumentError, SettingsError, StoreUnavailableError.
    """
    app, _ = resolve("", app)
    steps = list_steps(
        client_store(app).calls, state=state, name=name, worker=worker, limit=limit, cursor=cursor
    )
    return _perform(app, steps)


def _perform(app: Celery, steps: Steps[T]) -> T:
    return perform(steps, client_store(app), Actions(app))


def _one(app: Celery, steps: Steps[Answered]) -> RequestHandle:
    return RequestHandle(client_store(app), _perform(app, steps), app)


def _several(app: Celery, steps: Steps[list[Answered]]) -> RequestHandles:
    store = client_store(app)
    return RequestHandles(RequestHandle(store, one, app) for one in _perform(app, steps))
