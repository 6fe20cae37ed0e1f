"""Celery's results, written for tasks whose own body does not do it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from billiard.exceptions import WorkerLostError
from celery import Celery
from celery import states as celery_states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from kombu.serialization import loads, prepare_accept_content

from celery_canceltoken.cause import Cause
from celery_canceltoken.errors import ShutdownError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Recovery

__all__ = ["backend_of", "complete", "decode_arguments", "forget", "revoked_reason", "write_revoked"]


def backend_of(app: Celery, name: str | None) -> Any:
    """The result backend of a task by name; of the app where the task is not known here."""
    task = app.tasks.get(name or "")
    return task.backend if task is not None else app.backend


def revoked_reason(state: State, reason: str | None) -> str:
    """What TaskRevokedError says."""
    return reason or state.value.lower()


def write_revoked(
    backend: Any, task_id: str, reason: str, request: Any = None, *, store_result: bool = True
) -> None:
    """Make Celery's result REVOKED, and tell chord, chain and errbacks, where *request* knows of them."""
    error = TaskRevokedError(reason)
    dependants = _dependants_of(backend, request) if request is not None else []
    backend.mark_as_failure(
        task_id,
        error,
        request=request,
        store_result=store_result,
        call_errbacks=request is not None,
        state=celery_states.REVOKED,
    )
    _end_what_depends_on(backend, dependants, error)


def forget(backend: Any, task_id: str) -> None:
    """Make a result unknown, so that the next run's can be written: a success is never overwritten."""
    # Not `forget` itself: on Redis that also cuts off whoever waits for the result in this process.
    backend._cache.pop(task_id, None)
    backend._forget(task_id)


def decode_arguments(app: Celery, message: KeptMessage) -> tuple[Any, Any, Any]:
    """Return args, kwargs and embedded canvas of a kept message, as far as the app accepts its content.

    Raises kombu's ContentDisallowed and DecodeError.
    """
    accept = prepare_accept_content(app.conf.accept_content)
    body = loads(message.body, message.content_type, message.content_encoding, accept=accept)
    args, kwargs, embed = body
    return args, kwargs, embed


def complete(app: Celery, recovery: Recovery) -> None:
    """Write the result that a lost worker left unwritten.

    With the message kept, its chord, chain and errbacks are told as well.
    """
    task_id, request = recovery.task_id, None
    name = None
    if recovery.message is not None:
        message = KeptMessage.from_json(recovery.message)
        request = _request_of(app, message)
        name = message.name
    backend = backend_of(app, name)
    if recovery.state in (State.REVOKED, State.DELETED):
        reason = recovery.cancellation.reason if recovery.cancellation else None
        write_revoked(backend, task_id, revoked_reason(recovery.state, reason), request)
    elif backend.get_state(task_id) in celery_states.READY_STATES:
        return
    elif recovery.state is State.FAILED:
        error = _failure_of(recovery)
        backend.mark_as_failure(task_id, error, request=request, call_errbacks=request is not None)
    elif recovery.state is State.SUCCEEDED and recovery.value:
        backend.mark_as_done(task_id, json.loads(recovery.value), request=request)


def _failure_of(recovery: Recovery) -> Exception:
    if recovery.cancellation is not None and recovery.cancellation.cause is Cause.SHUTDOWN:
        return ShutdownError("did not heed the shutdown of its worker, and is not sent back to its queue")
    return WorkerLostError("the worker was lost while it ran the task")


def _request_of(app: Celery, message: KeptMessage) -> Context:
    args, kwargs, embed = decode_arguments(app, message)
    properties = {name: message.properties.get(name) for name in ("reply_to", "correlation_id")}
    return Context(
        {**message.headers, **properties, **embed}, args=args, kwargs=kwargs, called_directly=False
    )


class _Dependant(NamedTuple):
    """A task behind one that has failed."""

    request: Context
    is_body: bool
    """It belongs to the chord's body, rather than to the rest of the chain."""
    was_open: bool
    """It had no result yet."""


def _dependants_of(backend: Any, request: Any) -> list[_Dependant]:
    body = request.chord
    leaves = [(leaf, True) for leaf in _leaves(body)] if body else []
    leaves += [(leaf, False) for element in request.chain or () for leaf in _leaves(element)]
    found = []
    for leaf, is_body in leaves:
        dependant = Context(leaf)
        dependant.update(leaf["options"])
        dependant.id = leaf["options"].get("task_id")
        dependant.group = leaf["options"].get("group_id")
        if dependant.id is None or (leaf is body and not dependant.chord):
            # The plain body of a chord Celery sees to, when the other members have ended.
            continue
        found.append(_Dependant(dependant, is_body, _is_open(backend, dependant.id)))
    return found


def _end_what_depends_on(backend: Any, dependants: list[_Dependant], error: TaskRevokedError) -> None:
    """End what Celery leaves pending behind a failed task for ever.

    Seen on 5.5 to 5.7: a chord whose header holds a failed chord, the groups of a failed chain, and
    all but the last of a body that is a chain. *dependants* are as they were before Celery had a look:
    where it has failed a chord's body since, it has told nobody further.
    """
    for request, is_body, was_open in dependants:
        behind = _dependants_of(backend, request)
        is_open = _is_open(backend, request.id)
        if is_open:
            backend.store_result(request.id, error, celery_states.REVOKED, request=request)
        if request.chord and (is_open or (is_body and was_open)):
            backend.on_chord_part_return(request, celery_states.REVOKED, error)
        _end_what_depends_on(backend, behind, error)


def _is_open(backend: Any, task_id: str | None) -> bool:
    return backend.get_state(task_id) not in celery_states.READY_STATES


def _leaves(signature: Any) -> Iterator[Any]:
    """The single tasks of a signature in its stored form."""
    kwargs = signature.get("kwargs") or {}
    kind = signature.get("subtask_type")
    if kind in ("chain", "group"):
        for one in kwargs.get("tasks") or ():
            yield from _leaves(one)
    elif kind == "chord":
        for one in _header_of(kwargs.get("header")):
            yield from _leaves(one)
        if kwargs.get("body"):
            yield from _leaves(kwargs["body"])
    else:
        yield signature


def _header_of(header: Any) -> Any:
    if isinstance(header, dict):
        return (header.get("kwargs") or {}).get("tasks") or ()
    return header or ()
