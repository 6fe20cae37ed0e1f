"""Workers are stopped and replaced again and again while they have work: is all of it done, and once?"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Queue

from celery_canceltoken import State, get_record
from celery_canceltoken.task.stamp import Stamp
from tests.support.apps.rolling import ROLLING_APP, TASKS
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, ClientFactory, WorkerFactory, unique_name

POOLS = ["prefork", "threads", "gevent"]
CONCURRENCY = {"prefork": 4, "solo": 1}
SLOWEST_START, SLOWEST_STOP, STANDSTILL = 60, 25, 25
OFTEN_ENOUGH = 3
CONFIGURATION = {
    # Many a run gets nowhere here, and says so by being sent back.
    "canceltoken_max_shutdown_requeues": 1000,
}


@pytest.fixture
def worker_app() -> str:
    """The workers run the rolling tasks."""
    return ROLLING_APP


@dataclass(frozen=True)
class Way:
    """One way to stop a worker gracefully."""

    stop: Callable[[CeleryWorker], object]
    configuration: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop:
    """How a worker was stopped, while how many bodies ran, and how long that took."""

    pool: str
    way: str
    bodies: int
    seconds: float


def _signalled(number: int) -> Callable[[CeleryWorker], object]:
    return lambda worker: worker.kill(number)


WAYS = {
    "SIGTERM": Way(_signalled(signal.SIGTERM)),
    "SIGINT": Way(_signalled(signal.SIGINT)),
    "SIGQUIT": Way(_signalled(signal.SIGQUIT)),
    "SIGTERM to the group": Way(lambda worker: os.killpg(worker.pid, signal.SIGTERM)),
    "REMAP_SIGTERM": Way(_signalled(signal.SIGTERM), environment={"REMAP_SIGTERM": "SIGQUIT"}),
    "soft shutdown": Way(
        _signalled(signal.SIGQUIT),
        {"worker_soft_shutdown_timeout": 1.0, "worker_enable_soft_shutdown_on_idle": True},
    ),
    "control.shutdown": Way(lambda worker: worker.client.control.shutdown(destination=[worker.name])),
}


class Place:
    """Where a worker of one pool is always running, or being replaced."""

    def __init__(self, rollout: Rollout, pool: str) -> None:
        self.rollout = rollout
        self.pool = pool
        self.stops: list[Stop] = []
        self.waits_for: Callable[[], bool] = lambda: True
        self._deadline, self._goal = float("inf"), ""
        self._drawn = random.Random(f"{rollout.seed}/{pool}")
        self._ways: list[str] = []
        self._life = self._live()

    def look(self) -> None:
        """Let it go on, if what it waits for has come."""
        if self.waits_for():
            next(self._life)
        elif time.monotonic() > self._deadline:
            raise AssertionError(f"waited in vain until {self._goal}:\n{self.worker.logs()[-6000:]}")

    def _wait(self, seconds: float, goal: str, holds: Callable[[], bool]) -> None:
        self._deadline, self._goal, self.waits_for = time.monotonic() + seconds, goal, holds

    def _live(self) -> Iterator[None]:
        while True:
            way_name = self._next_way()
            way = WAYS[way_name]
            self.worker = worker = self.rollout.start_worker(self.pool, way)
            title = f"the {self.pool} worker that {way_name} is to stop"
            self._wait(SLOWEST_START, f"{title} is ready", lambda worker=worker: self._is_ready(worker))
            yield
            due = time.monotonic() + self._drawn.uniform(0.4, 3.0)
            self._wait(
                float("inf"),
                f"{title} has work",
                lambda due=due: time.monotonic() >= due and self._bodies() > 0,
            )
            yield
            family, bodies = worker.children(), self._bodies()
            asked_at = time.monotonic()
            way.stop(worker)
            self._wait(SLOWEST_STOP, f"{title} has ended", lambda worker=worker: not worker.is_running)
            yield
            self.stops.append(Stop(self.pool, way_name, bodies, time.monotonic() - asked_at))
            _, alive = psutil.wait_procs(family, timeout=5)
            assert not alive, f"{title} has left {alive}:\n{worker.logs()[-6000:]}"

    def _next_way(self) -> str:
        # Each of them, before one comes again.
        if not self._ways:
            self._ways = self._drawn.sample(list(WAYS), len(WAYS))
        return self._ways.pop()

    @staticmethod
    def _is_ready(worker: CeleryWorker) -> bool:
        assert worker.is_running, f"a worker ended with {worker.exit_code}:\n{worker.logs()[-6000:]}"
        return f"{worker.name} ready." in worker.logs()

    def _bodies(self) -> int:
        return int(self.rollout.redis.scard(f"bodies:{self.worker.name}"))


class Rollout:
    """Tasks, and workers that are replaced while they run them."""

    def __init__(
        self,
        worker_factory: WorkerFactory,
        client_factory: ClientFactory,
        server: EmbeddedServer,
        queue: str,
        broker_url: str,
    ) -> None:
        self._factory = worker_factory
        self._where = {"broker_url": broker_url, "result_backend": server.url}
        self.app: Celery = client_factory(**self._where, configuration=CONFIGURATION)
        self.redis = self.app.backend.client
        self.queue = queue
        self.workers: list[CeleryWorker] = []
        self.task_ids: list[str] = []
        self.places: list[Place] = []
        self.seed = 0

    def start_worker(self, pool: str, way: Way) -> CeleryWorker:
        """Start a worker that can be stopped in that way."""
        worker = self._factory(
            wait=False,
            pool=pool,
            concurrency=CONCURRENCY.get(pool, 8),
            configuration={**CONFIGURATION, **way.configuration},
            environment=way.environment,
            **self._where,
        )
        self.workers.append(worker)
        return worker

    def send(self, number: int) -> None:
        """Send tasks of all kinds."""
        drawn = random.Random(f"{self.seed}/tasks/{len(self.task_ids)}")
        for _ in range(number):
            name = drawn.choice(list(TASKS))
            longest = 14 if name.endswith("export") else 6
            arguments = (drawn.randint(1, longest), drawn.uniform(0.02, 0.12), drawn.choice(LOOKS))
            task_id = unique_name(name)
            # Brokers bring a message once at least: here some of them come twice.
            headers = Stamp.fresh().headers()
            for _ in range(drawn.choice([1, 1, 2])):
                self.app.tasks[name].apply_async(arguments, task_id=task_id, headers=headers)
            self.task_ids.append(task_id)

    def roll(self, tasks: int, pools: list[str], seed: int, restarts: int = 0) -> None:
        """Have all tasks done by workers that come and go; more tasks until those did so often enough."""
        self.seed = seed
        self.send(tasks)
        self.places = [Place(self, pool) for pool in pools]
        seen, since = -1, time.monotonic()
        while self.redis.scard("completed") < len(self.task_ids):
            for place in self.places:
                place.look()
            now_seen = int(self.redis.get("bodies") or 0)
            if now_seen != seen:
                seen, since = now_seen, time.monotonic()
            if time.monotonic() - since > STANDSTILL:
                return
            if self._has_restarted_too_little(restarts) and self._waiting() < tasks // 10:
                self.send(tasks // 10)
            time.sleep(0.03)

    def _has_restarted_too_little(self, restarts: int) -> bool:
        stops = [sum(stop.bodies > 0 for stop in place.stops) for place in self.places]
        return sum(stops) < restarts or min(stops) < OFTEN_ENOUGH

    def _waiting(self) -> int:
        return len(self.task_ids) - int(self.redis.scard("completed"))

    def end(self) -> None:
        """Stop what runs, when the broker has nothing more to bring."""
        for place in self.places:
            if place.worker.is_running:
                place.worker.wait_until_ready()
        # What is redelivered is not wanted any more, but has to be seen by somebody.
        wait_until(lambda: not self.messages(), description="the queue is empty")
        for place in self.places:
            if place.worker.is_running:
                place.worker.kill(signal.SIGTERM)
        for place in self.places:
            place.worker.wait()

    def messages(self) -> int:
        """How many wait in the queue."""
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            try:
                return int(Queue(self.queue, channel=channel).queue_declare(passive=True).message_count)
            except ChannelError:
                # On Redis an empty queue is none.
                return 0

    def summary(self) -> Summary:
        """What has come of it."""
        return Summary(self)


LOOKS = ["sleeps", "waits", "checks"]


class Summary:
    """What the diaries, the records and the results say, and how they contradict what was promised."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        self._redis = rollout.redis
        self.counts: Counter[str] = Counter()
        self.contradictions: list[str] = []
        for task_id in rollout.task_ids:
            self._check(task_id)
        self.stops = [stop for place in rollout.places for stop in place.stops]

    def __str__(self) -> str:
        figures = ["completed", "overlaps", "second completions", "lost", "runs", "cut short"]
        told = ", ".join(f"{figure} {self.counts[figure]}" for figure in figures)
        used = Counter(stop.way for stop in self.stops)
        ways = ", ".join(f"{way} {used[way]}" for way in sorted(used))
        at_work = sum(stop.bodies > 0 for stop in self.stops)
        slowest = max(self.stops, key=lambda stop: stop.seconds, default=None)
        return (
            f"seed {self._rollout.seed}, {len(self._rollout.task_ids)} tasks: {told}\n"
            f"{len(self.stops)} restarts, {at_work} of them while bodies ran: {ways}\n"
            f"the slowest: {slowest}"
        )

    def diary(self, task_id: str) -> list[dict[str, Any]]:
        """All runs of an id that have ended, by the time they began."""
        lines = [json.loads(line) for line in self._redis.lrange(f"diary:{task_id}", 0, -1)]
        return sorted(lines, key=lambda line: float(line["start"]))

    def _check(self, task_id: str) -> None:
        diary = self.diary(task_id)
        starts = [run.decode() for run in self._redis.lrange(f"starts:{task_id}", 0, -1)]
        completions = sum(line["completed"] for line in diary)
        record = get_record(task_id, app=self._rollout.app)
        result = self._rollout.app.backend.get_task_meta(task_id, cache=False)["status"]
        overlaps = sum(line["at_once"] != 1 for line in diary) + sum(
            later["start"] < earlier["end"] for earlier, later in itertools.pairwise(diary)
        )
        cut_short = set(starts) - {line["run"] for line in diary}
        self.counts["runs"] += len(starts)
        self.counts["completed"] += completions > 0
        self.counts["lost"] += completions == 0
        self.counts["second completions"] += max(0, completions - 1)
        self.counts["overlaps"] += overlaps
        self.counts["cut short"] += len(cut_short)
        promises = {
            "completed once": completions == 1,
            "one run at a time": overlaps == 0,
            "no run is cut short": not cut_short,
            "the counter is back at 0": int(self._redis.get(f"running:{task_id}") or 0) == 0,
            "the record says so": record is not None and record.state is State.SUCCEEDED,
            "the result says so": result == "SUCCESS",
            "an export goes on from where it was": "export" not in task_id
            or all(one["to"] == two["from"] for one, two in itertools.pairwise(diary)),
        }
        broken = [promise for promise, is_kept in promises.items() if not is_kept]
        if broken:
            self.contradictions += [f"{task_id}: not {', '.join(broken)}; {result}", *map(str, diary)]
            self.contradictions += [f"  began, and has not ended: {run}" for run in cut_short]
            self.contradictions += [f"  {change}" for change in (record.history if record else ())]
            self.contradictions += [f"  {record}", *self._log_of(task_id)]

    def _log_of(self, task_id: str) -> list[str]:
        return sorted(
            f"  {line.partition(':')[0]} {worker.name}: {line}"
            for worker in self._rollout.workers
            for line in worker.logs().splitlines()
            if task_id in line
        )


