"""The handle of one order, and what it says came of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from celery_canceltoken.cause import Cause
from celery_canceltoken.control.arguments import checked_seconds
from celery_canceltoken.control.orders import Answered
from celery_canceltoken.errors import CancelTokenError
from celery_canceltoken.record import Change, TaskRecord
from celery_canceltoken.states import State
from celery_canceltoken.store.redis_store import RedisStore

__all__ = ["LOOK_AGAIN", "Handle", "Handles", "Outcome", "RequestHandle", "RequestHandles", "outcome_of"]

LOOK_AGAIN = 1.0
"""Seconds after which a wait reads the record without having been told to."""


@dataclass(frozen=True)
class Outcome:
    """What came of an order."""

    task_id: str
    state: State | None
    """The state the task came to by it. None where no worker had claimed it, or its record has expired."""
    cause: Cause | None
    reason: str | None
    actor: str | None
    came_too_late: bool = False
    """The task ended without heeding the order, which had been applied in time."""
    withdrawn: bool = False
    """The order was taken back before anybody had heeded it."""
    overruled: bool = False
    """Another order that wants more took its place."""
    completed: bool = False
    """The run that was sent back to its queue had completed its work."""

    def __str__(self) -> str:
        taken_back = self.withdrawn or self.overruled
        state = self.state.value if self.state else "not started" if taken_back else "no record any more"
        for said, words in (
            (self.came_too_late, "came too late"),
            (self.withdrawn, "withdrawn"),
            (self.overruled, "overruled"),
            (self.completed, "the run had completed"),
        ):
            if said:
                return f"{state}: {words}"
        return state


class Handle:
    """The answer to one order; true if it was applied."""

    def __init__(self, answered: Answered, app: Any = None) -> None:
        self._answered = answered
        self.app = app
        """The Celery app of the task."""
        self.task_id = answered.task_id
        self.request_id = answered.request_id
        self.kind = answered.kind
        """What was asked: "revoke", "delete", "requeue" or "withdraw"."""
        self.applied = answered.applied
        """True: the order is stored and takes effect, or the outcome says why not."""
        self.previous = answered.previous
        """The state the task was in; None where no worker had claimed it yet."""
        self.refusal = answered.refusal
        """Why it was not applied, in words."""
        self.broadcast = answered.broadcast
        """The store did not answer, and Celery's own revoke was sent instead; what comes of it is unknown."""

    def __bool__(self) -> bool:
        return self.applied

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} {self.task_id}: {self.refusal or 'applied'}>"


class RequestHandle(Handle):
    """The answer to one order; true if it was applied. May be used from any thread."""

    def __init__(self, store: RedisStore, answered: Answered, app: Any = None) -> None:
        super().__init__(answered, app)
        self._store = store

    def record(self) -> TaskRecord | None:
        """Read the task's record now. Raises StoreUnavailableError, RecordUnreadableError."""
        return self._store.get(self.task_id)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the order has had its effect, *timeout* seconds at most.

        After revoke and delete that is the end of the task, with its Celery result written; after
        requeue the end of the run it found. Where the order was refused, and after withdraw, it is
        the end of the task. Pushed, not polled. Raises TimeoutError where it has not come to that by
        then, which for a task that is still queued means: until a worker comes to its message. Raises
        CancelTokenError where there is nothing to wait for, and StoreUnavailableError.
        """
        deadline = None if timeout is None else time.monotonic() + checked_seconds("timeout", timeout)
        with self._store.end_of(self.task_id) as end:
            while True:
                outcome = outcome_of(self._answered, self.record())
                if outcome is not None:
                    return outcome
                left = LOOK_AGAIN if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"task {self.task_id}: nothing has come of it within {timeout} s")
                end.wait(min(left, LOOK_AGAIN))


H = TypeVar("H", bound=Handle)


class Handles(Sequence[H], Generic[H]):
    """The answers to an order about many tasks, one for each id, in the order of the ids.

    True if any of them was applied.
    """

    def __init__(self, handles: Iterable[H], *, awaits_unclaimed: bool = True) -> None:
        self._handles = tuple(handles)
        self._awaits_unclaimed = awaits_unclaimed

    @overload
    def __getitem__(self, place: int) -> H: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[H, ...]: ...

    def __getitem__(self, place: int | slice) -> H | tuple[H, ...]:
        return self._handles[place]

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[H]:
        return iter(self._handles)

    def __bool__(self) -> bool:
        return any(self._handles)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self.applied)} of {len(self)} applied>"

    @property
    def applied(self) -> list[H]:
        """Those that were applied."""
        return [handle for handle in self._handles if handle]

    @property
    def awaited(self) -> list[H]:
        """Those that `wait` waits for: the applied ones; of a workflow only those that a worker has seen.

        A task of a workflow that was never sent has no end: none of it will be sent any more.
        """
        return [one for one in self.applied if self._awaits_unclaimed or one.previous is not None]

    @property
    def refused(self) -> list[H]:
        """Those that were not; each says why."""
        return [handle for handle in self._handles if not handle]


class RequestHandles(Handles[RequestHandle]):
    """The answers to an order about many tasks. May be used from any thread."""

    def wait(self, timeout: float | None = None) -> dict[str, Outcome]:
        """Wait for all that are `awaited`, *timeout* seconds in all; the outcomes by task id.

        Raises TimeoutError, and what `RequestHandle.wait` raises.
        """
        deadline = None if timeout is None else time.monotonic() + checked_seconds("timeout", timeout)
        outcomes = {}
        for handle in self.awaited:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            outcomes[handle.task_id] = handle.wait(left)
        return outcomes


def outcome_of(answered: Answered, record: TaskRecord | None) -> Outcome | None:
    """Tell from the record what came of an order; None: nothing yet.

    Raises CancelTokenError where there is nothing to wait for.
    """
    unknown = record is None or (record.state is None and record.request_id is None)
    if unknown and not answered.applied:
        raise CancelTokenError(f"nothing to wait for: task {answered.task_id} is not known")
    if record is None:
        return Outcome(answered.task_id, None, None, None, None)
    if not answered.applied or answered.kind == "withdraw":
        return _end_of_task(record)
    mine = [change for change in record.history if change.request_id == answered.request_id]
    verdicts = [change for change in mine if change.answer not in ("pending", None)]
    if verdicts:
        # The first: what becomes of the task later, while its record still holds the order, is not its doing.
        return _outcome(record.task_id, verdicts[0])
    if record.request_id == answered.request_id or mine:
        # Asked, and not answered yet; or the answer is given, and not yet made final.
        return None
    # Neither in the record nor in its history: that was a life of the id ago, or twenty changes.
    return Outcome(answered.task_id, None, None, None, None)


def _outcome(task_id: str, change: Change) -> Outcome:
    return Outcome(
        task_id,
        change.state,
        change.cause,
        change.reason,
        change.actor,
        came_too_late=change.answer == "too-late",
        withdrawn=change.answer == "withdrawn",
        overruled=change.answer == "overruled",
        completed=change.completed,
    )


def _end_of_task(record: TaskRecord) -> Outcome | None:
    if record.state is None or not record.state.is_final:
        return None
    return Outcome(record.task_id, record.state, record.cause, record.reason, record.actor)
