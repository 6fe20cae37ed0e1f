"""Why a token tripped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Cancellation", "Cause"]


class Cause(str, Enum):
    """The one reason a token tripped; the first one stays for ever.

    Hangfire knows two (aborted, shutting down) and tells them apart by which
    exception its check raises; here the cause is a value.
    """

    REVOKED = "REVOKED"
    """Somebody asked for this task to stop."""
    DELETED = "DELETED"
    """Somebody asked for this task to stop and be forgotten."""
    REQUEUED = "REQUEUED"
    """Somebody asked for this task to start again from its queue."""
    SHUTDOWN = "SHUTDOWN"
    """The worker that runs it is stopping."""
    SUPERSEDED = "SUPERSEDED"
    """Another execution owns the task id now."""
    LEASE_LOST = "LEASE_LOST"
    """The worker could not prove that it is alive for a whole lease."""
    TIMEOUT = "TIMEOUT"
    """The task's own deadline has passed."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Cancellation:
    """One cancellation, as it travels: why, and in whose words."""

    cause: Cause
    reason: str | None = None
    actor: str | None = None
