"""The record: what the store knows of one task id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery_canceltoken.cause import Cause
from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.states import State

__all__ = ["FORMAT", "READ_FIELDS", "Change", "TaskRecord", "parse_record"]

FORMAT = 1
"""Version of the stored format; a newer one is left alone."""

_HISTORY = 20

READ_FIELDS = (
    *("v", "state", "name", "takes_token", "cause", "reason", "actor", "request", "kind", "answer", "worker"),
    *("owner", "execution", "attempt", "generation", "value", "error", "queue", "root", "eta", "unkept"),
    *("checkpoint", "shutdowns"),
    *("started_at", "requested_at", "delivered_at", "observed_at", "stopped_at"),
    *(f"h{place}" for place in range(_HISTORY)),
)
"""What a reader asks for: all but the message, which may be large, and what is the scripts' own."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Change:
    """One line of a record's history: a new state, or a request and what became of it."""

    at: datetime
    state: State | None
    worker: str | None
    attempt: int
    cause: Cause | None
    reason: str | None
    actor: str | None
    request_id: str | None
    request_kind: str | None
    """"revoke", "delete" or "requeue"."""
    answer: str | None
    """"pending", "effective", "too-late", "withdrawn" or "overruled" (by a request that wants more)."""
    completed: bool
    """The run that was sent back to its queue had completed its work."""


@dataclass(frozen=True)
class TaskRecord:
    """What is known of one task id, at the moment of reading. All times are the store's, in UTC."""

    task_id: str
    state: State | None
    """None: nobody has run it yet; a request waits for it."""
    name: str | None
    takes_token: bool | None
    """False: the task has no token parameter, so its body cannot look (`current_token()` aside)."""
    cause: Cause | None
    reason: str | None
    actor: str | None
    request_id: str | None
    request_kind: str | None
    answer: str | None
    """What became of the request: see `Change.answer`."""
    worker: str | None
    """Node name of the worker that owns, or last owned, the task."""
    owner: str | None
    execution_id: str | None
    attempt: int
    """How many executions this id has had since it was last sent."""
    generation: int
    value: str | None
    """JSON of what a revoked body returned, where it returned something that fits."""
    error: str | None
    """What the body raised, where that was not TaskCancelled; or how it was lost."""
    queue: str | None
    """The routing key that its message came with, which on most brokers is its queue."""
    root_id: str | None
    """The workflow it belongs to, by the id of its first task."""
    eta: datetime | None
    """When it is to run, where that was asked for and has not happened yet."""
    message_not_kept: str | None
    """Why its message was not kept when it was claimed: `setting`, `too-large`, `not-json` or `unreadable`.

    None where it was, though that of a success may be gone by now, and where no worker has seen it yet.
    """
    checkpoint: str | None
    """What its body has saved for the next attempt, in JSON."""
    shutdown_requeues: int
    """How often in a row a shutdown has sent it back without a checkpoint in between."""
    started_at: datetime | None
    requested_at: datetime | None
    delivered_at: datetime | None
    observed_at: datetime | None
    stopped_at: datetime | None
    history: tuple[Change, ...] = ()
    """The last 20 changes, oldest first."""

    @property
    def came_too_late(self) -> bool:
        """The request was answered "applied", but the body had ended without looking."""
        return self.answer == "too-late"

    @property
    def seconds_to_stop(self) -> float | None:
        """Seconds between the request and the end of the body; None where there was no such request."""
        if self.requested_at is None or self.stopped_at is None or self.stopped_at < self.requested_at:
            return None
        return (self.stopped_at - self.requested_at).total_seconds()


def parse_record(key: str, task_id: str, fields: Mapping[str, str]) -> TaskRecord:
    """Turn the stored *fields* of *key* into a record.

    Raises RecordUnreadableError for a damaged record and for one in a newer format.
    """
    try:
        version = int(fields["v"])
        if version > FORMAT:
            raise RecordUnreadableError(key, f"written in format {version}; this release reads {FORMAT}")
        return TaskRecord(
            task_id=task_id,
            state=_optional(State, fields.get("state")),
            name=fields.get("name"),
            takes_token=_optional(_flag, fields.get("takes_token")),
            cause=_optional(Cause, fields.get("cause")),
            reason=fields.get("reason"),
            actor=fields.get("actor"),
            request_id=fields.get("request"),
            request_kind=fields.get("kind"),
            answer=fields.get("answer"),
            worker=fields.get("worker"),
            owner=fields.get("owner"),
            execution_id=fields.get("execution"),
            attempt=int(fields.get("attempt", 0)),
            generation=int(fields.get("generation", 0)),
            value=fields.get("value"),
            error=fields.get("error"),
            queue=fields.get("queue"),
            root_id=fields.get("root"),
            eta=_optional(_time, fields.get("eta")),
            message_not_kept=fields.get("unkept"),
            checkpoint=fields.get("checkpoint"),
            shutdown_requeues=int(fields.get("shutdowns", 0)),
            started_at=_optional(_time, fields.get("started_at")),
            requested_at=_optional(_time, fields.get("requested_at")),
            delivered_at=_optional(_time, fields.get("delivered_at")),
            observed_at=_optional(_time, fields.get("observed_at")),
            stopped_at=_optional(_time, fields.get("stopped_at")),
            history=_history(fields),
        )
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise RecordUnreadableError(key, f"damaged ({error!r}); delete the key to start afresh") from error


def _history(fields: Mapping[str, str]) -> tuple[Change, ...]:
    lines = (fields.get(f"h{place}") for place in range(_HISTORY))
    found = [json.loads(line) for line in lines if line is not None]
    return tuple(_change(line) for line in sorted(found, key=lambda line: int(line["n"])))


def _change(line: Mapping[str, Any]) -> Change:
    return Change(
        at=_time(line["at"]),
        state=_optional(State, line.get("state")),
        worker=line.get("worker"),
        attempt=int(line.get("attempt", 0)),
        cause=_optional(Cause, line.get("cause")),
        reason=line.get("reason"),
        actor=line.get("actor"),
        request_id=line.get("request"),
        request_kind=line.get("kind"),
        answer=line.get("answer"),
        completed=line.get("completed") == "1",
    )


def _optional(convert: Any, value: str | None) -> Any:
    return None if value is None else convert(value)


def _flag(value: str) -> bool:
    return value == "1"


def _time(microseconds: str) -> datetime:
    # Integer arithmetic: a float of this size would lose the microseconds.
    return _EPOCH + timedelta(microseconds=int(microseconds))
