"""One id, two workers, and everything that may happen to it, in any order, over the real scripts.

The machine keeps what the participants believe: which agents live, which bodies run, what has been sent. Each
step is one call of one script, some of them made twice as after a lost answer, and the record is read before
and after it. What must never happen is checked at each step and for the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending, rows
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import FINAL_STATES
from celery_canceltoken.store import RedisStore
from celery_canceltoken.store.answers import (
    Claim,
    ClaimAnswer,
    ClaimVerdict,
    DeliveryVerdict,
    Ended,
    Finish,
    RequestOrder,
)
from tests.store.conftest import CAUSES

T = TypeVar("T")
Fields = dict[str, str]

FINAL = {state.value for state in FINAL_STATES}
AGENTS = ("alice", "bob")
ANSWERED_AS = {"revoke": "REVOKED", "delete": "DELETED"}
INDEX = st.integers(min_value=0, max_value=99)
"""Picks one of a list of any length."""
TWICE = st.booleans()


@dataclass(frozen=True)
class Message:
    """One copy, which a broker may deliver at any time and as often as it likes."""

    send: str
    generation: int
    late_ack: bool


@dataclass
class Body:
    """An execution, as the worker that runs it sees it."""

    claim: Claim
    generation: int
    attempt: int
    unclaimed: bool = False
    """The store was away when it started."""
    was_owner: bool = True
    cause: Cause | None = None
    observed: bool = False
    has_sent_retry: bool = False
    ending: Ending | None = None
    finish: Finish | None = None
    over: bool = False
    settled: bool = False

    @property
    def owner(self) -> str:
        return self.claim.owner


class Protocol(RuleBasedStateMachine):
    """The participants, and what is forbidden to them."""

    count = 0

    def __init__(self, store: RedisStore, redis: Redis) -> None:
        super().__init__()
        Protocol.count += 1
        self.store = store
        self.redis = redis
        self.task_id = f"task-{Protocol.count}"
        self.key = store.keys.record(self.task_id)
        self.names = 0
        self.incarnations = dict.fromkeys(AGENTS, 1)
        self.alive = set(AGENTS)
        self.messages: list[Message] = []
        self.bodies: list[Body] = []
        self.orders: list[RequestOrder] = []
        self.seen_dead: list[tuple[Claim, tuple[str, str]]] = []
        self.seen_records: list[TaskRecord] = []

    def teardown(self) -> None:
        """Leave the server as it was."""
        self.redis.delete(self.key)

    # -- plumbing

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}-{self.names}"

    def owner(self, agent: str) -> str:
        return f"{agent}.{self.incarnations[agent]}"

    def lives(self, owner: str) -> bool:
        agent = owner.partition(".")[0]
        return agent in self.alive and owner == self.owner(agent)

    @property
    def fields(self) -> Fields:
        fields: Fields = self.redis.hgetall(self.key)
        return fields

    def running(self) -> list[Body]:
        return [body for body in self.bodies if body.finish is None and not body.over]

    def step(self, call: Callable[[], T], twice: bool) -> tuple[Fields, Fields, T]:
        """Make a call, or make it again after its answer was lost; check what holds for every step."""
        before = self.fields
        answer = call()
        after = self.fields
        if twice:
            assert call() == answer, "asked again, the script answers otherwise"
            assert self.fields == after, "asked again, the script writes again"
        self.check_requests(before, after)
        if before.get("send") == after.get("send") and before.get("generation") and not self.goes_back(after):
            assert int(after["generation"]) >= int(before["generation"]), "the generation went back"
        return before, after, answer

    def goes_back(self, after: Fields) -> bool:
        """The very message that was run is to be delivered again, with the generation that it had."""
        return after.get("state") == "ENQUEUED" and any(
            body.claim.execution_id == after["execution"] and body.ending is Ending.REJECTED_BACK
            for body in self.bodies
        )

    def check_requests(self, before: Fields, after: Fields) -> None:
        """What was applied stays pending, or is answered, and the answer is true."""
        if before.get("answer") != "pending":
            return
        if after.get("request") != before["request"]:
            assert (before["kind"], after.get("kind")) == ("revoke", "delete"), "a pending request is lost"
            assert after["answer"] == "pending"
            return
        became = after.get("outcome") or after.get("state")
        wanted = ANSWERED_AS[before["kind"]]
        if after["answer"] == "effective":
            assert became == wanted, "the request is called effective and was not"
        elif after["answer"] == "too-late":
            assert became != wanted, "the request is called too late and was not"
        else:
            assert after["answer"] == "pending"
            assert after.get("state") in (None, "ENQUEUED", "PROCESSING"), "an ended task left it unanswered"

    # -- clients

    @initialize(late_ack=st.booleans())
    def send(self, late_ack: bool) -> None:
        self.messages.append(Message(self.name("send"), 0, late_ack))

    @precondition(lambda self: len({message.send for message in self.messages}) < 3)
    @rule(late_ack=st.booleans())
    def send_again(self, late_ack: bool) -> None:
        self.messages.append(Message(self.name("send"), 0, late_ack))

    @rule(kind=st.sampled_from(["revoke", "delete"]), twice=TWICE)
    def request(self, kind: str, twice: bool) -> None:
        order = RequestOrder(
            self.task_id, self.name("request"), kind, Cancellation(CAUSES[kind], f"by {self.names}", "me")
        )
        self.orders.append(order)
        before, after, answer = self.step(lambda: self.store.request(order), twice)
        if answer.applied:
            assert (after["request"], after["answer"]) == (order.request_id, "pending")
            assert before.get("state") in (None, "ENQUEUED", "PROCESSING")
        else:
            assert after == before, "a refused request has changed something"

    @precondition(lambda self: self.orders)
    @rule(index=INDEX)
    def request_again(self, index: int) -> None:
        """A client that never heard asks once more, while its request still stands."""
        order = self.orders[index % len(self.orders)]
        if self.fields.get("request") == order.request_id:
            before, after, answer = self.step(lambda: self.store.request(order), twice=False)
            assert answer.applied
            assert after == before

    # -- workers

    def claim_of(self, message: int, agent: int, redelivered: bool) -> Claim:
        copy = self.messages[message % len(self.messages)]
        agents = sorted(self.alive)
        return Claim(
            task_id=self.task_id,
            execution_id=self.name("execution"),
            owner=self.owner(agents[agent % len(agents)]),
            worker="celery@worker",
            send=copy.send,
            generation=copy.generation,
            redelivered=redelivered,
            name="shop.export",
            takes_token=True,
            late_ack=copy.late_ack,
        )

    @precondition(lambda self: self.alive)
    @rule(message=INDEX, agent=INDEX, redelivered=st.booleans(), twice=TWICE)
    def claim(self, message: int, agent: int, redelivered: bool, twice: bool) -> None:
        claim = self.claim_of(message, agent, redelivered)
        answer = self.try_to_start(claim, ("", ""), twice)
        if answer.verdict is ClaimVerdict.OWNED and not self.lives(answer.owner):
            self.seen_dead.append((claim, (answer.execution_id, answer.owner)))

    # One outage at a time: of two lives of an id that both began without the store, and end in turns, the
    # record shows whichever was told last.
    @precondition(lambda self: self.alive and not any(body.unclaimed for body in self.bodies))
    @rule(message=INDEX, agent=INDEX)
    def start_without_the_store(self, message: int, agent: int) -> None:
        """The store does not answer: the body runs all the same."""
        claim = self.claim_of(message, agent, redelivered=False)
        self.bodies.append(Body(claim, claim.generation, 1, unclaimed=True, was_owner=False))

    @precondition(lambda self: self.seen_dead)
    @rule(index=INDEX, twice=TWICE)
    def take_over(self, index: int, twice: bool) -> None:
        """Whoever has seen an owner dead acts on it, maybe much later."""
        claim, dead = self.seen_dead.pop(index % len(self.seen_dead))
        if self.lives(claim.owner):
            self.try_to_start(claim, dead, twice)

    def try_to_start(self, claim: Claim, dead: tuple[str, str], twice: bool) -> ClaimAnswer:
        before, after, answer = self.step(lambda: self.store.claim(claim, take_over_from=dead), twice)
        state = before.get("state")
        same_send = before.get("send") == claim.send
        if answer.verdict not in (ClaimVerdict.RUN, ClaimVerdict.DENIED):
            assert after == before, "a claim that was turned down has changed something"
            return answer
        assert after["execution"] == claim.execution_id
        pending = before.get("answer") == "pending"
        assert (answer.verdict is ClaimVerdict.DENIED) == pending, (
            "denied without a request, or run despite one"
        )
        if state == "PROCESSING":
            successor = same_send and claim.generation > int(before["generation"])
            assert successor or not self.lives(before["owner"]), "the id was taken from a living owner"
        elif state == "FINISHING" or state in FINAL:
            assert state in FINAL, "an end that is not settled was overrun"
            assert not same_send, "an ended message ran again"
        if answer.verdict is ClaimVerdict.RUN:
            assert after["state"] == "PROCESSING"
            self.bodies.append(Body(claim, answer.generation, answer.attempt))
        else:
            self.bodies.append(Body(claim, 0, 0, finish=Finish(claim, 0, 0, {})))
        return answer

    @precondition(lambda self: self.running())
    @rule(index=INDEX, twice=TWICE)
    def deliver(self, index: int, twice: bool) -> None:
        """Inbox or check: the agent asks what is wanted of one of its bodies."""
        body = self.running()[index % len(self.running())]
        execution = body.claim.execution_id
        before, after, answer = self.step(lambda: self.store.deliver(self.task_id, execution), twice)
        mine = before.get("execution") == execution
        if answer.verdict is DeliveryVerdict.DELIVER:
            assert mine
            assert before["answer"] == "pending"
            assert answer.cancellation is not None
            assert answer.cancellation.cause is CAUSES[before["kind"]]
            body.cause = body.cause or answer.cancellation.cause
            return
        assert after == before
        if answer.verdict is DeliveryVerdict.SUPERSEDED:
            assert not mine
            body.cause = body.cause or Cause.SUPERSEDED
        elif answer.verdict is DeliveryVerdict.VANISHED:
            assert not mine
            self.write_again(body, twice)
        else:
            assert mine
            assert before.get("answer") != "pending"

    def write_again(self, body: Body, twice: bool) -> None:
        """Nobody runs the id: the agent has the body recorded, or learns that it is not wanted."""
        fields = self.fields
        if fields.get("state") == "ENQUEUED" and fields["send"] != body.claim.send:
            # What the body retries is lost then: a known bug, in test_finish.
            return
        claim = dataclasses.replace(body.claim, generation=body.generation)
        before, after, answer = self.step(
            lambda: self.store.claim(claim, running_attempt=body.attempt), twice
        )
        if answer.verdict is ClaimVerdict.RUN:
            assert before.get("state") in (None, "ENQUEUED", *FINAL)
            assert before.get("state") not in FINAL or before["send"] != claim.send, "it was taken back"
            assert after["execution"] == claim.execution_id
            body.was_owner = True
        else:
            assert answer.verdict in (ClaimVerdict.SKIP, ClaimVerdict.OWNED)
            assert after == before
            body.cause = body.cause or Cause.SUPERSEDED

    @precondition(lambda self: any(body.cause for body in self.running()))
    @rule(index=INDEX, twice=TWICE)
    def observe(self, index: int, twice: bool) -> None:
        told = [body for body in self.running() if body.cause]
        body = told[index % len(told)]
        body.observed = True
        execution = body.claim.execution_id
        before, after, _ = self.step(lambda: self.store.observe(self.task_id, execution), twice)
        if before.get("execution") != execution:
            assert after == before, "another execution has observed"

    @precondition(lambda self: any(body.cause is None and not body.has_sent_retry for body in self.running()))
    @rule(index=INDEX)
    def send_retry(self, index: int) -> None:
        """Celery publishes the copy before the body has ended."""
        free = [body for body in self.running() if body.cause is None and not body.has_sent_retry]
        body = free[index % len(free)]
        body.has_sent_retry = True
        self.messages.append(Message(body.claim.send, body.generation + 1, body.claim.late_ack))

    @precondition(lambda self: self.running())
    @rule(
        index=INDEX,
        ending=st.sampled_from([Ending.RETURNED, Ending.RAISED, Ending.IGNORED, Ending.REJECTED_BACK]),
        twice=TWICE,
    )
    def finish(self, index: int, ending: Ending, twice: bool) -> None:
        """A body ends, its owner dead or alive."""
        body = self.running()[index % len(self.running())]
        if body.observed and ending is not Ending.RETURNED:
            ending = Ending.CANCELLED
        elif body.has_sent_retry:
            ending = Ending.RETRIED
        body.ending = ending
        finish = Finish(
            claim=body.claim,
            generation=body.generation,
            attempt=body.attempt,
            rows=rows(ending, body.cause, body.observed, False),
            cancellation=None if body.cause is None else Cancellation(body.cause),
            observed_ago=0.1 if body.observed else None,
            unclaimed=body.unclaimed,
        )
        body.finish = finish
        self.tell_end(body, twice)

    def tell_end(self, body: Body, twice: bool) -> None:
        finish = body.finish
        assert finish is not None
        mine = body.claim.execution_id
        before, after, answer = self.step(lambda: self.store.finish(finish), twice)
        if not answer.recorded:
            assert after == before, "who is not the owner has written"
            assert before.get("execution") != mine or body.cause is Cause.SUPERSEDED
            body.over = True
            return
        assert answer.verdict is not None
        assert answer.verdict.state is not None
        if before.get("execution") != mine:
            assert body.unclaimed, "a stranger has written"
            assert before.get("state") in (None, "ENQUEUED", *FINAL), "a stranger has overrun the owner"
            assert before.get("state") not in FINAL or before["send"] != body.claim.send, "an end has changed"
        elif before["state"] != "PROCESSING":
            assert after == before, "an end was decided twice"
            return
        assert (after.get("outcome") or after["state"]) == answer.verdict.state.value

    def unsettled(self) -> list[Body]:
        return [
            body
            for body in self.bodies
            if body.ending and not body.over and not body.settled and not body.unclaimed
        ]

    @precondition(lambda self: self.unsettled())
    @rule(index=INDEX)
    def tell_end_again(self, index: int) -> None:
        """An agent writes, before it settles, what was written without its knowing."""
        finish = self.unsettled()[index % len(self.unsettled())].finish
        assert finish is not None
        before, after, _ = self.step(lambda: self.store.finish(finish), twice=False)
        assert after == before, "an end was told twice"

    @precondition(lambda self: any(body.finish for body in self.bodies))
    @rule(index=INDEX, twice=TWICE)
    def settle(self, index: int, twice: bool) -> None:
        ended = [body for body in self.bodies if body.finish]
        body = ended[index % len(ended)]
        execution = body.claim.execution_id
        body.settled = True
        batch = [Ended(execution, self.task_id)]
        before, after, _ = self.step(lambda: self.store.settle(body.owner, batch), twice)
        if before.get("state") == "FINISHING" and before.get("execution") == execution:
            assert after["state"] == before["outcome"]
        else:
            assert after == before, "somebody else's record was settled"

    # -- faults

    @precondition(lambda self: self.alive)
    @rule(agent=st.sampled_from(AGENTS))
    def lose_lease(self, agent: str) -> None:
        """The worker dies, or is cut off; its bodies may run on."""
        self.alive.discard(agent)

    @rule(agent=st.sampled_from(AGENTS), twice=TWICE)
    def come_back(self, agent: str, twice: bool) -> None:
        """As a new incarnation that adopts what it still has."""
        if agent in self.alive:
            return
        self.incarnations[agent] += 1
        self.alive.add(agent)
        new = self.owner(agent)
        for body in self.running():
            if body.owner.partition(".")[0] != agent:
                continue
            execution, old = body.claim.execution_id, body.owner
            before, after, adopted = self.step(
                lambda execution=execution, old=old: self.store.adopt(self.task_id, execution, old, new),
                twice,
            )
            if adopted:
                assert after == ({**before, "owner": new} if before else {})
                body.claim = dataclasses.replace(body.claim, owner=new)
            else:
                assert after == before
                assert before.get("execution") != execution, "an execution was given up for nothing"
                body.cause = body.cause or Cause.SUPERSEDED

    @rule()
    def look(self) -> None:
        """A janitor reads the record, and sees that its owner is dead."""
        record = self.store.get(self.task_id)
        if record is not None and record.owner and not self.lives(record.owner):
            self.seen_records.append(record)

    @precondition(lambda self: self.seen_records and self.alive)
    @rule(index=INDEX, agent=INDEX, twice=TWICE)
    def recover(self, index: int, agent: int, twice: bool) -> None:
        """It acts on it, maybe much later."""
        seen = self.seen_records.pop(index % len(self.seen_records))
        agents = sorted(self.alive)
        owner, recovery = self.owner(agents[agent % len(agents)]), self.name("recovery")
        before, after, answer = self.step(
            lambda: self.store.recover(seen, owner=owner, worker="celery@janitor", recovery_id=recovery),
            twice,
        )
        if answer is None:
            assert after == before, "a recovery that was turned down has changed something"
            return
        assert not self.lives(before["owner"]), "a living owner was recovered from"
        assert before["state"] in ("PROCESSING", "FINISHING")
        assert (after["state"], after["outcome"]) == ("FINISHING", answer.state.value)
        if before["state"] == "FINISHING":
            assert after["outcome"] == before["outcome"], "a decided outcome was decided otherwise"
        claim = Claim(self.task_id, recovery, owner, "w", before["send"], 0, False, "n", True, False)
        self.bodies.append(Body(claim, 0, 0, finish=Finish(claim, 0, 0, {})))

    # -- the whole

    @invariant()
    def one_living_owner(self) -> None:
        """Of the bodies whose worker lives one is the id's, but for those that a retry has replaced."""
        fields = self.fields
        for body in self.running():
            believes = body.was_owner and body.cause is not Cause.SUPERSEDED
            followed = any(
                other.has_sent_retry and other.claim.send == body.claim.send
                for other in self.bodies
                if other is body or other.unclaimed
            )
            if self.lives(body.owner) and believes and not followed:
                assert fields["execution"] == body.claim.execution_id, "two living executions"

    @invariant()
    def what_waits_is_on_its_way(self) -> None:
        """An id that waits for its message has one that it would let run."""
        fields = self.fields
        if fields.get("state") == "ENQUEUED":
            known = int(fields["generation"])
            assert any(
                message.send == fields["send"] and message.generation >= known for message in self.messages
            ), "the task is lost"


@pytest.mark.timeout(600)  # For making a failure short enough to be read; without one it takes seconds.
def test_nothing_forbidden_happens(store: RedisStore, redis: Redis) -> None:
    """At most one living owner, no applied request lost, no end changed, and no word from a stranger."""
    run_state_machine_as_test(
        lambda: Protocol(store, redis),
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    redis.delete(*[store.keys.owned(f"{agent}.1") for agent in AGENTS])
