"""Orders about many tasks at once."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.control.arguments import (
    checked_ahead,
    checked_flag,
    checked_ids,
    checked_moment,
    checked_name,
    checked_predicate,
    checked_stamps,
    checked_states,
    checked_text,
)
from celery_canceltoken.control.listing import scan_steps
from celery_canceltoken.control.orders import Answered, FromState, answered
from celery_canceltoken.control.steps import Ask, Steps
from celery_canceltoken.errors import CancelTokenError, InvalidArgumentError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import RequestOrder
from celery_canceltoken.store.calls import Calls

__all__ = [
    "Criteria",
    "ForeignContentError",
    "StoredTask",
    "criteria_of",
    "revoke_many_steps",
    "revoke_where_steps",
    "revoke_workflow_steps",
    "select_steps",
]

# One of them twice: what starts, or starts again, while the lists are read is met once at least.
_NOT_ENDED = (State.PROCESSING, State.SCHEDULED, State.ENQUEUED, State.PROCESSING)

logger = logging.getLogger("celery_canceltoken.control")


class ForeignContentError(CancelTokenError):
    """The arguments of a kept message are in a form that the app does not accept."""


@dataclass(frozen=True)
class StoredTask:
    """A task that has not ended, with its message: what `revoke_where` shows to its predicate."""

    record: TaskRecord
    message: KeptMessage = field(repr=False)
    _decode: Callable[[KeptMessage], tuple[Any, Any, Any]] = field(repr=False)

    @property
    def task_id(self) -> str:
        """Its id."""
        return self.record.task_id

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.message.name

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers of its message, Celery's and the sender's own."""
        return self.message.headers

    @cached_property
    def args(self) -> Sequence[Any]:
        """Its positional arguments. In a form that the app does not accept, the task is left alone."""
        return self._decoded[0]  # type: ignore[no-any-return]

    @cached_property
    def kwargs(self) -> Mapping[str, Any]:
        """Its keyword arguments. In a form that the app does not accept, the task is left alone."""
        return self._decoded[1]  # type: ignore[no-any-return]

    @cached_property
    def _decoded(self) -> tuple[Any, Any, Any]:
        return self._decode(self.message)


@dataclass(frozen=True)
class Criteria:
    """Which tasks `revoke_where` is about."""

    name: str | None = None
    queue: str | None = None
    stamps: Mapping[str, Any] | None = None
    where: Callable[[StoredTask], bool] | None = None
    seconds: float | None = None
    """How long those still to come are meant as well."""

    @property
    def needs_message(self) -> bool:
        """True if the record alone does not tell."""
        return self.stamps is not None or self.where is not None

    def fit(self, record: TaskRecord) -> bool:
        """Tell what the record alone can tell."""
        return (self.name is None or record.name == self.name) and (
            self.queue is None or record.queue == self.queue
        )

    def fit_message(self, task: StoredTask) -> bool:
        """Tell the rest."""
        stamps = task.message.stamps
        if any(value not in stamps.get(header, ()) for header, value in (self.stamps or {}).items()):
            return False
        return self.where is None or bool(self.where(task))


def criteria_of(
    *,
    name: str | None,
    queue: str | None,
    stamps: Mapping[str, Any] | None,
    where: Callable[[StoredTask], bool] | None,
    until: datetime | timedelta | None,
) -> Criteria:
    """Check the arguments of `revoke_where`. Raises InvalidArgumentError."""
    seconds = None
    if until is not None:
        if where is not None:
            raise InvalidArgumentError(
                "until", "cannot go with where: a function of yours cannot be asked by workers; use stamps"
            )
        ahead = isinstance(until, timedelta)
        moment = checked_ahead("until", until) if ahead else checked_moment("until", until)
        seconds = (moment - datetime.now(timezone.utc)).total_seconds()
        if seconds <= 0:
            raise InvalidArgumentError("until", f"{moment.isoformat()} is over")
    criteria = Criteria(
        checked_name("name", name),
        checked_name("queue", queue),
        checked_stamps(stamps),
        checked_predicate(where),
        seconds,
    )
    if criteria.name is None and criteria.queue is None and not criteria.needs_message:
        raise InvalidArgumentError("name", "give at least one of name, queue, stamps and where")
    return criteria


