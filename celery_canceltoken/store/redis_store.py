"""The store on Redis or Valkey: one script per state change, on the record's key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis
from redis.commands.core import Script

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.outcome import MessageFate, Verdict
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.settings import Settings
from celery_canceltoken.store.answers import (
    Claim,
    ClaimAnswer,
    ClaimVerdict,
    Enqueued,
    Finish,
    FinishAnswer,
    RequestAnswer,
    RequestOrder,
)
from celery_canceltoken.store.breaker import Breaker
from celery_canceltoken.store.calls import Call, Calls
from celery_canceltoken.store.connect import ConnectionPlan
from celery_canceltoken.store.end_subscription import EndSubscription
from celery_canceltoken.store.scripts import SCRIPTS, script_arguments, script_source

__all__ = ["RedisStore", "cancellation_of"]

T = TypeVar("T")

_PATIENCE = 20
"""Store timeouts that a call may wait for its turn."""
_BATCH = 500
"""Calls in one round trip."""


class RedisStore:
    """What app code and bodies ask of the records of one prefix.

    Safe to share between threads; not between a process and its forks.

    Every method raises StoreUnavailableError where the server does not answer within
    `canceltoken_store_timeout`; what it was asked may have been done all the same, and asking
    again gives the same answer. With a *breaker*, calls right after such a failure fail at once.
    """

    def __init__(
        self,
        plan: ConnectionPlan,
        settings: Settings,
        *,
        connections: int = 8,
        breaker: Breaker | None = None,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._breaker = breaker
        # A store with one connection is one thread's own; under gevent a native one's: no place for a lock.
        self._turns = threading.BoundedSemaphore(connections) if connections > 1 else None
        self.calls = Calls(settings)
        self.keys = self.calls.keys
        # redis-py annotates one answer for its sync and its async client: useless to a type checker.
        self._client: Any = plan.client(timeout=settings.store_timeout, connections=connections)
        self._scripts: dict[str, Script] = {
            name: self._client.register_script(script_source(name)) for name in SCRIPTS
        }

    def close(self) -> None:
        """Close all connections. The next call opens new ones."""
        self._client.close()

    # -- app code

    def ask(self, call: Call[T]) -> T:
        """Make one call. Raises what the call's own parser raises, too."""
        return call.parse(self._call(lambda: self._make(call)))

    def ask_many(self, calls: Sequence[Call[T]]) -> list[T]:
        """Make many calls in few round trips. They are independent of each other.

        Where the server goes away in between, none of the answers is known.
        """
        if len(calls) == 1:
            # A pipeline would ask first whether the server knows the script.
            return [self.ask(calls[0])]
        answers: list[T] = []
        for start in range(0, len(calls), _BATCH):
            batch = calls[start : start + _BATCH]
            results = self._call(lambda batch=batch: self._make_together(batch))  # type: ignore[misc]
            answers += [call.parse(result) for call, result in zip(batch, results, strict=True)]
        return answers

    def get(self, task_id: str) -> TaskRecord | None:
        """Read one record. Raises RecordUnreadableError."""
        return self.ask(self.calls.read(task_id))

    def request(self, order: RequestOrder) -> RequestAnswer:
        """Store what is asked of a task, and wake the agent that runs it. Raises RecordUnreadableError."""
        return self.ask(self.calls.request(order))

    def end_of(self, task_id: str) -> EndSubscription:
        """Listen for the end of a task. Subscribe first, then read the record: nothing is missed."""
        # A connection of its own: waits would use up the pool that those who answer them need.
        client = self._plan.client(timeout=self._settings.store_timeout, connections=1)
        channel = self.keys.stopped(task_id)
        return EndSubscription(client, channel, self._attempt, self._settings.store_timeout)

    # -- bodies

    def claim(
        self,
        claim: Claim,
        *,
        message: str = "",
        take_over_from: tuple[str, str] = ("", ""),
        running_attempt: int = 0,
    ) -> ClaimAnswer:
        """Take ownership of a task id for an execution, or learn why not.

        *message* is kept with the record. *take_over_from* is the execution and the owner that were
        seen to be dead. *running_attempt* writes the record of a body that runs already, and denies
        nothing.
        """
        arguments = {
            **self.calls.about(claim.task_id),
            "execution": claim.execution_id,
            "owner": claim.owner,
            "worker": claim.worker,
            "send": claim.send,
            "generation": claim.generation,
            "redelivered": claim.redelivered,
            "name": claim.name,
            "takes_token": claim.takes_token,
            "late_ack": claim.late_ack,
            "queue": claim.queue,
            "root": claim.root,
            "broker": claim.broker,
            "unkept": claim.unkept,
            "running": running_attempt,
        }
        if claim.stamps:
            arguments["stamps"] = claim.stamps
        if take_over_from[0]:
            arguments["dead_execution"], arguments["dead_owner"] = take_over_from
        keys = self.keys
        verdict, *rest = self._run(
            "claim",
            [
                keys.record(claim.task_id),
                keys.owned(claim.owner),
                keys.mark(claim.root or claim.task_id),
                keys.standing_orders,
            ],
            arguments,
            message,
        )
        if verdict == "run":
            attempt, generation, checkpoint = rest
            return ClaimAnswer(
                ClaimVerdict.RUN, attempt=int(attempt), generation=int(generation), checkpoint=checkpoint
            )
        if verdict == "denied":
            return ClaimAnswer(ClaimVerdict.DENIED, cancellation=cancellation_of(rest))
        if verdict == "owned":
            execution_id, owner, same_send = rest
            return ClaimAnswer(
                ClaimVerdict.OWNED, execution_id=execution_id, owner=owner, same_send=same_send == "1"
            )
        return ClaimAnswer(ClaimVerdict(verdict), why=rest[0])

    def finish(self, finish: Finish) -> FinishAnswer:
        """Decide the outcome of an execution, in one step with whatever is asked of it by now."""
        claim, cancellation = finish.claim, finish.cancellation
        arguments: dict[str, Any] = {
            **self.calls.about(claim.task_id),
            "execution": claim.execution_id,
            "rows": {kind: _row(verdict) for kind, verdict in finish.rows.items()},
            "value": finish.value,
            "error": finish.error,
            "generation": claim.generation,
            "unclaimed": finish.unclaimed,
            "max_shutdowns": self._settings.max_shutdown_requeues,
            "afresh": {
                "owner": claim.owner,
                "worker": claim.worker,
                "send": claim.send,
                "name": claim.name,
                "queue": claim.queue,
                "root": claim.root,
                "broker": claim.broker,
                "takes_token": str(int(claim.takes_token)),
                "late_ack": str(int(claim.late_ack)),
                "generation": str(finish.generation),
                "attempt": str(finish.attempt),
            },
        }
        if cancellation is not None:
            arguments["cause"] = cancellation.cause.value
            arguments["reason"], arguments["actor"] = cancellation.reason or "", cancellation.actor or ""
        if finish.observed_ago is not None:
            arguments["observed_ago"] = int(finish.observed_ago * 1_000_000)
        keys = [self.keys.record(claim.task_id), self.keys.owned(claim.owner)]
        verdict, *rest = self._run("finish", keys, arguments)
        if verdict != "recorded":
            return FinishAnswer(recorded=False, untracked=verdict == "untracked")
        row, _state, cause, reason, actor, generation, eta = rest
        picked = finish.rows[row]
        back = picked.message is MessageFate.REPUBLISH
        return FinishAnswer(
            recorded=True,
            verdict=picked,
            cancellation=cancellation_of((cause, reason, actor)),
            outbox=Enqueued(int(generation), int(eta) if eta else None) if back else None,
        )

    def checkpoint(self, task_id: str, execution_id: str, text: str) -> str:
        """Save a body's progress: 'saved', 'superseded' or 'untracked'."""
        return str(self._run("checkpoint", [self.keys.record(task_id)], {"execution": execution_id}, text))

    def is_alive(self, owner: str) -> bool:
        """Tell whether *owner* holds its lease."""
        return bool(self._call(lambda: self._client.exists(self.keys.lease(owner))))

    def outbox_of(self, task_id: str) -> tuple[Enqueued | None, str | None]:
        """What of a task waits to be published, and its message as stored."""
        return self.ask(self.calls.outbox(task_id))

    def published(self, task_id: str, generation: int) -> None:
        """The message that waited in the outbox is with the broker."""
        self.ask(self.calls.published(task_id, generation))

    # -- plumbing

    def _run(self, script: str, keys: Sequence[str], arguments: Mapping[str, Any], blob: str = "") -> Any:
        return self._call(lambda: self._scripts[script](keys=keys, args=script_arguments(arguments, blob)))

    def _make(self, call: Call[Any]) -> Any:
        if call.is_script:
            return self._scripts[call.name](keys=call.keys, args=script_arguments(call.arguments, call.blob))
        try:
            return self._client.execute_command(call.name, *call.keys, *call.arguments)
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return error

    def _make_together(self, calls: Sequence[Call[Any]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            if call.is_script:
                arguments = script_arguments(call.arguments, call.blob)
                self._scripts[call.name](keys=call.keys, args=arguments, client=pipeline)
            else:
                pipeline.execute_command(call.name, *call.keys, *call.arguments)
        results = list(pipeline.execute(raise_on_error=False))
        for result in results:
            if isinstance(result, Exception) and not str(result).startswith("WRONGTYPE"):
                raise result
        return results

    def _call(self, call: Callable[[], T]) -> T:
        if self._turns is None:
            return self._attempt(call)
        # To wait for one's turn is no outage, however many wait; but when one turns out to be, all who
        # wait are told at once.
        if not self._turns.acquire(timeout=self._settings.store_timeout * _PATIENCE):
            raise StoreUnavailableError("too many calls to the store are waiting for their turn")
        try:
            return self._attempt(call)
        finally:
            self._turns.release()

    def _attempt(self, call: Callable[[], T]) -> T:
        """Make one call to the server with this store's breaker and errors around it."""
        if self._breaker is not None and self._breaker.refuses():
            raise StoreUnavailableError("the store did not answer a moment ago; not tried again yet")
        try:
            answer = call()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            if self._breaker is not None:
                self._breaker.failed()
            raise StoreUnavailableError(f"the store at {self._where()} did not answer: {error}") from error
        except redis.ResponseError as error:
            # Read-only replica, out of memory, loading, no permission: it answers, but keeps nothing.
            raise StoreUnavailableError(f"the store at {self._where()} refused: {error}") from error
        if self._breaker is not None:
            self._breaker.succeeded()
        return answer

    def _where(self) -> str:
        options = self._client.connection_pool.connection_kwargs
        return str(options.get("path") or f"{options.get('host', '?')}:{options.get('port', '?')}")


def cancellation_of(fields: Sequence[str]) -> Cancellation | None:
    """Read the three words by which scripts say why."""
    cause, reason, actor = fields
    return Cancellation(Cause(cause), reason or None, actor or None) if cause else None


def _row(verdict: Verdict) -> dict[str, Any]:
    return {
        "state": verdict.state.value if verdict.state else "",
        "answer": verdict.answer.value,
        "next_generation": verdict.next_generation,
        "republish": verdict.message is MessageFate.REPUBLISH,
        "completed": verdict.completed,
    }
