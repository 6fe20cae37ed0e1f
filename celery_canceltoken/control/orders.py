"""Orders to one task: revoke, delete, requeue, reschedule, withdraw."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.control.arguments import (
    checked_ahead,
    checked_flag,
    checked_id,
    checked_moment,
    checked_states,
    checked_text,
)
from celery_canceltoken.control.steps import Ask, Broadcast, EndResult, ForgetResult, Publish, Steps
from celery_canceltoken.errors import InvalidArgumentError, StoreUnavailableError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import RequestAnswer, RequestOrder, WithdrawOrder
from celery_canceltoken.store.calls import Calls

__all__ = [
    "CAUSES",
    "Answered",
    "FromState",
    "answered",
    "checked_store_down",
    "delete_steps",
    "order_of",
    "read_steps",
    "requeue_steps",
    "reschedule_steps",
    "revoke_steps",
    "withdraw_order",
    "withdraw_steps",
]

logger = logging.getLogger("celery_canceltoken.control")

FromState = State | str | Iterable[State | str] | None

CAUSES = {"revoke": Cause.REVOKED, "delete": Cause.DELETED, "requeue": Cause.REQUEUED}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_REFUSALS = {
    "unknown": "nothing is known of this id",
    "state": "the task is in another state than from_state accepts",
    "final": "the task has ended",
    "finishing": "the task's body has ended",
    "already": "the same, or more, has been asked of the task already",
    "queued": "the task is in its queue",
    "nothing": "nothing is asked of the task that could be taken back",
    "delivered": "the body has been told already",
}
_UNKEPT = {
    "setting": "canceltoken_keep_message (or the task's keep_message) says so",
    "too-large": "it is larger than canceltoken_message_limit",
    "not-json": "a header of it cannot be kept as JSON",
    "unreadable": "it came in a form that cannot be sent again",
    "": "the task has succeeded, was deleted or waits for a retry, or its record was lost in between",
}


@dataclass(frozen=True)
class Answered:
    """One order and what became of it at once."""

    task_id: str
    request_id: str
    kind: str
    applied: bool
    previous: State | None
    refusal: str | None = None
    broadcast: bool = False


def order_of(
    kind: str,
    task_id: str,
    *,
    reason: str | None,
    actor: str | None,
    from_state: FromState,
    must_exist: bool,
) -> RequestOrder:
    """Check the arguments of an order. Raises InvalidArgumentError."""
    return RequestOrder(
        task_id=checked_id(task_id),
        request_id=uuid.uuid4().hex,
        kind=kind,
        cancellation=Cancellation(CAUSES[kind], checked_text("reason", reason), checked_text("actor", actor)),
        from_states=checked_states(from_state),
        must_exist=checked_flag("must_exist", must_exist),
    )


def answered(order: RequestOrder, answer: RequestAnswer) -> Answered:
    """Put the store's answer into words."""
    refusal = None
    if not answer.applied:
        refusal = _REFUSALS.get(answer.why)
        if answer.why == "no-message":
            refusal = f"no message of the task is kept: {_UNKEPT.get(answer.unkept, answer.unkept)}"
    return Answered(order.task_id, order.request_id, order.kind, answer.applied, answer.previous, refusal)


def read_steps(calls: Calls, task_id: str) -> Steps[TaskRecord | None]:
    """Read one record."""
    (record,) = yield Ask([calls.read(task_id)])
    found: TaskRecord | None = record
    return found


def revoke_steps(calls: Calls, order: RequestOrder, store_down: str = "raise") -> Steps[Answered]:
    """Ask a task to stop."""
    try:
        (answer,) = yield Ask([calls.request(order)])
    except StoreUnavailableError:
        if store_down != "broadcast":
            raise
        yield Broadcast([order.task_id])
        refusal = "the store did not answer; the workers were told by Celery's own revoke instead"
        return Answered(order.task_id, order.request_id, order.kind, False, None, refusal, broadcast=True)
    return answered(order, answer)


def checked_store_down(store_down: object) -> str:
    """Return what is to be done without the store. Raises InvalidArgumentError."""
    if store_down not in ("raise", "broadcast"):
        raise InvalidArgumentError("store_down", f"must be 'raise' or 'broadcast', not {store_down!r}")
    return str(store_down)


def delete_steps(calls: Calls, order: RequestOrder) -> Steps[Answered]:
    """Ask a task to stop and be forgotten; its result is REVOKED from now on."""
    answer, record = yield Ask([calls.request(order), calls.read(order.task_id)])
    if answer.applied:
        reason = order.cancellation.reason or "deleted"
        try:
            yield EndResult(order.task_id, record.name if record is not None else None, reason)
        except Exception:
            # The worker writes it as well, once the task has stopped or is not started.
            logger.exception("the result of task %s could not be written yet", order.task_id)
    return answered(order, answer)


def requeue_steps(calls: Calls, order: RequestOrder) -> Steps[Answered]:
    """Ask for a task to run again: where it does not run now, its message is published here."""
    (answer,) = yield Ask([calls.request(order)])
    if answer.applied and answer.outbox is not None:
        ((waiting, text),) = yield Ask([calls.outbox(order.task_id)])
        if waiting != answer.outbox:
            # An agent was faster, and the result that may be there by now is that of the next run.
            return answered(order, answer)
        try:
            message = KeptMessage.from_json(text or "")
            yield ForgetResult(order.task_id, message.name)
            yield Publish(order.task_id, message, answer.outbox)
        except Exception:
            # It waits in the outbox: any agent sends it when the broker is back.
            logger.exception("task %s could not be sent to its queue; a worker will do it", order.task_id)
        else:
            yield Ask([calls.published(order.task_id, answer.outbox.generation)])
    return answered(order, answer)


def reschedule_steps(
    calls: Calls, order: RequestOrder, *, eta: datetime | None, countdown: float | None
) -> Steps[Answered]:
    """Ask for a task to run, or run again, at a time."""
    if (eta is None) == (countdown is None):
        raise InvalidArgumentError("eta", "give either eta or countdown")
    moment = checked_moment("eta", eta) if countdown is None else checked_ahead("countdown", countdown)
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    if microseconds < 0:
        raise InvalidArgumentError("eta", f"{moment.isoformat()} is before 1970")
    return (yield from requeue_steps(calls, replace(order, wanted_eta=microseconds)))


def withdraw_order(task_id: str, request_id: str | None, from_states: tuple[State, ...]) -> WithdrawOrder:
    """Make the order to take something back."""
    return WithdrawOrder(task_id, uuid.uuid4().hex, request_id, from_states)


def withdraw_steps(calls: Calls, order: WithdrawOrder) -> Steps[Answered]:
    """Take back what was asked of a task, as long as nobody has heeded it."""
    answer, record = yield Ask([calls.withdraw(order), calls.read_or_none(order.task_id)])
    if answer.applied and answer.withdrawn_kind == "delete":
        # Its result says REVOKED since then.
        yield ForgetResult(order.task_id, record.name if record is not None else None)
    refusal = None if answer.applied else _REFUSALS.get(answer.why, answer.why)
    return Answered(order.task_id, order.withdrawal_id, "withdraw", answer.applied, answer.previous, refusal)
