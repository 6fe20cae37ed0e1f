"""Orders as generators of what is to be done outside of them, so that each is written once.

A step asks the store, or Celery, and is given the answer; what performs it is a thread (`perform`) or an
event loop (`celery_canceltoken.aio`). What goes wrong is raised where the step was taken.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from celery_canceltoken.message import KeptMessage
from celery_canceltoken.store.answers import Enqueued
from celery_canceltoken.store.calls import Call
from celery_canceltoken.store.redis_store import RedisStore

__all__ = [
    "Ask",
    "Broadcast",
    "CeleryActions",
    "EndResult",
    "ForgetResult",
    "Publish",
    "Step",
    "Steps",
    "act",
    "perform",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """Make calls to the store, in few round trips; the answers come in their order."""

    calls: Sequence[Call[Any]]


@dataclass(frozen=True)
class Publish:
    """Put a message back into its queue; True if the broker has it."""

    task_id: str
    message: KeptMessage
    waiting: Enqueued


@dataclass(frozen=True)
class EndResult:
    """Make Celery's result of a task REVOKED."""

    task_id: str
    name: str | None
    reason: str


@dataclass(frozen=True)
class ForgetResult:
    """Make Celery's result of a task unknown."""

    task_id: str
    name: str | None


@dataclass(frozen=True)
class Broadcast:
    """Revoke by Celery's own remote control."""

    task_ids: Sequence[str]


Step = Ask | Publish | EndResult | ForgetResult | Broadcast
Steps = Generator[Step, Any, T]


class CeleryActions(Protocol):
    """What steps have done by Celery. Any exception of Celery's may be raised."""

    def publish(self, message: KeptMessage, waiting: Enqueued) -> None:
        """Put *message* back into its queue, as the generation that waits."""

    def end_result(self, task_id: str, name: str | None, reason: str) -> None:
        """Make the result REVOKED."""

    def forget_result(self, task_id: str, name: str | None) -> None:
        """Make the result unknown."""

    def broadcast(self, task_ids: Sequence[str]) -> None:
        """Revoke by Celery's own remote control."""


def perform(steps: Steps[T], store: RedisStore, celery: CeleryActions) -> T:
    """Take all steps in this thread, and return what they come to."""
    answer: Any = None
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Ask):
                    answer = store.ask_many(step.calls)
                else:
                    answer = act(step, celery)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def act(step: Step, celery: CeleryActions) -> Any:
    """Take a step that is Celery's, which has no answer."""
    if isinstance(step, Publish):
        celery.publish(step.message, step.waiting)
    elif isinstance(step, EndResult):
        celery.end_result(step.task_id, step.name, step.reason)
    elif isinstance(step, ForgetResult):
        celery.forget_result(step.task_id, step.name)
    elif isinstance(step, Broadcast):
        celery.broadcast(step.task_ids)
