"""What can be asked of a task from outside, and the handle that tells what came of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import CancelTokenError, InvalidArgumentError
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import RequestAnswer, RequestOrder
from celery_canceltoken.store.redis_store import RedisStore

__all__ = ["Outcome", "RequestHandle", "read_record", "request_revoke"]

_ID_LIMIT = 255
_TEXT_LIMIT = 1024
_LOOK_AGAIN = 1.0
"""Seconds after which a wait reads the record without having been told to."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended of which something was asked."""

    task_id: str
    state: State | None
    """None where the record has expired, or the id has been sent again since."""
    cause: Cause | None
    reason: str | None
    actor: str | None
    came_too_late: bool
    """The task ended without heeding the request, which had been applied in time."""

    def __str__(self) -> str:
        state = self.state.value if self.state else "no record any more"
        return f"{state}: came too late" if self.came_too_late else state


class RequestHandle:
    """The answer to one request; true if it was applied. May be used from any thread."""

    def __init__(self, store: RedisStore, order: RequestOrder, answer: RequestAnswer) -> None:
        self._store = store
        self._order = order
        self.task_id = order.task_id
        self.request_id = order.request_id
        self.applied = answer.applied
        """True: the request is stored and takes effect, or the outcome says that it came too late."""
        self.previous = answer.previous
        """The state the task was in; None where no worker had claimed it yet."""
        self.refusal = None if answer.applied else _REFUSALS[answer.why]
        """Why it was not applied, in words."""

    def __bool__(self) -> bool:
        return self.applied

    def __repr__(self) -> str:
        return f"<RequestHandle {self._order.kind} {self.task_id}: {self.refusal or 'applied'}>"

    def record(self) -> TaskRecord | None:
        """Read the task's record now. Raises StoreUnavailableError, RecordUnreadableError."""
        return self._store.get(self.task_id)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the task has ended and its Celery result is written, *timeout* seconds at most.

        Pushed, not polled. Raises TimeoutError where it has not ended by then, which for a task that
        is still queued means: until a worker comes to its message. Raises CancelTokenError where
        there is nothing to wait for, and StoreUnavailableError.
        """
        deadline = None if timeout is None else time.monotonic() + _not_negative("timeout", timeout)
        with self._store.end_of(self.task_id) as end:
            while True:
                outcome = self._outcome()
                if outcome is not None:
                    return outcome
                left = _LOOK_AGAIN if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"task {self.task_id} has not ended within {timeout} s")
                end.wait(min(left, _LOOK_AGAIN))

    def _outcome(self) -> Outcome | None:
        record = self.record()
        if record is None or (record.state is None and not record.request_id):
            if not self.applied:
                raise CancelTokenError(f"nothing to wait for: task {self.task_id} is not known")
            return Outcome(self.task_id, None, None, None, None, came_too_late=False)
        mine = record.request_id == self.request_id
        if record.state is not None and record.state.is_final:
            return Outcome(
                self.task_id,
                record.state,
                record.cause,
                record.reason,
                record.actor,
                came_too_late=mine and record.came_too_late,
            )
        if self.applied and not mine and record.request_id is None:
            # Used up, and the id has a new life since.
            return Outcome(self.task_id, None, None, None, None, came_too_late=False)
        return None


_REFUSALS = {
    "unknown": "no worker has seen this id",
    "state": "the task is in another state than from_state accepts",
    "final": "the task has ended",
    "finishing": "the task's body has ended",
    "already": "the same, or more, has been asked of the task already",
}


def request_revoke(
    store: RedisStore,
    task_id: str,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: State | str | Iterable[State | str] | None = None,
    must_exist: bool = False,
) -> RequestHandle:
    """Ask a task to stop. Raises InvalidArgumentError, StoreUnavailableError, RecordUnreadableError."""
    order = RequestOrder(
        task_id=checked_id(task_id),
        request_id=uuid.uuid4().hex,
        kind="revoke",
        cancellation=Cancellation(
            Cause.REVOKED, _checked_text("reason", reason), _checked_text("actor", actor)
        ),
        from_states=_checked_states(from_state),
        must_exist=_checked_flag("must_exist", must_exist),
    )
    return RequestHandle(store, order, store.request(order))


def read_record(store: RedisStore, task_id: str) -> TaskRecord | None:
    """Read one record. Raises InvalidArgumentError, StoreUnavailableError, RecordUnreadableError."""
    return store.get(checked_id(task_id))


def checked_id(task_id: object) -> str:
    """Return *task_id* if it can be one. Raises InvalidArgumentError."""
    if not isinstance(task_id, str):
        raise InvalidArgumentError("task_id", f"must be a string or an AsyncResult, not {task_id!r}")
    if not task_id:
        raise InvalidArgumentError("task_id", "must not be empty")
    if len(task_id) > _ID_LIMIT:
        raise InvalidArgumentError("task_id", f"has {len(task_id)} characters; {_ID_LIMIT} is the limit")
    if not task_id.isprintable():
        raise InvalidArgumentError("task_id", f"must not hold control characters: {task_id!r}")
    return task_id


def _checked_text(argument: str, text: object) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidArgumentError(argument, f"must be a string, not {text!r}")
    if len(text) > _TEXT_LIMIT:
        raise InvalidArgumentError(
            argument, f"has {len(text)} characters; {_TEXT_LIMIT} is the limit: shorten it, or log the rest"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(argument, f"is not valid text: {error}") from error
    return text


def _checked_states(from_state: object) -> tuple[State, ...]:
    if from_state is None:
        return ()
    several = [from_state] if isinstance(from_state, str) else from_state
    try:
        states = tuple(State(one) for one in several)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        known = ", ".join(state.value for state in State)
        raise InvalidArgumentError(
            "from_state", f"must be one or several of {known}, not {from_state!r}"
        ) from None
    if not states:
        raise InvalidArgumentError("from_state", "must name a state; leave it out to accept any")
    return states


def _checked_flag(argument: str, flag: object) -> bool:
    if not isinstance(flag, bool):
        raise InvalidArgumentError(argument, f"must be True or False, not {flag!r}")
    return flag


def _not_negative(argument: str, seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise InvalidArgumentError(argument, f"must be a number of seconds, 0 or more, not {seconds!r}")
    return float(seconds)
