"""The store on Redis or Valkey: one script per state change, on the record's key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import redis
from redis.commands.core import Script

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.outcome import MessageFate, Verdict
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import (
    Claim,
    ClaimAnswer,
    ClaimVerdict,
    Delivery,
    DeliveryVerdict,
    Ended,
    Enqueued,
    Finish,
    FinishAnswer,
    Recovery,
    RequestAnswer,
    RequestOrder,
    Settled,
)
from celery_canceltoken.store.breaker import Breaker
from celery_canceltoken.store.calls import Call, Calls, milliseconds
from celery_canceltoken.store.connect import ConnectionPlan
from celery_canceltoken.store.end_subscription import EndSubscription
from celery_canceltoken.store.inbox_stream import InboxStream
from celery_canceltoken.store.scripts import SCRIPTS, script_arguments, script_source

__all__ = ["RedisStore"]

T = TypeVar("T")

_PATIENCE = 20
"""Store timeouts that a call may wait for its turn."""
_BATCH = 500
"""Calls in one round trip."""
_OUTBOX_PATIENCE = 3
"""Seconds a message may wait in the outbox before agents take it for forgotten."""


class RedisStore:
    """The records of one prefix. Safe to share between threads; not between a process and its forks.

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
        self._record_ttl = milliseconds(settings.record_expires)

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
        return EndSubscription(client, self.keys.stopped(task_id), self._attempt)

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
            return ClaimAnswer(ClaimVerdict.DENIED, cancellation=_cancellation(rest))
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
            cancellation=_cancellation((cause, reason, actor)),
            outbox=Enqueued(int(generation), int(eta) if eta else None) if back else None,
        )

    def checkpoint(self, task_id: str, execution_id: str, text: str) -> str:
        """Save a body's progress: 'saved', 'superseded' or 'untracked'."""
        return str(self._run("checkpoint", [self.keys.record(task_id)], {"execution": execution_id}, text))

    def is_alive(self, owner: str) -> bool:
        """Tell whether *owner* holds its lease."""
        return bool(self._call(lambda: self._client.exists(self.keys.lease(owner))))

    # -- agents

    def inbox_of(self, owner: str) -> InboxStream:
        """The reading end of an agent's inbox, on a connection of its own."""
        return InboxStream(self._plan, self._settings, self.keys.inbox(owner), self._attempt)

    def announce(self, owner: str) -> None:
        """Begin a new incarnation: its lease, and its place in the list of owners.

        The scripts go along, so that the first request does not have to bring them.
        """

        def write() -> None:
            pipeline = self._client.pipeline(transaction=False)
            for name in SCRIPTS:
                pipeline.script_load(script_source(name))
            pipeline.set(self.keys.lease(owner), "1", px=self._lease_ttl)
            pipeline.zadd(self.keys.owners, {owner: 0})
            for key in self._agent_keys(owner):
                pipeline.pexpire(key, self._record_ttl)
            pipeline.execute()

        self._call(write)

    def beat(self, owner: str) -> bool:
        """Renew the lease. False: it had lapsed, and others may have taken over."""
        lease = self.keys.lease(owner)
        return bool(self._call(lambda: self._client.set(lease, "1", px=self._lease_ttl, xx=True)))

    def keep(self, owner: str, task_ids: Sequence[str]) -> None:
        """Push the expiry of an agent's own keys, and of the records it works on, away again.

        And of the list in which they are found: where nothing else happens for long, nobody writes to it.
        """
        records = [self.keys.record(task_id) for task_id in task_ids]
        if records:
            records.append(self.keys.listed("state", "PROCESSING"))
        self._run("keep", [*self._agent_keys(owner), *records], {"ttl": self._record_ttl})

    def retire(self, owner: str) -> None:
        """The agent leaves in order; what it could not finish is visible as a dead owner's at once."""
        self._call(lambda: self._client.delete(self.keys.lease(owner)))

    def wake(self, owner: str) -> None:
        """End the wait of whoever reads the inbox of *owner*."""
        self._call(lambda: self._client.xadd(self.keys.inbox(owner), {"wake": "1"}, nomkstream=True))

    def deliver(self, task_id: str, execution_id: str) -> Delivery:
        """Ask what is wanted of an execution; marks the request delivered."""
        verdict, *rest = self._run("deliver", [self.keys.record(task_id)], {"execution": execution_id})
        if verdict == "deliver":
            return Delivery(DeliveryVerdict.DELIVER, _cancellation(rest))
        return Delivery(DeliveryVerdict(verdict))

    def deliver_many(self, executions: Sequence[tuple[str, str]]) -> list[Delivery]:
        """Do the same for many (task id, execution id) in one round trip; a damaged record harms no other.

        Only records that hold a request, or another execution, cost more than a read.
        """

        def peek() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            for task_id, _ in executions:
                pipeline.hmget(self.keys.record(task_id), "execution", "answer")
            return list(pipeline.execute(raise_on_error=False))

        deliveries = []
        for (task_id, execution_id), answer in zip(executions, self._call(peek), strict=True):
            quiet = not isinstance(answer, Exception) and answer[0] == execution_id and answer[1] != "pending"
            deliveries.append(
                Delivery(DeliveryVerdict.NONE) if quiet else self.deliver(task_id, execution_id)
            )
        return deliveries

    def observe(self, task_id: str, execution_id: str, ago: float = 0.0) -> None:
        """Record that the body has seen its token tripped, *ago* seconds before now."""
        arguments = {"execution": execution_id, "ago": int(ago * 1_000_000)}
        self._run("observe", [self.keys.record(task_id)], arguments)

    def settle(self, owner: str, ended: Sequence[Ended]) -> list[Settled]:
        """Make outcomes final, in one command."""
        keys = [self.keys.record(one.task_id) for one in ended]
        arguments = {**self.calls.about(""), "owner": owner, "ended": [_ended(one) for one in ended]}
        return [Settled(answer) for answer in self._run("settle", [*keys, self.keys.owned(owner)], arguments)]

    def adopt(self, task_id: str, execution_id: str, old_owner: str, new_owner: str) -> bool:
        """Move an execution to the agent's new incarnation. False: another execution has the id."""
        arguments = {"execution": execution_id, "old_owner": old_owner, "new_owner": new_owner}
        answer = self._run("adopt", [self.keys.record(task_id)], arguments)
        return bool(answer != "superseded")

    def owners(self) -> list[str]:
        """All owners that were ever announced and not yet found empty after their death."""
        return list(self._call(lambda: self._client.zrange(self.keys.owners, 0, -1)))

    def dead(self, owners: Iterable[str]) -> list[str]:
        """Those of *owners* that hold no lease."""
        asked = list(owners)
        if not asked:
            return []
        leases = self._call(lambda: self._client.mget([self.keys.lease(owner) for owner in asked]))
        return [owner for owner, lease in zip(asked, leases, strict=True) if lease is None]

    def owned_by(self, owner: str, limit: int) -> list[str]:
        """Some task ids that the agent of *owner* may have left."""
        return list(self._call(lambda: self._client.srandmember(self.keys.owned(owner), limit)))

    def not_owned(self, owner: str, task_id: str) -> None:
        """Take an id off an agent's index."""
        self._call(lambda: self._client.srem(self.keys.owned(owner), task_id))

    def forget_owner(self, owner: str) -> None:
        """A dead owner has nothing left."""
        self._call(lambda: self._client.zrem(self.keys.owners, owner))

    def recover(self, record: TaskRecord, *, owner: str, worker: str, recovery_id: str) -> Recovery | None:
        """Take over what the dead owner of *record* left. None: somebody else sees to it."""
        arguments = {
            **self.calls.about(record.task_id),
            "execution": record.execution_id or "",
            "dead_owner": record.owner or "",
            "owner": owner,
            "worker": worker,
            "recovery": recovery_id,
        }
        keys = [self.keys.record(record.task_id), self.keys.owned(owner)]
        verdict, *rest = self._run("recover", keys, arguments)
        if verdict != "complete":
            return None
        state, value, *why = rest
        message = self.ask(self.calls.message(record.task_id))
        return Recovery(record.task_id, recovery_id, State(state), value, _cancellation(why), message)

    def in_outbox(self, limit: int) -> list[str]:
        """Task ids whose message has waited to be published for some seconds, and try each once in a while.

        Whoever is told of one has it to itself for as long again.
        """
        if not self._call(lambda: self._client.zcard(self.keys.outbox)):
            return []
        patience = {"patience": _OUTBOX_PATIENCE * 1_000_000, "limit": limit}
        return list(self._run("outbox", [self.keys.outbox], patience))

    def outbox_of(self, task_id: str) -> tuple[Enqueued | None, str | None]:
        """What of a task waits to be published, and its message as stored."""
        return self.ask(self.calls.outbox(task_id))

    def published(self, task_id: str, generation: int) -> None:
        """The message that waited in the outbox is with the broker."""
        self.ask(self.calls.published(task_id, generation))

    # -- plumbing

    @property
    def _lease_ttl(self) -> int:
        return milliseconds(self._settings.lease_duration)

    def _agent_keys(self, owner: str) -> list[str]:
        return [self.keys.inbox(owner), self.keys.owned(owner), self.keys.owners]

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


def _cancellation(fields: Sequence[str]) -> Cancellation | None:
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


def _ended(one: Ended) -> dict[str, Any]:
    fields: dict[str, Any] = {"execution": one.execution_id, "task": one.task_id, "keep": one.keep}
    return {**fields, "instead": one.instead.value} if one.instead else fields
