"""Orders to a store without a Celery app: what would be Celery's to do is written down instead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from celery_canceltoken.control.arguments import checked_id, checked_states
from celery_canceltoken.control.handle import RequestHandle
from celery_canceltoken.control.orders import (
    Answered,
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
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.store.answers import Enqueued
from celery_canceltoken.store.redis_store import RedisStore

__all__ = ["MESSAGE", "WrittenDown", "delete", "get_record", "requeue", "reschedule", "revoke", "withdraw"]

T = TypeVar("T")

MESSAGE = KeptMessage(
    body=b'[[7],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]',
    content_type="application/json",
    content_encoding="utf-8",
    headers={"task": "shop.export", "id": "task-7", "canceltoken_generation": 0},
    exchange="",
    routing_key="celery",
    properties={"priority": 3},
)
"""A task's message, as it would be kept."""


class WrittenDown:
    """What was to be done by Celery, in order; *fails* is raised instead of doing the step of that name."""

    def __init__(self, **fails: Exception) -> None:
        self.done: list[tuple[Any, ...]] = []
        self._fails = fails

    def _do(self, *step: Any) -> None:
        if step[0] in self._fails:
            raise self._fails[step[0]]
        self.done.append(step)

    def publish(self, message: KeptMessage, waiting: Enqueued) -> None:
        self._do("publish", message, waiting)

    def end_result(self, task_id: str, name: str | None, reason: str) -> None:
        self._do("end_result", task_id, name, reason)

    def forget_result(self, task_id: str, name: str | None) -> None:
        self._do("forget_result", task_id, name)

    def broadcast(self, task_ids: Sequence[str]) -> None:
        self._do("broadcast", *task_ids)


def revoke(
    store: RedisStore, task_id: Any, *, celery: WrittenDown | None = None, **words: Any
) -> RequestHandle:
    """Ask a task to stop."""
    store_down = words.pop("store_down", "raise")
    return _handle(store, celery, revoke_steps(store.calls, _order("revoke", task_id, words), store_down))


def delete(
    store: RedisStore, task_id: Any, *, celery: WrittenDown | None = None, **words: Any
) -> RequestHandle:
    """Ask a task to stop and be forgotten."""
    return _handle(store, celery, delete_steps(store.calls, _order("delete", task_id, words)))


def requeue(
    store: RedisStore, task_id: Any, *, celery: WrittenDown | None = None, **words: Any
) -> RequestHandle:
    """Ask for a task to run again."""
    return _handle(store, celery, requeue_steps(store.calls, _order("requeue", task_id, words)))


def reschedule(
    store: RedisStore,
    task_id: Any,
    *,
    eta: datetime | None = None,
    countdown: float | None = None,
    celery: WrittenDown | None = None,
    **words: Any,
) -> RequestHandle:
    """Ask for a task to run at a time."""
    order = _order("requeue", task_id, words)
    return _handle(store, celery, reschedule_steps(store.calls, order, eta=eta, countdown=countdown))


def withdraw(
    store: RedisStore,
    task_id: Any,
    *,
    request_id: str | None = None,
    from_state: Any = None,
    celery: WrittenDown | None = None,
) -> RequestHandle:
    """Take back what was asked."""
    order = withdraw_order(checked_id(task_id), request_id, checked_states(from_state))
    return _handle(store, celery, withdraw_steps(store.calls, order))


def get_record(store: RedisStore, task_id: Any) -> TaskRecord | None:
    """Read a record."""
    return take(store, read_steps(store.calls, checked_id(task_id)))


def take(store: RedisStore, steps: Steps[T], celery: WrittenDown | None = None) -> T:
    """Take all steps."""
    return perform(steps, store, celery or WrittenDown())


def _order(kind: str, task_id: Any, words: dict[str, Any]) -> Any:
    nothing_said = {"reason": None, "actor": None, "from_state": None, "must_exist": False}
    return order_of(kind, task_id, **{**nothing_said, **words})


def _handle(store: RedisStore, celery: WrittenDown | None, steps: Steps[Answered]) -> RequestHandle:
    return RequestHandle(store, take(store, steps, celery))
