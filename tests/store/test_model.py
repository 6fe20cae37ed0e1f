"""One id, two workers, and everything that may happen to it, in any order, over the real scripts.

The machine keeps what the participants believe: which agents live, which bodies run, what has been sent. Each
step is one call of one script, some of them made twice as after a lost answer, and the record is read before
and after it. What must never happen is checked at each step and for the whole.
"""

from __future__ import annotations

import dataclasses
import json
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
from celery_canceltoken.states import FINAL_STATES, State
from celery_canceltoken.store import AgentStore
from celery_canceltoken.store.answers import (
    Claim,
    ClaimAnswer,
    ClaimVerdict,
    DeliveryVerdict,
    Ended,
    Enqueued,
    Finish,
    RequestOrder,
    WithdrawOrder,
)
from tests.store.conftest import CAUSES, KEPT

T = TypeVar("T")
Fields = dict[str, str]

FINAL = {state.value for state in FINAL_STATES}
WAITING = {"ENQUEUED", "SCHEDULED"}
RANK = ["requeue", "revoke", "delete"]
LATER = 9_000_000_000_000_000
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
    kept: bool
    """Its worker keeps it in the record."""


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


def without_answer(answer: object) -> None:
    """For a call that tells who makes it again that it has been made."""


class Protocol(RuleBasedStateMachine):
    """The participants, and what is forbidden to them."""

    count = 0

    def __init__(self, store: AgentStore, redis: Redis) -> None:
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
        self.unanswered: set[str] = set()
        """Requests that were applied and whose answer the history has not told yet."""
        self.to_publish: list[tuple[Message, int]] = []
        """What somebody is about to send."""
        self.root = f"root-{Protocol.count}"
        for agent in AGENTS:
            self.grant_lease(agent)
        self.seen_dead: list[tuple[Claim, tuple[str, str]]] = []
        self.seen_records: list[TaskRecord] = []

    def teardown(self) -> None:
        """Leave the server as it was."""
        keys = self.store.keys
        left = [keys.lease(self.owner(agent)) for agent in AGENTS]
        self.redis.delete(self.key, keys.mark(self.root), *left)
        self.redis.zrem(keys.outbox, self.task_id)

    # -- plumbing

    def grant_lease(self, agent: str) -> None:
        self.redis.set(self.store.keys.lease(self.owner(agent)), "1", px=600_000)

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
        if after.get("outbox") and after["outbox"] != before.get("outbox"):
            self.to_publish.append((self.copy_of(after), int(after["outbox"])))
        return before, after, answer

    def copy_of(self, fields: Fields) -> Message:
        """What is published of a record that waits in the outbox."""
        sent = next(message for message in self.messages if message.send == fields["send"])
        return dataclasses.replace(sent, generation=int(fields["outbox"]))

    def goes_back(self, after: Fields) -> bool:
        """The very message that was run is to be delivered again, with the generation that it had."""
        return after.get("state") == "ENQUEUED" and any(
            body.claim.execution_id == after.get("execution") and body.ending is Ending.REJECTED_BACK
            for body in self.bodies
        )

    def check_requests(self, before: Fields, after: Fields) -> None:
        """What was applied stays in the record until its answer is in the history, and the answer is true."""
        told = [json.loads(line) for name, line in after.items() if name[0] == "h" and name[1:].isdigit()]
        for line in told:
            if line.get("request") in self.unanswered and line["answer"] != "pending":
                self.unanswered.remove(line["request"])
                self.check_answer(line, after)
        for request in self.unanswered:
            assert after.get("request") == request, "a request that was applied is lost"
        if before.get("answer") == "pending" and after.get("request") == before["request"]:
            became = (before["kind"] in ANSWERED_AS and after.get("outcome")) or after.get("state")
            assert after["answer"] != "pending" or became not in FINAL, "an ended task left it unanswered"
            if after["answer"] == "effective" and before["kind"] in ANSWERED_AS:
                assert became == ANSWERED_AS[before["kind"]], "the request is called effective and was not"

    def check_answer(self, line: Fields, after: Fields) -> None:
        kind, answer, state = line["kind"], line["answer"], line.get("state")
        if answer == "effective":
            wanted = {ANSWERED_AS[kind]} if kind in ANSWERED_AS else {*WAITING, "PROCESSING"}
            assert state in wanted, "the request is called effective and was not"
        elif answer == "too-late":
            assert state != ANSWERED_AS.get(kind), "the request is called too late and was not"
        elif answer == "overruled":
            assert RANK.index(after["kind"]) > RANK.index(kind), "overruled by what wants no more"
        else:
            assert answer == "withdrawn"
            assert after["request"] == line["request"]

    # -- clients

    @initialize(late_ack=st.booleans(), kept=st.booleans())
    def send(self, late_ack: bool, kept: bool) -> None:
        self.messages.append(Message(self.name("send"), 0, late_ack, kept))

    @precondition(lambda self: len({message.send for message in self.messages}) < 3)
    @rule(late_ack=st.booleans(), kept=st.booleans())
    def send_again(self, late_ack: bool, kept: bool) -> None:
        self.messages.append(Message(self.name("send"), 0, late_ack, kept))

    @rule(index=INDEX, twice=TWICE)
    def track(self, index: int, twice: bool) -> None:
        """The sender of a message writes down that it waits; perhaps late."""
        message = self.messages[index % len(self.messages)]
        if message.generation:
            return
        fields = {"send": message.send, "generation": 0, "name": "shop.export", "root": self.root}
        call = self.store.calls.enqueue(self.task_id, fields, KEPT if message.kept else "")
        before, after, _ = self.step(lambda: without_answer(self.store.ask(call)), twice)
        state = before.get("state")
        if state is None or (state in FINAL and before["send"] != message.send):
            assert (after["state"], after["send"]) == ("ENQUEUED", message.send)
        else:
            assert after == before, "a sender knew better than a worker"

    def order(self, kind: str, wanted_eta: int | None = None) -> RequestOrder:
        name = self.name("request")
        why = Cancellation(CAUSES[kind], f"by {self.names}", "me")
        self.orders.append(RequestOrder(self.task_id, name, kind, why, wanted_eta=wanted_eta))
        return self.orders[-1]

    @rule(kind=st.sampled_from(["revoke", "delete"]), twice=TWICE)
    def request(self, kind: str, twice: bool) -> None:
        order = self.order(kind)
        before, after, answer = self.step(lambda: self.store.request(order), twice)
        if answer.applied:
            self.unanswered.add(order.request_id)
            assert (after["request"], after["answer"]) == (order.request_id, "pending")
            assert before.get("state") in (None, "PROCESSING", *WAITING)
        else:
            assert after == before, "a refused request has changed something"

    @rule(at_a_time=st.booleans(), twice=TWICE)
    def requeue(self, at_a_time: bool, twice: bool) -> None:
        """Somebody wants it to run again, at once or at a time."""
        order = self.order("requeue", LATER + self.names if at_a_time else None)
        before, after, answer = self.step(lambda: self.store.request(order), twice)
        if not answer.applied:
            assert after == before, "a refused request has changed something"
            return
        state = before["state"]
        runs = state == "FINISHING" or (state == "PROCESSING" and self.lives(before["owner"]))
        assert state not in WAITING or at_a_time, "what waits was sent again"
        assert (answer.outbox is None) == runs
        if runs:
            self.unanswered.add(order.request_id)
            assert (after["state"], after["answer"]) == (state, "pending")
            return
        assert after["state"] == ("SCHEDULED" if at_a_time else "ENQUEUED")
        assert after["answer"] == "effective"
        assert answer.outbox == Enqueued(int(before["generation"]) + 1, order.wanted_eta)
        assert "message" in after, "there is nothing to send"
        assert {"execution", "owner", "eta" if not at_a_time else "wanted_eta"} & set(after) == set()

    @rule(by_id=st.booleans(), index=INDEX, twice=TWICE)
    def withdraw(self, by_id: bool, index: int, twice: bool) -> None:
        """Somebody takes back what is pending, or one request of many."""
        wanted = self.orders[index % len(self.orders)].request_id if by_id and self.orders else None
        order = WithdrawOrder(self.task_id, self.name("withdrawal"), wanted)
        call = self.store.calls.withdraw(order)
        before, after, answer = self.step(lambda: self.store.ask(call), twice)
        assert answer.applied == (
            before.get("answer") == "pending"
            and "delivered_at" not in before
            and before.get("state") in (None, "PROCESSING", *WAITING)
            and wanted in (None, before["request"])
        )
        if answer.applied:
            assert after["answer"] == "withdrawn"
            assert after.get("state") == before.get("state")
        else:
            assert after == before, "a refused withdrawal has changed something"

    @rule(kind=st.sampled_from(["revoke", "delete"]))
    def mark(self, kind: str) -> None:
        """Somebody asks something of the whole workflow; rarely, or nothing would ever run."""
        if self.names % 4 == 0:
            call = self.store.calls.mark(self.root, self.name("mark"), kind, Cancellation(CAUSES[kind]))
            self.store.ask(call)

    @precondition(lambda self: self.to_publish)
    @rule(index=INDEX, lost=st.sampled_from(["", "message", "word"]), twice=TWICE)
    def publish(self, index: int, lost: str, twice: bool) -> None:
        """Whoever is to send a message does, or dies before it, or before it can say so."""
        message, generation = self.to_publish.pop(index % len(self.to_publish))
        if lost == "message":
            return
        self.messages.append(message)
        if lost == "word":
            return
        call = self.store.calls.published(self.task_id, generation)
        before, after, _ = self.step(lambda: without_answer(self.store.ask(call)), twice)
        waited = before.get("outbox") == str(generation)
        assert after == ({**before} if not waited else {k: v for k, v in before.items() if k != "outbox"})

    @rule()
    def look_into_the_outbox(self) -> None:
        """Another agent finds what was to be sent."""
        waiting, _ = self.store.outbox_of(self.task_id)
        if waiting is None:
            before = self.fields
            self.store.published(self.task_id, -1)
            assert self.fields == before
        else:
            self.to_publish.append((self.copy_of(self.fields), waiting.generation))

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
            root=self.root,
        )

    def message_of(self, claim: Claim) -> str:
        return KEPT if any(one.send == claim.send and one.kept for one in self.messages) else ""

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
        marked = bool(self.redis.exists(self.store.keys.mark(self.root)))
        before, after, answer = self.step(
            lambda: self.store.claim(claim, message=self.message_of(claim), take_over_from=dead), twice
        )
        state = before.get("state")
        same_send = before.get("send") == claim.send
        if answer.verdict not in (ClaimVerdict.RUN, ClaimVerdict.DENIED):
            assert after == before, "a claim that was turned down has changed something"
            return answer
        assert after["execution"] == claim.execution_id
        pending = before.get("answer") == "pending" and before["kind"] != "requeue"
        pardoned = "pardoned" in before and same_send
        pending = pending or (marked and not pardoned)
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
        claim = dataclasses.replace(body.claim, generation=body.generation)
        before, after, answer = self.step(
            lambda: self.store.claim(claim, running_attempt=body.attempt), twice
        )
        if answer.verdict is ClaimVerdict.RUN:
            assert before.get("state") in (None, *WAITING, *FINAL)
            assert before.get("state") not in FINAL or before["send"] != claim.send, "it was taken back"
            assert answer.generation == body.generation, "the body does not know its generation"
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
        kept = bool(self.message_of(body.claim))
        self.messages.append(Message(body.claim.send, body.generation + 1, body.claim.late_ack, kept))

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
            assert before.get("state") in (None, *WAITING, *FINAL), "a stranger has overrun the owner"
            assert before.get("state") not in FINAL or before["send"] != body.claim.send, "an end has changed"
        elif before["state"] != "PROCESSING":
            assert after == before, "an end was decided twice"
            return
        became = after.get("outcome") or after["state"]
        assert became == answer.verdict.state.value or (became, answer.verdict.state) == (
            "SCHEDULED",
            State.ENQUEUED,
        )
        assert (answer.outbox is not None) == ("outbox" in after)

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
        before, after, _ = self.step(lambda: without_answer(self.store.settle(body.owner, batch)), twice)
        if before.get("state") == "FINISHING" and before.get("execution") == execution:
            if before.get("answer") == "pending":
                assert after["state"] in WAITING
                assert int(after["outbox"]) == int(before["generation"]) + 1
            else:
                assert after["state"] == before["outcome"]
                assert after["state"] != "DELETED" or not {"message", "value", "error"} & set(after)
        else:
            assert after == before, "somebody else's record was settled"

    # -- faults

    @precondition(lambda self: self.alive)
    @rule(agent=st.sampled_from(AGENTS))
    def lose_lease(self, agent: str) -> None:
        """The worker dies, or is cut off; its bodies may run on."""
        self.alive.discard(agent)
        self.redis.delete(self.store.keys.lease(self.owner(agent)))

    @rule(agent=st.sampled_from(AGENTS), twice=TWICE)
    def come_back(self, agent: str, twice: bool) -> None:
        """As a new incarnation that adopts what it still has."""
        if agent in self.alive:
            return
        self.incarnations[agent] += 1
        self.alive.add(agent)
        self.grant_lease(agent)
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
            sent_again = after.get("state") in WAITING and before.get("state") == "PROCESSING"
            assert after == before or sent_again, "a recovery that was turned down has changed something"
            if sent_again:
                assert (before["kind"], before["answer"]) == ("requeue", "pending")
                assert not self.lives(before["owner"]), "a living owner was recovered from"
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
                assert fields.get("execution") == body.claim.execution_id, "two living executions"

    @invariant()
    def what_waits_is_on_its_way(self) -> None:
        """An id that waits for its message has one that it would let run, or is in the outbox."""
        fields = self.fields
        if fields.get("outbox"):
            assert fields["state"] in WAITING, "nobody waits for what is to be sent"
            assert self.redis.zscore(self.store.keys.outbox, self.task_id), "the outbox has forgotten it"
        elif fields.get("state") in WAITING:
            known = int(fields["generation"])
            assert any(
                message.send == fields["send"] and message.generation >= known for message in self.messages
            ), "the task is lost"

    @invariant()
    def history_is_in_order(self) -> None:
        """The last 20 changes, each in its place."""
        fields = self.fields
        changes = int(fields.get("changes", 0))
        lines = {name: json.loads(line) for name, line in fields.items() if name[0] == "h" and name != "h"}
        assert lines.keys() == {f"h{number % 20}" for number in range(changes)}
        assert sorted(line["n"] for line in lines.values()) == list(range(max(0, changes - 20), changes))
        times = [line["at"] for line in sorted(lines.values(), key=lambda line: line["n"])]
        assert times == sorted(times)

    @invariant()
    def record_and_lists_agree(self) -> None:
        """The id is in the list of its state, and in no other state's."""
        keys, state = self.store.keys, self.fields.get("state")
        pipeline = self.redis.pipeline()
        for one in State:
            pipeline.zscore(keys.listed("state", one.value), self.task_id)
        listed = [one.value for one, score in zip(State, pipeline.execute(), strict=True) if score]
        assert listed == ([state] if state else [])


@pytest.mark.timeout(600)  # For making a failure short enough to be read; without one it takes seconds.
def test_nothing_forbidden_happens(store: AgentStore, redis: Redis) -> None:
    """At most one living owner, no applied request lost, no end changed, and no word from a stranger."""
    run_state_machine_as_test(
        lambda: Protocol(store, redis),
        settings=settings(
            max_examples=60,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    redis.delete(*[store.keys.owned(f"{agent}.1") for agent in AGENTS])
