"""The states a record passes through."""

from __future__ import annotations

from enum import Enum

__all__ = ["FINAL_STATES", "State"]


class State(str, Enum):
    """Where a task is, as its record says. Hangfire's states, with FINISHING between the last two."""

    ENQUEUED = "ENQUEUED"
    """Wanted, and in a queue: sent (where that is tracked), retried or requeued, and not claimed yet."""
    SCHEDULED = "SCHEDULED"
    """The same, to be run at a time; it stays so until a worker claims it."""
    PROCESSING = "PROCESSING"
    """An execution owns it and its body runs."""
    FINISHING = "FINISHING"
    """The body has ended and the outcome is decided; Celery's result is being written."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REVOKED = "REVOKED"
    DELETED = "DELETED"
    IGNORED = "IGNORED"
    """The body raised Celery's Ignore: it keeps its result to itself."""
    REJECTED = "REJECTED"
    """The body raised Celery's Reject without requeue."""

    @property
    def is_final(self) -> bool:
        """True if nothing but a new life (the id sent again) follows."""
        return self in FINAL_STATES

    def __str__(self) -> str:
        return self.value


FINAL_STATES = frozenset(
    {State.SUCCEEDED, State.FAILED, State.REVOKED, State.DELETED, State.IGNORED, State.REJECTED}
)
