"""The record: what the store knows of one task id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery_canceltoken.cause import Cause
from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.states import State

__all__ = ["FORMAT", "TaskRecord", "parse_record"]

FORMAT = 1
"""Version of the stored format; a newer one is left alone."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


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
    came_too_late: bool
    """The request was answered "applied", but the body had ended without looking."""
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
    """What a revoked body raised instead of TaskCancelled."""
    started_at: datetime | None
    requested_at: datetime | None
    delivered_at: datetime | None
    observed_at: datetime | None
    stopped_at: datetime | None


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
            came_too_late=fields.get("answer") == "too-late",
            worker=fields.get("worker"),
            owner=fields.get("owner"),
            execution_id=fields.get("execution"),
            attempt=int(fields.get("attempt", 0)),
            generation=int(fields.get("generation", 0)),
            value=fields.get("value"),
            error=fields.get("error"),
            started_at=_optional(_time, fields.get("started_at")),
            requested_at=_optional(_time, fields.get("requested_at")),
            delivered_at=_optional(_time, fields.get("delivered_at")),
            observed_at=_optional(_time, fields.get("observed_at")),
            stopped_at=_optional(_time, fields.get("stopped_at")),
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise RecordUnreadableError(key, f"damaged ({error!r}); delete the key to start afresh") from error


def _optional(convert: Any, value: str | None) -> Any:
    return None if value is None else convert(value)


def _flag(value: str) -> bool:
    return value == "1"


def _time(microseconds: str) -> datetime:
    # Integer arithmetic: a float of this size would lose the microseconds.
    return _EPOCH + timedelta(microseconds=int(microseconds))
