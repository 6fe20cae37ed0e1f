"""Two hundred clients order the same fifty tasks about while workers run them: were they told the truth?"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import Celery

from celery_canceltoken import (
    Outcome,
    RequestHandle,
    State,
    TaskRecord,
    delete,
    get_record,
    list_records,
    requeue,
    reschedule,
    revoke,
    withdraw,
)
from celery_canceltoken.configuration import client_store
from tests.support.apps.contested import CONTESTED_APP, journal_of
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import ClientFactory, WorkerFactory, unique_name

CLIENTS, TASKS = 200, 50
ORDERS = {"requeue": 40, "revoke": 25, "reschedule": 10, "withdraw-own": 12, "withdraw-any": 12, "delete": 1}
RANK = {"requeue": 0, "revoke": 1, "delete": 2}
CAUSES = {"requeue": "REQUEUED", "revoke": "REVOKED", "delete": "DELETED"}
RESULTS = {
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.REVOKED: "REVOKED",
    State.DELETED: "REVOKED",
}
RUNNING = (State.PROCESSING, State.FINISHING)
WAITING = (None, State.ENQUEUED, State.SCHEDULED)
CONFIGURATION = {
    "canceltoken_keep_message": "always",
    # Two hundred threads of one interpreter are slow to read what the server has answered.
    "canceltoken_store_timeout": 5.0,
    "canceltoken_check_interval": 1.0,
}
THINKS = 2.0
PATIENCE = 30


@pytest.fixture
def worker_app() -> str:
    """The workers run the contested task."""
    return CONTESTED_APP


@dataclass(frozen=True)
class Order:
    """What one thread asked, under a reason of its own, and what it was told."""

    reason: str
    handle: RequestHandle
    outcome: Outcome | None = None
    """None where it was refused."""
    withdrawn_by_its_owner: bool = False
    asked_at: float = 0.0
    answered_at: float = 0.0
    due: float = 0.0
    """When a task that was rescheduled is to run; 0 without a time."""

    @property
    def kind(self) -> str:
        return self.handle.kind

    @property
    def is_forgotten(self) -> bool:
        """More than twenty changes were made before its thread came to ask what had come of it."""
        return self.outcome is not None and self.outcome.state is None and self.outcome.cause is None

    @property
    def takes_effect_at_once(self) -> bool:
        """What does not run is sent again by the order itself."""
        return self.handle.applied and self.kind == "requeue" and self.handle.previous not in RUNNING

    @property
    def took_effect(self) -> bool:
        """As told, and as far as that is known."""
        told = self.outcome
        if told is None or self.is_forgotten:
            return self.takes_effect_at_once
        return not (told.came_too_late or told.withdrawn or told.overruled)


@dataclass
class Fight:
    """All that the threads have asked; any of them may append."""

    app: Celery
    task_ids: list[str]
    seed: int
    orders: list[Order] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    withdrawals: int = 0
    never: threading.Event = field(default_factory=threading.Event)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def rage(self, seconds: float) -> None:
        """Let all clients order about for so long, each waiting for what comes of what was applied."""
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(number, end), name=f"client-{number}")
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 2 * PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
        assert not self.errors, f"{len(self.errors)} errors, the first: {self.errors[0]!r}"

    def _client(self, number: int, end: float) -> None:
        drawn = random.Random(f"{self.seed}/client/{number}")
        try:
            while time.monotonic() < end and not self.errors:
                task_id = drawn.choice(self.task_ids)
                self._order(drawn.choices(list(ORDERS), list(ORDERS.values()))[0], task_id, drawn)
                # Thinks, so that the others come to read what they were told before it is history.
                self.never.wait(drawn.uniform(0, THINKS))
        except BaseException as error:  # It is raised where the threads are joined.
            self.errors.append(error)

    def _order(self, what: str, task_id: str, drawn: random.Random) -> None:
        if what == "withdraw-any":
            self.withdrawals += bool(withdraw(task_id, app=self.app))
            return
        reason = f"{what}-{next(self.numbers)}"
        words: dict[str, Any] = {"reason": reason, "app": self.app}
        taken_back, countdown, asked_at = False, 0.0, time.time()
        if what == "reschedule":
            countdown = drawn.choice([0.0, 0.3, 1.0])
            handle = reschedule(task_id, countdown=countdown, **words)
        elif what == "withdraw-own":
            handle = drawn.choice([revoke, requeue, revoke])(task_id, **words)
            taken_back = bool(handle) and bool(withdraw(handle, app=self.app))
        else:
            handle = {"requeue": requeue, "revoke": revoke, "delete": delete}[what](task_id, **words)
        answered_at = time.time()
        try:
            outcome = handle.wait(PATIENCE) if handle else None
        except TimeoutError as error:
            said = f"{reason}, {handle}, {handle.previous}"
            raise TimeoutError(f"{said} brought nothing: {handle.record()}") from error
        due = asked_at + countdown if countdown else 0.0
        self.orders.append(Order(reason, handle, outcome, taken_back, asked_at, answered_at, due))

    def summary(self) -> str:
        """How often what was asked, and what came of it."""
        came = Counter((order.kind, _said(order)) for order in self.orders)
        lines = [f"{kind:8} {said:24} {count:6}" for (kind, said), count in sorted(came.items())]
        journals = [line for task_id in self.task_ids for line in journal_of(self.app, task_id)]
        runs = sum(line["event"] == "start" for line in journals)
        heard = sum(line.get("heard", False) for line in journals)
        states = Counter(str(get_record(task_id, app=self.app).state.value) for task_id in self.task_ids)  # type: ignore[union-attr]
        ends = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return "\n".join(
            [
                f"{len(self.orders)} orders, {runs} runs, {heard} of them told to stop; in the end {ends}",
                *lines,
            ]
        )


def _said(order: Order) -> str:
    if order.outcome is None:
        return "refused"
    if order.is_forgotten:
        return "forgotten"
    for word in ("came_too_late", "withdrawn", "overruled", "completed"):
        if getattr(order.outcome, word):
            return word
    return "effective"


class Case:
    """One id at the end: its record and result, what its bodies wrote down, and what was asked of it."""

    def __init__(self, fight: Fight, task_id: str) -> None:
        app = fight.app
        record = get_record(task_id, app=app)
        assert record is not None
        self.record: TaskRecord = record
        self.result: dict[str, Any] = app.backend.get_task_meta(task_id, cache=False)
        journal = journal_of(app, task_id)
        self.journal = journal
        self.starts = [line for line in journal if line["event"] == "start"]
        self.ends = [line for line in journal if line["event"] == "end"]
        self.orders = [order for order in fight.orders if order.handle.task_id == task_id]
        # Of each order it is known what came of it.
        self.is_complete = not any(
            order.is_forgotten and not order.takes_effect_at_once for order in self.orders
        )
        self.still_running = int(app.backend.client.get(f"running:{task_id}") or 0)
        self.contradictions: list[str] = []

    def heard(self, order: Order) -> list[dict[str, Any]]:
        """The runs whose token tripped for that very order."""
        return [end for end in self.ends if end["reason"] == order.reason]

    def demand(self, holds: object, what: str, order: Order | None = None) -> None:
        """Note a contradiction."""
        if not holds:
            about = "" if order is None else f": {order.reason}, {order.handle}, {order.outcome!r}"
            self.contradictions.append(f"{self.record.task_id}: {what}{about}")

    def check(self) -> list[str]:
        """Compare all with all, and return the contradictions."""
        self._check_runs()
        self._check_result()
        for order in self.orders:
            self._check_order(order)
        self._check_times()
        self._check_number_of_runs()
        return [*self.contradictions, self._story()] if self.contradictions else []

    def _story(self) -> str:
        """What there is to go by, in the order of time."""
        lines = [
            (
                change.at.timestamp(),
                f"{change.state} {change.attempt}: {change.request_kind} {change.reason} {change.answer}",
            )
            for change in self.record.history
        ]
        lines += [(float(line["at"]), f"    {line}") for line in self.journal]
        return "\n".join(f"{at:.3f} {what}" for at, what in sorted(lines))

    def _check_runs(self) -> None:
        self.demand(self.still_running == 0, "a run has not ended")
        self.demand(all(start["at_once"] == 1 for start in self.starts), "two runs at once")
        self.demand(
            sorted(start["run"] for start in self.starts) == sorted(end["run"] for end in self.ends),
            "a run without an end",
        )
        asked = {order.reason: order for order in self.orders}
        for end in self.ends:
            if end["heard"]:
                order = asked.get(end["reason"])
                self.demand(order is not None and order.handle, f"a token tripped for {end['reason']}")
                if order is not None:
                    self.demand(end["cause"] == CAUSES[order.kind], f"its cause was {end['cause']}", order)

    def _check_result(self) -> None:
        record = self.record
        state = record.state
        self.demand(state in RESULTS, f"not final: {state}")
        if state in RESULTS:
            self.demand(
                self.result["status"] == RESULTS[state], f"{state}, but the result is {self.result['status']}"
            )
        if state in (State.REVOKED, State.DELETED):
            self.demand(
                str(self.result["result"]) == record.reason,
                f"{record.reason!r}, but the result says {self.result['result']!r}",
            )
            named = [order for order in self.orders if order.reason == record.reason]
            self.demand(named and named[0].took_effect, f"its reason is {record.reason}")

    def _check_order(self, order: Order) -> None:
        told, heard = order.outcome, self.heard(order)
        self.demand(len(heard) <= 1, "heard by several runs", order)
        if told is None:
            self.demand(not heard, "refused, and heard by a body", order)
            return
        if order.is_forgotten:
            return
        if order.withdrawn_by_its_owner:
            self.demand(told.withdrawn, "withdrawn, and its outcome says otherwise", order)
        if told.withdrawn:
            self.demand(not heard, "withdrawn, and heard by a body", order)
        elif told.overruled:
            higher = [one for one in self.orders if one.handle and RANK[one.kind] > RANK[order.kind]]
            self.demand(higher, "overruled by nothing", order)
        elif told.came_too_late:
            self._check_too_late(order, heard)
        elif order.kind == "requeue":
            self._check_requeue(order, heard)
        elif order.handle.previous in WAITING:
            self.demand(not heard, "asked of a waiting task, and heard by a body", order)
            self.demand(
                told.state is (State.REVOKED if order.kind == "revoke" else State.DELETED), "the state", order
            )
        elif order.kind == "revoke":
            self.demand(told.state is State.REVOKED, "the state", order)
            overruled = [one for one in self.orders if one.outcome is not None and one.outcome.overruled]
            instead = [end for one in overruled for end in self.heard(one)]
            saw = [end for end in heard + instead if end["looked"]]
            self.demand(saw or not self.is_complete, "no body saw it", order)
        else:
            self.demand(told.state is State.DELETED, "the state", order)

    def _check_too_late(self, order: Order, heard: list[dict[str, Any]]) -> None:
        state = order.outcome.state if order.outcome else None
        self.demand(order.kind == "revoke", "too late", order)
        self.demand(order.handle.previous is State.PROCESSING, "too late for what did not run", order)
        self.demand(state in (State.SUCCEEDED, State.FAILED), "too late, and not completed", order)
        for end in heard:
            self.demand(not end["looked"] or end["manner"] == "disregards", "heeded, and too late", order)
        completed = [
            end for end in self.ends if not (end["heard"] and end["looked"]) or end["manner"] == "disregards"
        ]
        self.demand(completed, "too late, and no body had completed", order)

    def _check_requeue(self, order: Order, heard: list[dict[str, Any]]) -> None:
        told = order.outcome
        assert told is not None
        self.demand(told.state in (State.ENQUEUED, State.SCHEDULED), "the state", order)
        self.demand(not heard or order.handle.previous is State.PROCESSING, "heard by a run after it", order)
        for end in heard:
            as_usual = not end["looked"] or end["manner"] == "disregards"
            self.demand(told.completed == as_usual, f"completed, but its body: {end}", order)
            later = [start for start in self.starts if start["run"] > end["run"]]
            self.demand(later or self._denials() or not self.is_complete, "nothing ran after it", order)

    def _denials(self) -> list[Order]:
        return [
            order
            for order in self.orders
            if order.took_effect and order.kind != "requeue" and order.handle.previous in WAITING
        ]

    def _check_times(self) -> None:
        moves = [order for order in self.orders if order.kind == "requeue" and order.handle]
        for order in moves:
            if not (order.due and order.takes_effect_at_once):
                continue
            for start in self.starts:
                if not order.answered_at < start["at"] < order.due - 0.05:
                    continue
                others = [
                    one
                    for one in moves
                    if one is not order and one.answered_at > order.asked_at and one.asked_at < start["at"]
                ]
                self.demand(others, f"run {start['run']} came before its time", order)

    def _check_number_of_runs(self) -> None:
        # Every message that was wanted has either run or been denied; to reschedule what waits makes none.
        sent_again = [
            order
            for order in self.orders
            if order.took_effect and order.kind == "requeue" and order.handle.previous not in WAITING
        ]
        wanted = 1 + len(sent_again)
        runs, denials = len(self.starts), len(self._denials())
        self.demand(
            runs == wanted - denials or not self.is_complete,
            f"{runs} runs, but {len(sent_again)} orders to run again and {denials} denials",
        )


def _unfinished(fight: Fight) -> list[TaskRecord | str]:
    # By their records: a list would be repaired by being read.
    records = {task_id: get_record(task_id, app=fight.app) for task_id in fight.task_ids}
    return [
        record or task_id
        for task_id, record in records.items()
        if record is None or record.state is None or not record.state.is_final
    ]


def _contradictions(fight: Fight) -> list[str]:
    app = fight.app
    keys, redis = client_store(app).keys, app.backend.client
    cases = [Case(fight, task_id) for task_id in fight.task_ids]
    found = [one for case in cases for one in case.check()]
    if sum(case.is_complete for case in cases) < 0.8 * len(cases):
        found.append("too few tasks of which all is known: this machine is too slow for so many threads")
    records = {case.record.task_id: case.record for case in cases}
    for (task_id, record), state in itertools.product(records.items(), State):
        # Before anything is listed, which would repair the lists.
        there = redis.zscore(keys.listed("state", state.value), task_id) is not None
        if there != (record.state is state):
            found.append(f"{task_id}: {record.state}, and listed as {state}: {there}")
    states = {task_id: record.state for task_id, record in records.items()}
    for wanted in ({}, {"name": "contested"}):
        page = list_records(**wanted, limit=10_000, app=app)  # type: ignore[arg-type]
        if {one.task_id: one.state for one in page if one.task_id in records} != states:
            found += [f"the list {wanted} is another one than the records"]
    return found


def _left_behind(app: Celery, queue: str) -> list[str]:
    keys, redis = client_store(app).keys, app.backend.client
    left = [key.decode() for key in redis.scan_iter(f"{keys.owned('*.')}*")]
    return left + [key for key in (queue, "unacked", "unacked_index", keys.outbox) if redis.exists(key)]


class Arena:
    """Two workers of different kinds, and rounds of fights over ever new tasks."""

    def __init__(
        self,
        worker_factory: WorkerFactory,
        client_factory: ClientFactory,
        server: EmbeddedServer,
        queue: str,
    ) -> None:
        where = {"broker_url": server.url, "result_backend": server.url, "configuration": CONFIGURATION}
        worker_factory(pool="prefork", concurrency=4, **where)
        worker_factory(pool="threads", concurrency=8, **where)
        self.app = client_factory(**where)
        self.queue = queue

    def fight(self, seconds: float, seed: int) -> Fight:
        """Let them fight, wait until all is quiet, and find nothing that contradicts anything else."""
        fight = Fight(self.app, [unique_name(f"contested-{number}") for number in range(TASKS)], seed)
        for task_id in fight.task_ids:
            self.app.tasks["contested"].apply_async((seed,), task_id=task_id)
        fight.rage(seconds)
        wait_until(
            lambda: not _unfinished(fight),
            timeout=PATIENCE,
            description=lambda: f"all runs are over: {_unfinished(fight)}",
        )
        wait_until(
            lambda: not _left_behind(self.app, self.queue),
            timeout=PATIENCE,
            description=lambda: f"all is carried out: {_left_behind(self.app, self.queue)} are left",
        )
        found = _contradictions(fight)
        assert not found, "\n".join([f"seed {seed}, {len(found)} contradictions", *found, fight.summary()])
        return fight


@pytest.fixture
def arena(
    worker_factory: WorkerFactory, client_factory: ClientFactory, private_valkey: EmbeddedServer, queue: str
) -> Arena:
    """A server and workers for one fight."""
    return Arena(worker_factory, client_factory, private_valkey, queue)


@pytest.mark.timeout(180)
def test_two_hundred_clients_and_fifty_tasks(arena: Arena) -> None:
    """Whatever is asked of the same tasks at once, each answer is what the bodies say has happened."""
    arena.fight(seconds=6, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_two_hundred_clients_for_five_minutes(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    """The same again and again, each time with other tasks and from another seed."""
    end, seed = time.monotonic() + 300, random.randrange(1_000_000)
    while time.monotonic() < end:
        fight = arena.fight(seconds=20, seed=seed)
        with capsys.disabled():
            sys.stdout.write(f"\nseed {seed}: {fight.summary()}\n")
        seed += 1
