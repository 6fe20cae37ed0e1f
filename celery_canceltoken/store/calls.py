"""What app code asks of the store: each call as a value, so that threads and event loops share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from celery_canceltoken.cause import Cancellation
from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.record import FORMAT, READ_FIELDS, TaskRecord, parse_record
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Enqueued, RequestAnswer, RequestOrder, WithdrawOrder
from celery_canceltoken.store.inbox_stream import INBOX_LENGTH
from celery_canceltoken.store.keys import Keys

__all__ = ["PROBLEMS", "Call", "Calls", "milliseconds"]

T = TypeVar("T")

PROBLEMS = {
    "damaged": "damaged; delete the key to start afresh",
    "newer": f"written by a newer release; this one reads format {FORMAT}",
}
_STANDING_ORDERS = 100


@dataclass(frozen=True)
class Call(Generic[T]):
    """One command or script, and how its answer is read. *parse* may raise RecordUnreadableError."""

    name: str
    """A script of ours, or a command in capitals."""
    keys: Sequence[str]
    arguments: Mapping[str, Any] | Sequence[Any]
    """Named ones for a script, plain ones for a command."""
    parse: Callable[[Any], T]
    blob: str = ""
    """A script's second argument, for what is too large for JSON within JSON."""

    @property
    def is_script(self) -> bool:
        """False: a command of the server."""
        return not self.name.isupper()


def milliseconds(seconds: float) -> int:
    """Redis's unit for expiries."""
    return int(seconds * 1000)


