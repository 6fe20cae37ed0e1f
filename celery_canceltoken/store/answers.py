"""What the store is asked and what it answers, as plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from celery_canceltoken.cause import Cancellation
from celery_canceltoken.outcome import Verdict
from celery_canceltoken.states import State

__all__ = [
    "Claim",
    "ClaimVerdict",
    "Delivery",
    "DeliveryVerdict",
    "Ended",
    "Enqueued",
    "Finish",
    "FinishAnswer",
    "InboxEntry",
    "Recovery",
    "RequestAnswer",
    "RequestOrder",
    "Settled",
    "WithdrawOrder",
]


@dataclass(frozen=True)
class Claim:
    """An execution's wish to start."""

    task_id: str
    execution_id: str
    owner: str
    worker: str
    send: str
    generation: int
    redelivered: bool
    name: str
    takes_token: bool
    late_ack: bool
    queue: str = ""
    root: str = ""
    stamps: Mapping[str, Any] = field(default_factory=dict)
    keep: str = "never"
    """What becomes of its message, of `message.KEEP_POLICIES`."""
    unkept: str = ""
    """Why its message is not kept."""
    broker: str = ""
    """Which broker it came by, in short: only an app of the same one can send it again."""
    shutdown_policy: str = "requeue"
    shutdown_grace: float = 0.0


class ClaimVerdict(str, Enum):
    """What an execution may do."""

    RUN = "run"
    DENIED = "denied"
    SKIP = "skip"
    OWNED = "owned"
    """Another execution has the id; whether its owner is alive is the caller's to find out."""
    UNTRACKED = "untracked"


@dataclass(frozen=True)
class ClaimAnswer:
    """What `claim` answered; each verdict fills the fields that go with it."""

    verdict: ClaimVerdict
    attempt: int = 0
    generation: int = 0
    cancellation: Cancellation | None = None
    why: str = ""
    execution_id: str = ""
    owner: str = ""
    same_send: bool = True
    checkpoint: str = ""
    """What the last attempt saved, in JSON."""


@dataclass(frozen=True)
class RequestOrder:
    """Something asked of a task by somebody."""

    task_id: str
    request_id: str
    kind: str
    cancellation: Cancellation
    from_states: Collection[State] = ()
    must_exist: bool = False
    wanted_eta: int | None = None
    """When it is to run again, in microseconds since the epoch."""


@dataclass(frozen=True)
class WithdrawOrder:
    """Somebody takes back what is asked of a task."""

    task_id: str
    withdrawal_id: str
    request_id: str | None = None
    """That request only; None: whatever is pending."""
    from_states: Collection[State] = ()


@dataclass(frozen=True)
class Enqueued:
    """A message that waits in the outbox: to be published as *generation*, to run at *eta* (microseconds)."""

    generation: int
    eta: int | None = None


@dataclass(frozen=True)
class RequestAnswer:
    """What `request` or `withdraw` answered; *why* is a word of the script's where it was refused."""

    applied: bool
    why: str
    previous: State | None
    unkept: str = ""
    """Why the task's message is not kept, where that is why."""
    outbox: Enqueued | None = None
    """What the asker is to publish."""
    withdrawn_kind: str = ""


class DeliveryVerdict(str, Enum):
    """What is wanted of an execution."""

    DELIVER = "deliver"
    NONE = "none"
    SUPERSEDED = "superseded"
    VANISHED = "vanished"
    UNTRACKED = "untracked"


@dataclass(frozen=True)
class Delivery:
    """What `deliver` answered."""

    verdict: DeliveryVerdict
    cancellation: Cancellation | None = None


@dataclass(frozen=True)
class Finish:
    """The end of one execution's body, with the table's row for each kind of request that may be pending."""

    claim: Claim
    generation: int
    attempt: int
    rows: Mapping[str, Verdict]
    cancellation: Cancellation | None = None
    observed_ago: float | None = None
    """Seconds since the body first observed; None: it did not."""
    value: str = ""
    error: str = ""
    unclaimed: bool = False
    """The store was away when the execution started, so the record may not know of it."""
    bodiless: bool = False
    """There is no body any more to write Celery's result, where the verdict wants one."""


@dataclass(frozen=True)
class FinishAnswer:
    """What `finish` answered."""

    recorded: bool
    """False: the record is another execution's, or cannot be read; nothing was written."""
    untracked: bool = False
    verdict: Verdict | None = None
    """The row that was picked."""
    cancellation: Cancellation | None = None
    outbox: Enqueued | None = None
    """What goes back to the queue, where the row says so."""


@dataclass(frozen=True)
class Ended:
    """An execution that has left the worker, for `settle`."""

    execution_id: str
    task_id: str
    instead: State | None = None
    """What Celery made of it where that differs from what was decided (a result it could not encode)."""
    keep: str = "until_success"
    """What becomes of its message, of `message.KEEP_POLICIES`."""


class Settled(int, Enum):
    """What `settle` made of one execution."""

    NOT_OURS = 0
    FINAL = 1
    SENT_AGAIN = 2
    """It was asked to run again while its result was being written: it waits in the outbox."""


@dataclass(frozen=True)
class InboxEntry:
    """A wake-up: look at this execution's record."""

    entry_id: str
    task_id: str
    execution_id: str


@dataclass(frozen=True)
class Recovery:
    """What a dead owner left half done, to be completed by whoever recovered it."""

    task_id: str
    execution_id: str
    state: State
    value: str
    cancellation: Cancellation | None
    message: str | None = None
    """The message, as stored, where it is kept."""