def _cancellation(reason: str | None, actor: str | None) -> Cancellation:
    return Cancellation(Cause.REVOKED, checked_text("reason", reason), checked_text("actor", actor))


def revoke_many_steps(
    calls: Calls,
    task_ids: Iterable[object],
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
) -> Steps[list[Answered]]:
    """Ask many tasks to stop; an answer for each id."""
    ids, states = checked_ids(task_ids), checked_states(from_state)
    cancellation = _cancellation(reason, actor)
    checked_flag("must_exist", must_exist)
    orders = [
        RequestOrder(task_id, uuid.uuid4().hex, "revoke", cancellation, states, must_exist) for task_id in ids
    ]
    answers = yield Ask([calls.request(order) for order in orders])
    return [answered(order, answer) for order, answer in zip(orders, answers, strict=True)]


def revoke_workflow_steps(
    calls: Calls, task_ids: Iterable[object], *, reason: str | None, actor: str | None
) -> Steps[list[Answered]]:
    """Ask all of a workflow to stop, of which some ids are known, and what its tasks send later."""
    known = checked_ids(task_ids)
    cancellation = _cancellation(reason, actor)
    records = yield Ask([calls.read_or_none(task_id) for task_id in known])
    # Members of one group have no root in common, so each of them counts as one.
    roots = dict.fromkeys([*known, *(one.root_id for one in records if one is not None and one.root_id)])
    request_id = uuid.uuid4().hex
    # First the marks: whoever claims from here on is told, and whoever claimed before is a member by now.
    yield Ask([calls.mark(root, request_id, "revoke", cancellation) for root in roots])
    found = yield Ask([calls.members(root) for root in roots])
    members = [task_id for some in found for task_id in some]
    return (yield from revoke_many_steps(calls, [*roots, *members], reason=reason, actor=actor))


def select_steps(
    calls: Calls, criteria: Criteria, decode: Callable[[KeptMessage], tuple[Any, Any, Any]]
) -> Steps[list[TaskRecord]]:
    """Find the tasks that have not ended and fit."""
    records = yield from scan_steps(calls, _NOT_ENDED)
    fitting = [record for record in records if criteria.fit(record)]
    if not criteria.needs_message:
        return fitting
    texts = yield Ask([calls.message(record.task_id) for record in fitting])
    return [
        record
        for record, text in zip(fitting, texts, strict=True)
        if text is not None and _fits(criteria, record, text, decode)
    ]


def _fits(
    criteria: Criteria, record: TaskRecord, text: str, decode: Callable[[KeptMessage], tuple[Any, Any, Any]]
) -> bool:
    try:
        message = KeptMessage.from_json(text)
    except ValueError as error:
        logger.warning("task %s is left alone, for its kept message is damaged: %s", record.task_id, error)
        return False
    try:
        return criteria.fit_message(StoredTask(record, message, decode))
    except ForeignContentError as error:
        logger.warning("task %s is left alone, for its arguments cannot be read: %s", record.task_id, error)
        return False


def revoke_where_steps(
    calls: Calls,
    criteria: Criteria,
    decode: Callable[[KeptMessage], tuple[Any, Any, Any]],
    *,
    reason: str | None,
    actor: str | None,
) -> Steps[list[Answered]]:
    """Ask all tasks to stop that fit, and where there is a time for it those that come until then."""
    cancellation = _cancellation(reason, actor)
    if criteria.seconds is not None:
        # First this, then the look: nobody slips through between the two.
        (stands,) = yield Ask(
            [
                calls.stand(
                    uuid.uuid4().hex,
                    "revoke",
                    cancellation,
                    seconds=criteria.seconds,
                    name=criteria.name,
                    queue=criteria.queue,
                    stamps=criteria.stamps,
                )
            ]
        )
        if not stands:
            raise CancelTokenError(
                "too many standing orders; wait until one is over, or leave out until and ask again later"
            )
    records = yield from select_steps(calls, criteria, decode)
    ids = [record.task_id for record in records]
    return (yield from revoke_many_steps(calls, ids, reason=reason, actor=actor))
