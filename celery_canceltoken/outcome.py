"""What becomes of a task when its body has ended: one pure function decides all of it together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from celery_canceltoken.cause import Cause
from celery_canceltoken.states import State

__all__ = [
    "SHUTDOWN_POLICIES",
    "Answer",
    "Ending",
    "MessageFate",
    "ResultFate",
    "Verdict",
    "decide",
    "rows",
]


SHUTDOWN_POLICIES = ("requeue", "fail", "ignore")
"""What becomes of a task that its worker's shutdown has stopped. With "ignore" its token does not trip."""


class Ending(str, Enum):
    """How the body ended."""

    RETURNED = "returned"
    CANCELLED = "cancelled"
    """It raised TaskCancelled (or an exception group of nothing else)."""
    RAISED = "raised"
    """Any other exception, a soft time limit's included."""
    RETRIED = "retried"
    """Celery's Retry: the next generation has been published already."""
    REPLACED = "replaced"
    """`replace()`: likewise, and the rest of the work goes on under the same id."""
    IGNORED = "ignored"
    REJECTED = "rejected"
    REJECTED_BACK = "rejected-back"
    """Celery's Reject with requeue: the broker delivers the same message again."""
    TIME_LIMIT = "time-limit"
    """The hard one: the child was killed and Celery has failed the task."""
    TERMINATED = "terminated"
    """Celery's `terminate=True`: the child was killed and Celery has revoked the task."""
    CHILD_LOST = "child-lost"
    CHILD_LOST_BACK = "child-lost-back"
    """Likewise, and Celery gives the message back (`reject_on_worker_lost`) or retries it."""
    EVICTED = "evicted"
    """Its worker stops, and it did not heed that in time: it ends with its process, or has been killed."""


class ResultFate(str, Enum):
    """What Celery's result, event, signal, errbacks, chain and chord are told."""

    CELERY = "celery"
    """What Celery tells them by itself for this ending."""
    REVOKED = "revoked"
    FAILED = "failed"
    """An ordinary failure with the exception that was raised."""
    TIMED_OUT = "timed-out"
    """An ordinary failure with TimeoutError."""
    SHUT_DOWN = "shut-down"
    """An ordinary failure with ShutdownError."""
    NOTHING = "nothing"
    """Not a word: the result is somebody else's."""


class MessageFate(str, Enum):
    """What becomes of the broker's message."""

    CELERY = "celery"
    ACK = "ack"
    REPUBLISH = "republish"
    """The same id goes back to its queue as the next generation, then the old message is acknowledged."""


class Answer(str, Enum):
    """What the request that caused it is told."""

    EFFECTIVE = "effective"
    TOO_LATE = "too-late"
    CARRIED = "carried"
    """Neither yet: the next execution of the id will see it."""
    WITHDRAWN = "withdrawn"
    """Taken back in time."""
    OVERRULED = "overruled"
    """Another request that wants more took its place."""


@dataclass(frozen=True)
class Verdict:
    """All consequences of one ending, so that record, result, message and request agree."""

    state: State | None
    """The record's next state; None: the record is not this execution's to write."""
    result: ResultFate = ResultFate.CELERY
    message: MessageFate = MessageFate.CELERY
    answer: Answer = Answer.TOO_LATE
    next_generation: bool = False
    completed: bool = False
    """The work of a run that goes back to its queue was done: the request's handle says so."""

    @property
    def is_cancellation(self) -> bool:
        """True if the run ended as it was told to, rather than in a way of its own."""
        return self.result is ResultFate.REVOKED or self.message is MessageFate.REPUBLISH


_AS_CELERY: dict[Ending, Verdict] = {
    Ending.RETURNED: Verdict(State.SUCCEEDED),
    Ending.CANCELLED: Verdict(State.FAILED, ResultFate.FAILED),
    Ending.RAISED: Verdict(State.FAILED),
    Ending.RETRIED: Verdict(State.ENQUEUED, next_generation=True, answer=Answer.CARRIED),
    Ending.REPLACED: Verdict(State.ENQUEUED, next_generation=True, answer=Answer.CARRIED),
    Ending.IGNORED: Verdict(State.IGNORED),
    Ending.REJECTED: Verdict(State.REJECTED),
    Ending.REJECTED_BACK: Verdict(State.ENQUEUED, answer=Answer.CARRIED),
    Ending.TIME_LIMIT: Verdict(State.FAILED),
    Ending.TERMINATED: Verdict(State.REVOKED),
    Ending.CHILD_LOST: Verdict(State.FAILED),
    Ending.CHILD_LOST_BACK: Verdict(State.ENQUEUED, answer=Answer.CARRIED),
    Ending.EVICTED: Verdict(State.FAILED, ResultFate.SHUT_DOWN),
}