class Calls:
    """Makes the calls of app code for the records of one prefix. Does no I/O."""

    def __init__(self, settings: Settings) -> None:
        self.keys = Keys(settings.prefix)
        self._lifetimes = {
            "prefix": settings.prefix,
            "ttl": milliseconds(settings.record_expires),
            "waits": milliseconds(settings.request_expires),
        }

    def about(self, task_id: str) -> dict[str, Any]:
        """The arguments that every script takes which changes a record."""
        return {"task": task_id, **self._lifetimes}

    def request(self, order: RequestOrder) -> Call[RequestAnswer]:
        """Store what is asked of a task, and wake the agent that runs it."""
        key = self.keys.record(order.task_id)
        cancellation = order.cancellation

        def parse(answer: Any) -> RequestAnswer:
            word, why, *rest = answer
            if word == "unreadable":
                raise RecordUnreadableError(key, PROBLEMS[why])
            previous = State(rest[0]) if rest[0] else None
            if word == "refused":
                return RequestAnswer(False, why, previous, unkept=rest[1])
            publish, generation, eta = rest[1:]
            waiting = Enqueued(int(generation), int(eta) if eta else None) if publish else None
            return RequestAnswer(True, "", previous, outbox=waiting)

        arguments = {
            **self.about(order.task_id),
            "request": order.request_id,
            "kind": order.kind,
            "cause": cancellation.cause.value,
            "must_exist": order.must_exist,
            "inbox_length": INBOX_LENGTH,
            **_given(reason=cancellation.reason, actor=cancellation.actor),
            **_given(wanted_eta=None if order.wanted_eta is None else str(order.wanted_eta)),
            **_states(order.from_states),
        }
        return Call("request", [key], arguments, parse)

    def withdraw(self, order: WithdrawOrder) -> Call[RequestAnswer]:
        """Take back what is asked of a task; and learn the kind of what it was."""
        key = self.keys.record(order.task_id)

        def parse(answer: Any) -> RequestAnswer:
            word, why, *rest = answer
            if word == "unreadable":
                raise RecordUnreadableError(key, PROBLEMS[why])
            previous, kind = rest
            return RequestAnswer(
                word == "applied", why, State(previous) if previous else None, withdrawn_kind=kind
            )

        arguments = {
            **self.about(order.task_id),
            "withdrawal": order.withdrawal_id,
            **_given(request=order.request_id),
            **_states(order.from_states),
        }
        return Call("withdraw", [key], arguments, parse)

    def read(self, task_id: str) -> Call[TaskRecord | None]:
        """Read one record, without its message."""
        key = self.keys.record(task_id)

        def parse(answer: Any) -> TaskRecord | None:
            if isinstance(answer, Exception):
                raise RecordUnreadableError(key, PROBLEMS["damaged"]) from answer
            fields = {
                name: value for name, value in zip(READ_FIELDS, answer, strict=True) if value is not None
            }
            return parse_record(key, task_id, fields) if fields else None

        return Call("HMGET", [key], READ_FIELDS, parse)

    def read_or_none(self, task_id: str) -> Call[TaskRecord | None]:
        """The same; a record that cannot be read counts as none."""
        call = self.read(task_id)

        def parse(answer: Any) -> TaskRecord | None:
            try:
                return call.parse(answer)
            except RecordUnreadableError:
                return None

        return Call(call.name, call.keys, call.arguments, parse)

    def message(self, task_id: str) -> Call[str | None]:
        """Read the message that is kept of a task, as stored."""
        return Call("HGET", [self.keys.record(task_id)], ["message"], _text_or_none)

    def outbox(self, task_id: str) -> Call[tuple[Enqueued | None, str | None]]:
        """Read what of a task waits to be published, and its message as stored."""

        def parse(answer: Any) -> tuple[Enqueued | None, str | None]:
            generation, eta, message = answer
            waiting = Enqueued(int(generation), int(eta) if eta else None) if generation else None
            return waiting, message

        return Call("HMGET", [self.keys.record(task_id)], ["outbox", "eta", "message"], parse)

    def published(self, task_id: str, generation: int) -> Call[bool]:
        """The message that waited in the outbox is with the broker."""
        arguments = {**self.about(task_id), "generation": generation}
        return Call("published", [self.keys.record(task_id)], arguments, bool)

    def enqueue(self, task_id: str, fields: Mapping[str, Any], message: str) -> Call[bool]:
        """A message was published: write down that its task waits."""
        arguments = {**self.about(task_id), **_given(**fields)}
        return Call("enqueue", [self.keys.record(task_id)], arguments, bool, blob=message)

    def mark(self, root_id: str, request_id: str, kind: str, cancellation: Cancellation) -> Call[str]:
        """Ask something of all that will be claimed of a workflow; answers the request that holds."""
        arguments = {**self._lifetimes, "order": _order(request_id, kind, cancellation)}
        return Call("mark", [self.keys.mark(root_id)], arguments, str)

    def stand(
        self,
        request_id: str,
        kind: str,
        cancellation: Cancellation,
        *,
        seconds: float,
        name: str | None,
        queue: str | None,
        stamps: Mapping[str, Any] | None,
    ) -> Call[bool]:
        """Ask something of all tasks of a kind claimed within *seconds*; False: too many such orders."""
        order = {**_order(request_id, kind, cancellation), **_given(name=name, queue=queue, stamps=stamps)}
        arguments = {"order": order, "seconds": seconds, "limit": _STANDING_ORDERS}
        return Call("stand", [self.keys.standing_orders], arguments, bool)

    def members(self, root_id: str) -> Call[list[str]]:
        """The ids that were seen of a workflow, but for its root."""
        return Call("ZRANGE", [self.keys.members(root_id)], [0, -1], list)

    def listed(self, key: str, highest: str, skip: int, count: int) -> Call[list[tuple[str, str]]]:
        """A part of a list, newest first, as (task id, score)."""
        arguments = [highest, "-inf", "WITHSCORES", "LIMIT", skip, count]
        return Call("ZREVRANGEBYSCORE", [key], arguments, _pairs)

    def unlist(self, key: str, entries: Sequence[tuple[str, str]]) -> Call[int]:
        """Take entries off a list that were found wrong."""
        return Call("unlist", [key], {"entries": [list(entry) for entry in entries]}, int)


def _given(**arguments: Any) -> dict[str, Any]:
    """Without those that are not given: null is something else to a script."""
    return {name: value for name, value in arguments.items() if value is not None}


def _states(states: Iterable[State]) -> dict[str, Any]:
    names = [state.value for state in states]
    return {"states": names} if names else {}


def _order(request_id: str, kind: str, cancellation: Cancellation) -> dict[str, Any]:
    words = _given(reason=cancellation.reason, actor=cancellation.actor)
    return {"request": request_id, "kind": kind, "cause": cancellation.cause.value, **words}


def _text_or_none(answer: Any) -> str | None:
    return None if answer is None or isinstance(answer, Exception) else str(answer)


def _pairs(answer: Any) -> list[tuple[str, str]]:
    if answer and isinstance(answer[0], (list, tuple)):
        return [(task_id, _score(score)) for task_id, score in answer]
    flat = list(answer)
    return [(task_id, _score(score)) for task_id, score in zip(flat[::2], flat[1::2], strict=True)]


def _score(score: Any) -> str:
    return f"{float(score):.0f}" if not isinstance(score, str) else score
