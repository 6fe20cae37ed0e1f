"""One task id on a real server, and everything that may happen to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending, rows
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store import AgentStore, ConnectionPlan
from celery_canceltoken.store.answers import (
    Claim,
    ClaimAnswer,
    ClaimVerdict,
    Delivery,
    Ended,
    Finish,
    FinishAnswer,
    Recovery,
    RequestAnswer,
    RequestOrder,
    Settled,
    WithdrawOrder,
)
from tests.support.orders import MESSAGE
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import unique_name

__all__ = ["ALICE", "BOB", "CAUSES", "KEPT", "Lab"]

ALICE, BOB = "alice.1", "bob.1"
CAUSES = {"revoke": Cause.REVOKED, "delete": Cause.DELETED, "requeue": Cause.REQUEUED}
KEPT = MESSAGE.to_json()
"""A message as it is kept in a record."""


class Lab:
    """Calls the store's scripts for one id, with short names for who does what, and looks at the record.

    Executions are called by names of the test's choosing. Whatever an execution was told when it claimed, it
    says again when it finishes.
    """

    def __init__(self, store: AgentStore, redis: Redis, task_id: str = "task-7") -> None:
        self.store = store
        self.redis = redis
        self.task_id = task_id
        self.key = store.keys.record(task_id)
        self._claims: dict[str, tuple[Claim, ClaimAnswer]] = {}

    def other(self, task_id: str) -> Lab:
        """The same for another id."""
        return Lab(self.store, self.redis, task_id)

    # -- what is stored

    @property
    def fields(self) -> dict[str, str]:
        """The record as it is stored; empty without one."""
        fields: dict[str, str] = self.redis.hgetall(self.key)
        return fields

    @property
    def state(self) -> str | None:
        return self.fields.get("state")

    @property
    def record(self) -> TaskRecord:
        """The record as it is read."""
        record = self.store.get(self.task_id)
        assert record is not None
        return record

    @property
    def history(self) -> list[str]:
        """The history in short: each line's state, and what was asked with what became of it."""
        return [
            " ".join(
                [change.state.value if change.state else "-"]
                + ([f"{change.request_id}:{change.answer}"] if change.request_id else [])
            )
            for change in self.record.history
        ]

    def heard_of(self, do: Callable[[], object]) -> list[str]:
        """What is announced on the channel of the task's end by that."""
        messages: list[str] = []
        with self.redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            channel = self.store.keys.stopped(self.task_id)
            pubsub.subscribe(channel)
            # What is done next comes by another connection: not before the server has confirmed this.
            pubsub.get_message(timeout=5.0)
            do()
            self.redis.publish(channel, "that was all")

            def all_has_come() -> bool:
                message = pubsub.get_message(timeout=1.0)
                if message is not None:
                    messages.append(message["data"])
                return messages[-1:] == ["that was all"]

            wait_until(all_has_come, description="what was published has arrived")
        return messages[:-1]

    @property
    def in_outbox(self) -> bool:
        """Whether the id is among those whose message waits to be published."""
        return self.redis.zscore(self.store.keys.outbox, self.task_id) is not None

    def listed(self, field: str, value: str) -> bool:
        """Whether the id is in that list."""
        return self.redis.zscore(self.store.keys.listed(field, value), self.task_id) is not None

    @property
    def states_listed(self) -> list[str]:
        """The states in whose lists the id is."""
        return [state.value for state in State if self.listed("state", state.value)]

    @property
    def ttl(self) -> float:
        """Seconds until the record expires; negative if never."""
        return float(self.redis.pttl(self.key)) / 1000

    def owned(self, owner: str) -> set[str]:
        """What the index says that the owner's agent may own."""
        members: set[str] = self.redis.smembers(self.store.keys.owned(owner))
        return members

    def set(self, **fields: str) -> None:
        """Write fields behind the store's back."""
        self.redis.hset(self.key, mapping=fields)
        self.redis.pexpire(self.key, 60_000)

    def remove(self, *fields: str) -> None:
        """Remove fields behind the store's back; all of the record without any."""
        if fields:
            self.redis.hdel(self.key, *fields)
        else:
            self.redis.delete(self.key)

    def dump(self) -> dict[str, str] | bytes:
        """The record, in a form that is equal only if nothing has changed."""
        if self.redis.type(self.key) in ("hash", "none"):
            return self.fields
        return bytes(self.redis.dump(self.key) or b"")

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Fails if the record is another one afterwards."""
        before = self.dump()
        yield
        assert self.dump() == before, "the record has changed"

    # -- who does what

    def lives(self, *owners: str) -> None:
        """These hold their leases."""
        for owner in owners:
            self.redis.set(self.store.keys.lease(owner), "1", px=60_000)

    def dies(self, owner: str = ALICE) -> None:
        """Its lease is gone."""
        self.redis.delete(self.store.keys.lease(owner))

    def claim(
        self,
        execution: str = "one",
        *,
        message: str = "",
        take_over_from: tuple[str, str] = ("", ""),
        running_attempt: int = 0,
        **claim: Any,
    ) -> ClaimAnswer:
        mine = self._claim_of(execution, **claim)
        answer = self.store.claim(
            mine, message=message, take_over_from=take_over_from, running_attempt=running_attempt
        )
        if not running_attempt:
            self._claims[execution] = mine, answer
        return answer

    def start_without_the_store(self, execution: str, **claim: Any) -> None:
        """What an execution does whose claim the store did not answer: its body runs all the same."""
        mine = self._claim_of(execution, **claim)
        self._claims[execution] = mine, ClaimAnswer(ClaimVerdict.RUN, 1, mine.generation)

    def _claim_of(
        self,
        execution: str,
        *,
        owner: str = ALICE,
        send: str = "send",
        generation: int = 0,
        redelivered: bool = False,
        late_ack: bool = False,
        name: str = "shop.export",
        **more: Any,
    ) -> Claim:
        return Claim(
            task_id=self.task_id,
            execution_id=execution,
            owner=owner,
            worker=f"celery@{owner.partition('.')[0]}",
            send=send,
            generation=generation,
            redelivered=redelivered,
            name=name,
            takes_token=True,
            late_ack=late_ack,
            **more,
        )

    def run(self, execution: str = "one", **claim: Any) -> ClaimAnswer:
        """Claim, and be told to run."""
        answer = self.claim(execution, **claim)
        assert answer.verdict is ClaimVerdict.RUN
        return answer

    def finish(
        self,
        execution: str = "one",
        ending: Ending = Ending.RETURNED,
        *,
        cause: Cause | None = None,
        observed: bool = False,
        disregarded: bool = False,
        **more: Any,
    ) -> FinishAnswer:
        return self.store.finish(self.finish_of(execution, ending, cause, observed, disregarded, **more))

    def finish_of(
        self,
        execution: str = "one",
        ending: Ending = Ending.RETURNED,
        cause: Cause | None = None,
        observed: bool = False,
        disregarded: bool = False,
        **more: Any,
    ) -> Finish:
        if execution not in self._claims:
            self.start_without_the_store(execution, owner=BOB)
        claim, told = self._claims[execution]
        return Finish(
            claim=claim,
            generation=told.generation,
            attempt=told.attempt,
            rows=rows(ending, cause, observed, disregarded),
            **more,
        )

    def request(
        self,
        kind: str = "revoke",
        request_id: str = "request",
        *,
        reason: str | None = "customer left",
        actor: str | None = "alice",
        from_states: Sequence[State] = (),
        must_exist: bool = False,
        wanted_eta: int | None = None,
    ) -> RequestAnswer:
        cancellation = Cancellation(CAUSES[kind], reason, actor)
        return self.store.request(
            RequestOrder(self.task_id, request_id, kind, cancellation, from_states, must_exist, wanted_eta)
        )

    def withdraw(
        self,
        withdrawal_id: str = "withdrawal",
        *,
        request_id: str | None = None,
        from_states: Sequence[State] = (),
    ) -> RequestAnswer:
        order = WithdrawOrder(self.task_id, withdrawal_id, request_id, from_states)
        return self.store.ask(self.store.calls.withdraw(order))

    def enqueue(self, *, message: str = KEPT, **fields: Any) -> bool:
        """A publisher that tracks what it sends writes down that the task waits."""
        told = {"send": "send", "generation": 0, "name": "shop.export", **fields}
        return self.store.ask(self.store.calls.enqueue(self.task_id, told, message))

    def published(self, generation: int) -> bool:
        return self.store.ask(self.store.calls.published(self.task_id, generation))

    def mark(self, kind: str = "revoke", request_id: str = "mark", *, root: str = "root") -> str:
        """Something is asked of a whole workflow."""
        why = Cancellation(CAUSES[kind], "all of it", "alice")
        return self.store.ask(self.store.calls.mark(root, request_id, kind, why))

    def stand(
        self, request_id: str = "standing", *, kind: str = "revoke", seconds: float = 50.0, **about: Any
    ) -> bool:
        """Something is asked of all tasks of a kind that are still to come."""
        why = Cancellation(CAUSES[kind], "until then", "alice")
        criteria = {"name": None, "queue": None, "stamps": None, **about}
        return self.store.ask(self.store.calls.stand(request_id, kind, why, seconds=seconds, **criteria))

    def deliver(self, execution: str = "one") -> Delivery:
        return self.store.deliver(self.task_id, execution)

    def observe(self, execution: str = "one", ago: float = 0.0) -> None:
        self.store.observe(self.task_id, execution, ago)

    def settle(
        self,
        execution: str = "one",
        *,
        owner: str = ALICE,
        instead: State | None = None,
        keep: str = "until_success",
    ) -> Settled:
        (settled,) = self.store.settle(owner, [Ended(execution, self.task_id, instead, keep)])
        return settled

    def recover(self, *, by: str = BOB, recovery: str = "recovery") -> Recovery | None:
        """Take over from the owner that stands in the record now."""
        record = self.store.get(self.task_id)
        assert record is not None
        return self.store.recover(record, owner=by, worker=f"celery@{by}", recovery_id=recovery)

    def adopt(self, execution: str = "one", old: str = ALICE, new: str = "alice.2") -> bool:
        return self.store.adopt(self.task_id, execution, old, new)

    # -- where an id may be

    def enqueued(self, generation: int = 1) -> None:
        """ENQUEUED at that generation, by a retry of execution "one"."""
        self.run("one", generation=generation - 1)
        assert self.finish("one", Ending.RETRIED).recorded
        assert (self.state, self.fields["generation"]) == ("ENQUEUED", str(generation))

    def finishing(self, ending: Ending = Ending.RETURNED, **claim: Any) -> None:
        """FINISHING, by execution "one"."""
        self.run("one", **claim)
        assert self.finish("one", ending).recorded
        assert self.state == "FINISHING"

    def requeued(self) -> None:
        """Ended by execution "one", and asked to run again: it waits in the outbox."""
        self.final(Ending.RAISED, message=KEPT)
        assert self.request("requeue", "requeue").applied
        assert (self.state, self.fields["outbox"]) == ("ENQUEUED", "1")

    def final(self, ending: Ending = Ending.RETURNED, **claim: Any) -> None:
        """Ended for good, by execution "one"."""
        self.finishing(ending, **claim)
        self.settle("one")
        assert State(self.fields["state"]).is_final


@pytest.fixture
def settings() -> Settings:
    """Short times, and a key prefix that is this test's own."""
    return Settings(
        prefix=unique_name("store"), record_expires=100.0, request_expires=1000.0, store_timeout=5.0
    )


@pytest.fixture
def redis(valkey: EmbeddedServer) -> Iterator[Redis]:
    """Looks at the server past the store."""
    with Redis.from_url(valkey.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def store(valkey: EmbeddedServer, settings: Settings) -> Iterator[AgentStore]:
    """A store on the shared server."""
    store = AgentStore(ConnectionPlan(valkey.url), settings)
    yield store
    store.close()


@pytest.fixture
def impatient_settings(settings: Settings) -> Settings:
    """Settings for a store that gives up soon."""
    return dataclasses.replace(settings, store_timeout=0.2)


@pytest.fixture
def lab(store: AgentStore, redis: Redis) -> Lab:
    """One task id that nobody has seen yet, and two owners that live."""
    lab = Lab(store, redis)
    lab.lives(ALICE, BOB)
    return lab


@pytest.fixture(autouse=True)
def every_key_expires(redis: Redis, settings: Settings) -> Iterator[None]:
    """Fail on a key of this test's that would stay for ever."""
    yield
    keys = list(redis.scan_iter(match=f"{settings.prefix}*", count=1000))
    eternal = [key for key in keys if redis.pttl(key) == -1]
    if keys:
        redis.delete(*keys)
    assert not eternal, f"keys without an expiry: {eternal}"