# Nothing runs in a child that is gone, and Celery has told the world already.
_OUT_OF_OUR_HANDS = frozenset(
    {Ending.TIME_LIMIT, Ending.TERMINATED, Ending.CHILD_LOST, Ending.CHILD_LOST_BACK}
)

_REVOKED = Verdict(State.REVOKED, ResultFate.REVOKED, MessageFate.ACK, Answer.EFFECTIVE)
_DELETED = Verdict(State.DELETED, ResultFate.REVOKED, MessageFate.ACK, Answer.EFFECTIVE)
_BACK_TO_ITS_QUEUE = Verdict(
    State.ENQUEUED, ResultFate.NOTHING, MessageFate.REPUBLISH, Answer.EFFECTIVE, next_generation=True
)
_BACK_THOUGH_COMPLETED = replace(_BACK_TO_ITS_QUEUE, completed=True)
_ALREADY_SENT_AGAIN = Verdict(State.ENQUEUED, answer=Answer.EFFECTIVE, next_generation=True)
_SOMEBODY_ELSES = Verdict(None, ResultFate.NOTHING, MessageFate.ACK)
_SHUT_DOWN = Verdict(State.FAILED, ResultFate.SHUT_DOWN, answer=Answer.TOO_LATE)
_TIMED_OUT = Verdict(State.FAILED, ResultFate.TIMED_OUT)


def decide(
    ending: Ending,
    cause: Cause | None,
    observed: bool,
    disregarded: bool = False,
    policy: str = SHUTDOWN_POLICIES[0],
) -> Verdict:
    """Return what follows from *ending*, given why the task was to stop and whether its body saw it.

    *policy*, one of SHUTDOWN_POLICIES, says what becomes of what a shutdown has stopped.

    Pure and total: every combination has a row. Hangfire derives the same from which exception
    flew and which state it finds; that leaves the swallowed cancellation to timing.
    """
    as_celery = _AS_CELERY[ending]
    if cause is None:
        return as_celery
    if cause in (Cause.SUPERSEDED, Cause.LEASE_LOST):
        return _SOMEBODY_ELSES
    if ending in _OUT_OF_OUR_HANDS:
        return _out_of_our_hands(ending, cause, as_celery)
    if ending is Ending.REPLACED:
        # The work goes on in tasks that are published already: theirs to be stopped.
        return as_celery
    heeded = observed and not disregarded
    if cause is Cause.REVOKED:
        return _revoked(ending, heeded, as_celery)
    if cause is Cause.DELETED:
        return _DELETED
    if cause is Cause.REQUEUED:
        if ending is Ending.RETRIED:
            return _ALREADY_SENT_AGAIN
        return _BACK_THOUGH_COMPLETED if ending is Ending.RETURNED and not heeded else _BACK_TO_ITS_QUEUE
    if cause is Cause.SHUTDOWN:
        stopped = ending in (Ending.CANCELLED, Ending.EVICTED) or (ending is Ending.RETURNED and heeded)
        if not stopped:
            return as_celery
        return _BACK_TO_ITS_QUEUE if policy == "requeue" else _SHUT_DOWN
    return _TIMED_OUT if ending is Ending.CANCELLED else as_celery


def rows(
    ending: Ending,
    cause: Cause | None,
    observed: bool,
    disregarded: bool,
    policy: str = SHUTDOWN_POLICIES[0],
) -> dict[str, Verdict]:
    """Return the verdict for each kind of request that may be pending in the record by now, and for "none".

    A pending request outranks what the token was tripped by: it is what somebody still wants. The row
    "capped" is that of a task which shutdowns have sent back too often.
    """
    verdicts = {
        kind: decide(ending, pending or cause, observed, disregarded, policy)
        for kind, pending in {
            "none": None,
            "revoke": Cause.REVOKED,
            "delete": Cause.DELETED,
            "requeue": Cause.REQUEUED,
        }.items()
    }
    return {**verdicts, "capped": _SHUT_DOWN}


def _out_of_our_hands(ending: Ending, cause: Cause, as_celery: Verdict) -> Verdict:
    if ending is Ending.CHILD_LOST_BACK:
        # The message comes again, and the claim says no then.
        return as_celery
    if cause is Cause.DELETED:
        return _DELETED
    return _REVOKED if cause is Cause.REVOKED and ending is Ending.TERMINATED else as_celery


def _revoked(ending: Ending, heeded: bool, as_celery: Verdict) -> Verdict:
    # A retry or a return to the broker means another run, which is what nobody wants any more:
    # the copy that is out already meets a final record and is dropped.
    would_run_again = ending in (Ending.RETRIED, Ending.REJECTED_BACK, Ending.EVICTED)
    if ending is Ending.CANCELLED or would_run_again or heeded:
        return _REVOKED
    return as_celery