@pytest.fixture(params=["redis", "rabbitmq"])
def rollout(
    request: pytest.FixtureRequest,
    worker_factory: WorkerFactory,
    client_factory: ClientFactory,
    private_valkey: EmbeddedServer,
    queue: str,
) -> Rollout:
    """Tasks and workers on a broker of each kind in turn."""
    broker_url = private_valkey.url
    if request.param == "rabbitmq":
        broker_url = request.getfixturevalue("rabbitmq").url
    return Rollout(worker_factory, client_factory, private_valkey, queue, broker_url)


def _roll(rollout: Rollout, tasks: int, pools: list[str], seed: int, restarts: int = 0) -> Summary:
    rollout.roll(tasks, pools, seed, restarts)
    rollout.end()
    summary = rollout.summary()
    left = rollout.messages() + int(rollout.redis.hlen("unacked"))
    found = summary.contradictions
    if left:
        found = [*found, f"{left} messages are left"]
    assert not found, "\n".join([*found, str(summary)])
    return summary


@pytest.mark.timeout(180)
def test_rolling_restart(rollout: Rollout) -> None:
    """Each of 300 tasks is done once, though every worker is stopped at least three times meanwhile."""
    summary = _roll(rollout, tasks=300, pools=POOLS, seed=1)
    for place in rollout.places:
        at_work = [stop for stop in place.stops if stop.bodies]
        assert len(at_work) >= OFTEN_ENOUGH, f"{place.pool}: {place.stops}\n{summary}"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_restarts(rollout: Rollout, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with all pools, 3,000 tasks and a hundred restarts."""
    summary = _roll(
        rollout, 3000, ["prefork", "threads", "gevent", "solo", "eventlet"], random.randrange(10**6), 100
    )
    with capsys.disabled():
        sys.stdout.write(f"\n{summary}\n")
