"""What a worker's agent asks of the store besides: leases, deliveries, settlements, recoveries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Delivery, DeliveryVerdict, Ended, Recovery, Settled
from celery_canceltoken.store.calls import milliseconds
from celery_canceltoken.store.inbox_stream import InboxStream
from celery_canceltoken.store.redis_store import RedisStore, cancellation_of
from celery_canceltoken.store.scripts import SCRIPTS, script_source

__all__ = ["AgentStore"]

_OUTBOX_PATIENCE = 3
"""Seconds a message may wait in the outbox before agents take it for forgotten."""


class AgentStore(RedisStore):
    """The store of one of an agent's services. Errors and sharing as for `RedisStore`."""

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
                pipeline.pexpire(key, self._record_lifetime)
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
        self._run("keep", [*self._agent_keys(owner), *records], {"ttl": self._record_lifetime})

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
            return Delivery(DeliveryVerdict.DELIVER, cancellation_of(rest))
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

    def recover(
        self, record: TaskRecord, *, owner: str, worker: str, recovery_id: str, broker: str | None = None
    ) -> Recovery | None:
        """Take over what the dead owner of *record* left. None: somebody else sees to it."""
        arguments = {
            **self.calls.about(record.task_id),
            "execution": record.execution_id or "",
            "dead_owner": record.owner or "",
            "owner": owner,
            "worker": worker,
            "recovery": recovery_id,
        }
        if broker is not None:
            arguments["broker"] = broker
        keys = [self.keys.record(record.task_id), self.keys.owned(owner)]
        verdict, *rest = self._run("recover", keys, arguments)
        if verdict != "complete":
            return None
        state, value, *why = rest
        message = self.ask(self.calls.message(record.task_id))
        return Recovery(record.task_id, recovery_id, State(state), value, cancellation_of(why), message)

    def in_outbox(self, limit: int, broker: str = "") -> list[str]:
        """Task ids whose message, of *broker*, has waited to be published for some seconds.

        Whoever is told of one has it to itself for as long again.
        """
        if not self._call(lambda: self._client.zcard(self.keys.outbox)):
            return []
        patience = {
            "patience": _OUTBOX_PATIENCE * 1_000_000,
            "limit": limit,
            "broker": broker,
            "prefix": self._settings.prefix,
        }
        return list(self._run("outbox", [self.keys.outbox], patience))

    @property
    def _lease_ttl(self) -> int:
        return milliseconds(self._settings.lease_duration)

    @property
    def _record_lifetime(self) -> int:
        return milliseconds(self._settings.record_expires)

    def _agent_keys(self, owner: str) -> list[str]:
        return [self.keys.inbox(owner), self.keys.owned(owner), self.keys.owners]


def _ended(one: Ended) -> dict[str, Any]:
    fields: dict[str, Any] = {"execution": one.execution_id, "task": one.task_id, "keep": one.keep}
    return {**fields, "instead": one.instead.value} if one.instead else fields
