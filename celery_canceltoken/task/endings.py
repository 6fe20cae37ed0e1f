"""The exceptions by which an execution tells Celery how it ended, where its own words do not say it."""

from __future__ import annotations

from celery.exceptions import Ignore

from celery_canceltoken.errors import CancelTokenError

__all__ = [
    "NotStarted",
    "RaisedAfterCancel",
    "Replaced",
    "Revoked",
    "SentBack",
    "StrayCancellationError",
    "Superseded",
]


class NotStarted(Ignore):
    """This copy of the message is not wanted: acknowledged, and nothing is written."""


class Superseded(Ignore):
    """Another execution owns the id: its result is not this one's to write."""


class Revoked(Ignore):
    """The result says REVOKED already; what is left is the event and the signal, sent by the parent."""


class SentBack(Ignore):
    """The id goes back to its queue as the next generation: this run has nothing to tell."""


class Replaced(Ignore):
    """What Celery's `replace()` raises, told from an Ignore of the body's own."""


class RaisedAfterCancel(BaseException):
    """Carries what a body raised after it had seen that it is to stop, past Celery's autoretry."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class StrayCancellationError(CancelTokenError):
    """The body raised TaskCancelled though nobody had asked it to stop: an ordinary failure."""
