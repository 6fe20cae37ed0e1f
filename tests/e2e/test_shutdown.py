"""A worker stops, in every way there is: bodies are told, and what has not ended goes back to its queue."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import chain, chord, group
from celery.contrib.testing.worker import start_worker

from celery_canceltoken import Cause, State, TaskRecord, delete, requeue, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.stoppable import SECOND_RUN, STOPPABLE_APP, make_app
from tests.support.proxy import ToxicProxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, SharedWorkers, WorkerFactory, private_names

GREEN = ("gevent", "eventlet")
TOLD = ["started", "told:SHUTDOWN"]
PATIENT = {
    # Whoever waits for these, instead of for the bodies, is noticed.
    "canceltoken_terminate_grace": 30.0,
}


@pytest.fixture
def worker_app() -> str:
    """Tests here run tasks that tell whether they were told."""
    return STOPPABLE_APP


@pytest.fixture
def heir(shared_workers: SharedWorkers, queue: str) -> Iterator[CeleryWorker]:
    """The worker that all tests share, which takes over this test's queue when it is told to."""
    worker = shared_workers("threads", STOPPABLE_APP)
    yield worker
    worker.client.control.cancel_consumer(queue, destination=[worker.name])


def take_over(heir: CeleryWorker, queue: str) -> None:
    """Have *heir* run what waits in *queue*."""
    assert heir.client.control.add_consumer(queue, destination=[heir.name], reply=True, timeout=10)


def waiting_in(worker: CeleryWorker) -> list[tuple[str, int]]:
    """The ids in a worker's queue, with the number of retries that their messages tell; Redis only."""
    messages = worker.client.backend.client.lrange(worker.queue, 0, -1)
    headers = [json.loads(message)["headers"] for message in messages]
    return [(header["id"], header["retries"]) for header in headers]


def record_of(job: Job) -> TaskRecord:
    """Its record, which there is."""
    record = job.record()
    assert record is not None
    return record


# -- the ways


def _signal(number: int) -> Callable[[CeleryWorker], None]:
    return lambda worker: worker.kill(number)


def _twice(worker: CeleryWorker) -> None:
    worker.kill(signal.SIGINT)
    worker.wait_for_log("this worker is draining")
    worker.kill(signal.SIGINT)


def _whole_group(worker: CeleryWorker) -> None:
    os.killpg(worker.pid, signal.SIGTERM)


def _by_control(worker: CeleryWorker) -> None:
    worker.client.control.shutdown(destination=[worker.name])


@dataclass(frozen=True)
class Way:
    """A way to stop a worker."""

    stop: Callable[[CeleryWorker], None]
    configuration: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


WAYS = {
    "SIGTERM": Way(_signal(signal.SIGTERM)),
    "SIGINT": Way(_signal(signal.SIGINT)),
    # The first one leaves bodies their grace.
    "SIGINT-twice": Way(_twice, {"canceltoken_shutdown_grace": 60.0}),
    "SIGQUIT": Way(_signal(signal.SIGQUIT), {"canceltoken_shutdown_grace": 60.0}),
    "REMAP_SIGTERM": Way(_signal(signal.SIGTERM), environment={"REMAP_SIGTERM": "SIGQUIT"}),
    "soft": Way(_signal(signal.SIGQUIT), {"worker_soft_shutdown_timeout": 30.0}),
    "soft-on-idle": Way(
        _signal(signal.SIGQUIT),
        {"worker_soft_shutdown_timeout": 1.0, "worker_enable_soft_shutdown_on_idle": True},
    ),
    "group": Way(_whole_group),
    "control": Way(_by_control),
}
# Where a pool runs in the main process, its group is that process; and solo hears no control while it works.
EVERY_POOL = {
    "prefork": list(WAYS),
    "threads": [way for way in WAYS if way != "group"],
    "gevent": [way for way in WAYS if way != "group"],
    "eventlet": [way for way in WAYS if way != "group"],
    "solo": [way for way in WAYS if way not in ("group", "control")],
}
QUICK = {
    "prefork": ["SIGTERM", "SIGINT-twice", "SIGQUIT", "REMAP_SIGTERM", "soft", "group", "control"],
    "threads": ["SIGTERM", "SIGINT-twice", "SIGQUIT", "control"],
    "gevent": ["SIGTERM", "SIGQUIT", "soft"],
    "eventlet": ["SIGQUIT"],
    "solo": ["SIGTERM", "SIGQUIT"],
}


def _ways_and_pools() -> Iterator[Any]:
    for pool, ways in EVERY_POOL.items():
        for way in ways:
            marks = () if way in QUICK[pool] else (pytest.mark.soak,)
            yield pytest.param(way, pool, id=f"{pool}-{way}", marks=marks)


@pytest.mark.parametrize(("way", "pool"), list(_ways_and_pools()))
def test_every_way_of_stopping(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, way: str, pool: str
) -> None:
    """Bodies are told and go back to their queue, the rest goes back untouched, and all end elsewhere."""
    worker = worker_factory(
        pool=pool,
        concurrency=1 if pool == "solo" else 2,
        configuration={**PATIENT, **WAYS[way].configuration},
        environment=WAYS[way].environment,
    )
    running = [send(worker, "late_work", "late").wait_until_started()]
    if pool != "solo":
        running.append(send(worker, "work", "early").wait_until_started())
    prefetched = [send(worker, task) for task in ("quick", "late_quick")]
    # A solo worker takes no message while it works, a green one no second one that finds its pool full.
    for job in prefetched[: {"solo": 0, "gevent": 1, "eventlet": 1}.get(pool, 2)]:
        worker.wait_for_log(f"[{job.id}] received")

    begun = time.monotonic()
    WAYS[way].stop(worker)
    worker.wait(15)
    assert time.monotonic() - begun < 12

    assert [job.journal() for job in running] == [TOLD] * len(running)
    for job in running:
        record = record_of(job)
        assert (record.state, record.generation, record.attempt) == (State.ENQUEUED, 1, 1)
        assert record.shutdown_requeues == 1
        assert job.stored()[0] == "PENDING"
    assert [(job.journal(), job.record()) for job in prefetched] == [([], None)] * 2
    assert set(waiting_in(worker)) == {(job.id, 0) for job in (*running, *prefetched)}
    # Had it been given back to a worker that takes messages still, that might have been this very worker.
    assert max(worker.logs().count(f"[{job.id}] given back") for job in prefetched) <= 1

    take_over(heir, queue)
    ended = [job.wait_until_stored("SUCCESS") for job in running]
    assert ended == [[SECOND_RUN, "late"], [SECOND_RUN, "early"]][: len(running)]
    assert [job.wait_until_stored("SUCCESS") for job in prefetched] == ["done", "done"]
    assert_ran_once(running, prefetched)


def assert_ran_once(stopped: list[Job], untouched: list[Job]) -> None:
    """What was stopped has had two runs, one after the other, and the rest one."""
    wait_until(
        lambda: all(record_of(job).state is State.SUCCEEDED for job in (*stopped, *untouched)),
        description="all records are final",
    )
    assert [job.journal() for job in stopped] == [[*TOLD, "started", "completed"]] * len(stopped)
    assert [record_of(job).attempt for job in stopped] == [2] * len(stopped)
    assert [job.journal() for job in untouched] == [["started", "completed"]] * len(untouched)
    assert [record_of(job).attempt for job in untouched] == [1] * len(untouched)


# -- who may finish, and what becomes of whom

SOAK = pytest.mark.soak
BOTH = pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=SOAK)])


def stop_and_wait(worker: CeleryWorker, number: int = signal.SIGTERM, timeout: float = 20.0) -> None:
    """Stop a worker and wait until it is gone."""
    worker.kill(number)
    worker.wait(timeout)


@pytest.mark.parametrize(
    "pool", ["prefork", pytest.param("threads", marks=SOAK), pytest.param("gevent", marks=SOAK)]
)
def test_the_rows_of_a_shutdown(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, gate: str, pool: str
) -> None:
    """How a body ends that was told of a shutdown decides what becomes of it."""
    worker = worker_factory(pool=pool, concurrency=6, configuration=PATIENT)
    ends = {how: send(worker, "end_as", how) for how in ("return", "disregard", "raise", "retry")}
    ends["unlooked"] = send(worker, "end_as", "unlooked", gate)
    for job in ends.values():
        job.wait_until_started()
    worker.kill(signal.SIGTERM)
    worker.wait_for_log(f"end_as[{ends['unlooked'].id}] told to stop: SHUTDOWN")
    open_gate(worker.client, gate)
    worker.wait(15)

    assert ends["disregard"].stored() == ("SUCCESS", "disregard")
    assert ends["unlooked"].stored() == ("SUCCESS", "unlooked")
    state, error = ends["raise"].stored()
    assert (state, repr(error)) == ("FAILURE", "RuntimeError('of its own')")
    states = {how: record_of(job).state for how, job in ends.items()}
    assert states == {
        "return": State.ENQUEUED,
        "disregard": State.SUCCEEDED,
        "raise": State.FAILED,
        "retry": State.ENQUEUED,
        "unlooked": State.SUCCEEDED,
    }
    assert sorted(waiting_in(worker)) == sorted([(ends["return"].id, 0), (ends["retry"].id, 1)])
    take_over(heir, queue)
    for how in ("return", "retry"):
        assert ends[how].wait_until_stored("SUCCESS") == SECOND_RUN
    assert [job.starts() for job in ends.values()] == [2, 1, 1, 2, 1]


@BOTH
def test_policies_of_tasks(worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str) -> None:
    """A task may be failed rather than sent back, left alone, or given time, each as it says."""
    worker = worker_factory(pool=pool, concurrency=6, configuration=PATIENT)
    errback = worker.client.tasks["note_error"].s()
    failing = send(worker, "failing_work", link_error=errback)
    ignoring = send(worker, "ignoring_work", "left alone", 3.0)
    finishing = send(worker, "patient_work", "in time", 3.0)
    overdue = send(worker, "graceful_work", "overdue")
    for job in (failing, ignoring, finishing, overdue):
        job.wait_until_started()
    begun = time.monotonic()
    stop_and_wait(worker)

    state, error = failing.stored()
    assert (state, type(error).__name__) == ("FAILURE", "ShutdownError")
    record = record_of(failing)
    assert (record.state, record.cause, record.shutdown_requeues) == (State.FAILED, Cause.SHUTDOWN, 0)
    assert failing.journal()[:2] == TOLD
    assert "ShutdownError" in failing.journal()[2]
    for job, value in ((ignoring, "left alone"), (finishing, "in time")):
        assert job.stored() == ("SUCCESS", value)
        assert job.journal() == ["started", "completed"]
    assert overdue.journal() == TOLD
    assert told_at(overdue) - begun >= 1.0
    assert waiting_in(worker) == [(overdue.id, 0)]


def told_at(job: Job) -> float:
    """When the body noted that it was told, on the monotonic clock."""
    lines = job.app.backend.client.lrange(f"journal:{job.id}", 0, -1)
    (told,) = [line for line in lines if line.startswith(b"told:")]
    return int(told.split()[1]) / 1e9


def test_policies_of_the_app(worker_factory: WorkerFactory) -> None:
    """The settings hold for tasks that say nothing of their own."""
    configuration = {**PATIENT, "canceltoken_shutdown_policy": "fail", "canceltoken_shutdown_grace": 60.0}
    worker = worker_factory(pool="threads", concurrency=4, configuration=configuration)
    failing = send(worker, "work", "in time", 2.0)
    sent_back = send(worker, "requeued_work", "in time", 2.0)
    hurried = send(worker, "hurried_work")
    for job in (failing, sent_back, hurried):
        job.wait_until_started()
    worker.kill(signal.SIGTERM)
    hurried.wait_until_noted("told:SHUTDOWN")
    assert hurried.wait_until_final().state is State.FAILED
    worker.wait(15)
    assert [job.journal() for job in (failing, sent_back)] == [["started", "completed"]] * 2
    assert waiting_in(worker) == []


@BOTH
def test_requests_during_a_shutdown(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str
) -> None:
    """Bodies that use their grace are revoked, deleted and requeued as ever; the last one ends the worker."""
    worker = worker_factory(pool=pool, concurrency=4, configuration=PATIENT)
    revoked, deleted, requeued = (send(worker, "patient_work").wait_until_started() for _ in range(3))
    worker.kill(signal.SIGTERM)
    worker.wait_for_log("this worker is draining")
    outcome = revoke(revoked.result, reason="not needed").wait(10)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "not needed")
    assert delete(deleted.result).wait(10).state is State.DELETED
    assert requeue(requeued.result).wait(10).state is State.ENQUEUED
    worker.wait(15)
    assert record_of(requeued).shutdown_requeues == 0
    assert waiting_in(worker) == [(requeued.id, 0)]
    take_over(heir, queue)
    assert requeued.wait_until_stored("SUCCESS") == [SECOND_RUN, "done"]


@BOTH
def test_workflows_complete_elsewhere(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str
) -> None:
    """Members of groups, chords and chains that were sent back complete their workflows later, once."""
    worker = worker_factory(pool=pool, concurrency=8, configuration=PATIENT)
    tasks = worker.client.tasks
    headers = [tasks["work"].s(number) for number in range(2)] + [tasks["late_work"].s(2)]
    counted = chord(headers)(tasks["total"].s())
    chained = chain(tasks["work"].s("link"), tasks["quick"].s()).apply_async()
    grouped = group(tasks["late_work"].s("one"), tasks["quick"].s("two")).apply_async()
    members = [Job(one) for one in (*counted.parent.results, chained.parent, grouped.results[0])]
    for job in members:
        job.wait_until_started()
    Job(grouped.results[1]).wait_until_stored("SUCCESS")
    stop_and_wait(worker)
    assert {one for one, _ in waiting_in(worker)} == {job.id for job in members}
    take_over(heir, queue)
    assert counted.get(timeout=20) == [[SECOND_RUN, 0], [SECOND_RUN, 1], [SECOND_RUN, 2]]
    assert chained.get(timeout=20) == [SECOND_RUN, "link"]
    assert grouped.get(timeout=20) == [[SECOND_RUN, "one"], "two"]
    assert [job.journal() for job in members] == [[*TOLD, "started", "completed"]] * len(members)


@pytest.mark.parametrize(("pool", "number"), [("prefork", signal.SIGTERM), ("threads", signal.SIGQUIT)])
def test_tasks_held_until_their_time(worker_factory: WorkerFactory, pool: str, number: int) -> None:
    """What a worker holds in memory until its time is in its queue once afterwards, with that time."""
    worker = worker_factory(pool=pool, concurrency=1, configuration=PATIENT)
    jobs = [send(worker, task, countdown=3600) for task in ("quick", "late_quick")]
    for job in jobs:
        worker.wait_for_log(f"[{job.id}] received")
    stop_and_wait(worker, number)
    messages = [json.loads(one) for one in worker.client.backend.client.lrange(worker.queue, 0, -1)]
    assert sorted(one["headers"]["id"] for one in messages) == sorted(job.id for job in jobs)
    assert all(one["headers"]["eta"] for one in messages)
    assert [(job.journal(), job.record()) for job in jobs] == [([], None)] * 2


@pytest.mark.parametrize(
    ("pool", "number"),
    [
        pytest.param("prefork", signal.SIGQUIT, id="prefork-SIGQUIT"),
        pytest.param("threads", signal.SIGTERM, id="threads-SIGTERM"),
        pytest.param("prefork", signal.SIGTERM, id="prefork-SIGTERM", marks=SOAK),
        pytest.param("threads", signal.SIGQUIT, id="threads-SIGQUIT", marks=SOAK),
    ],
)
def test_message_that_is_not_kept(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str, number: int
) -> None:
    """A body that heeds sends its own message back, whether a copy is kept or not."""
    worker = worker_factory(pool=pool, concurrency=2, configuration=PATIENT)
    jobs = [send(worker, task).wait_until_started() for task in ("unkept_work", "late_unkept_work")]
    stop_and_wait(worker, number)
    assert [job.journal() for job in jobs] == [TOLD] * 2
    take_over(heir, queue)
    for job in jobs:
        assert job.wait_until_stored("SUCCESS") == [SECOND_RUN, "done"]
    assert_ran_once(jobs, [])


# -- bodies that do not look

IMPATIENT = {"canceltoken_terminate_grace": 0.5}


@pytest.mark.parametrize(
    "way", ["SIGQUIT", pytest.param("soft", marks=SOAK), pytest.param("SIGINT-twice", marks=SOAK)]
)
def test_deaf_bodies_of_a_killed_child(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, way: str
) -> None:
    """A child whose body never looks is killed at a cold shutdown, and its task goes back to its queue."""
    configuration = {
        **WAYS[way].configuration,
        **IMPATIENT,
        "worker_soft_shutdown_timeout": 1.0 * (way == "soft"),
    }
    worker = worker_factory(concurrency=4, configuration=configuration)
    tasks = ("deaf", "late_deaf", "late_deaf_back")
    jobs = [send(worker, task, 60.0).wait_until_started() for task in tasks]
    WAYS[way].stop(worker)
    worker.wait(15)
    assert [job.journal() for job in jobs] == [["started"]] * 3
    assert [job.stored()[0] for job in jobs] == ["PENDING"] * 3
    assert [(record_of(job).state, record_of(job).generation) for job in jobs] == [(State.ENQUEUED, 1)] * 3
    take_over(heir, queue)
    for job in jobs:
        assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert [job.starts() for job in jobs] == [2] * 3
    for job in jobs:
        assert f"[{job.id}] has not stopped in time: its process is killed" in worker.logs()


@pytest.mark.parametrize(
    "pool", ["threads", "gevent", pytest.param("solo", marks=SOAK), pytest.param("eventlet", marks=SOAK)]
)
def test_deaf_bodies_elsewhere(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str
) -> None:
    """Where there is no process to be killed, a cold shutdown waits for a body or ends it: it is not lost."""
    worker = worker_factory(pool=pool, concurrency=1 if pool == "solo" else 2, configuration=IMPATIENT)
    tasks = ("deaf", "late_deaf")[: worker_concurrency(pool)]
    jobs = [send(worker, task, 2.0).wait_until_started() for task in tasks]
    stop_and_wait(worker, signal.SIGQUIT)
    take_over(heir, queue)
    for job in jobs:
        job.wait_until_stored("SUCCESS")
        assert record_of(job).state in (State.SUCCEEDED, State.FINISHING)
        assert "overlap" not in job.journal()
        assert job.journal().count("completed") == 1


def worker_concurrency(pool: str) -> int:
    """How many bodies may run side by side in these tests."""
    return 1 if pool == "solo" else 2


def test_warm_shutdown_waits_for_a_deaf_body(worker_factory: WorkerFactory) -> None:
    """A body that never looks is waited for, as without this extension, and its result counts."""
    worker = worker_factory(concurrency=1, configuration=IMPATIENT)
    job = send(worker, "deaf", 1.5).wait_until_started()
    stop_and_wait(worker)
    assert job.stored() == ("SUCCESS", "first run")
    assert waiting_in(worker) == []


# -- the store is away


@pytest.mark.parametrize(
    ("pool", "number"),
    [
        pytest.param("prefork", signal.SIGTERM, id="prefork-SIGTERM"),
        pytest.param("threads", signal.SIGTERM, id="threads-SIGTERM"),
        pytest.param("prefork", signal.SIGQUIT, id="prefork-SIGQUIT", marks=SOAK),
        pytest.param("gevent", signal.SIGTERM, id="gevent-SIGTERM", marks=SOAK),
    ],
)
def test_store_down_during_the_shutdown(
    worker_factory: WorkerFactory,
    heir: CeleryWorker,
    queue: str,
    valkey: EmbeddedServer,
    pool: str,
    number: int,
) -> None:
    """Without the store bodies are told all the same, go back to their queue, and nothing is lost."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {**PATIENT, "canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool=pool, concurrency=2, configuration=configuration)
        jobs = [send(worker, task).wait_until_started() for task in ("work", "late_work")]
        waiting = send(worker, "quick")
        # Each client asks its own store, and the worker's is away.
        proxy.cut()
        stop_and_wait(worker, number)
        assert [job.journal() for job in jobs] == [TOLD] * 2
    jobs, (waiting,) = ([Job(heir.client.AsyncResult(job.id)) for job in old] for old in (jobs, [waiting]))
    assert {one for one, _ in waiting_in(worker)} == {job.id for job in (*jobs, waiting)}
    take_over(heir, queue)
    for job in jobs:
        assert job.wait_until_stored("SUCCESS") == [SECOND_RUN, "done"]
    waiting.wait_until_stored("SUCCESS")
    assert_ran_once(jobs, [waiting])


# -- children that end while their worker goes on


def child_of(job: Job) -> int:
    """The process of the last run of a job."""
    line: bytes = job.app.backend.client.lindex(f"journal:{job.id}", -1)
    return int(line.rpartition(b" ")[2])


def test_sigterm_to_one_child(worker_factory: WorkerFactory) -> None:
    """A child that alone is told to end has its body told, and the task runs again in another child."""
    worker = worker_factory(concurrency=2, configuration=PATIENT)
    stopped, spared = (send(worker, task).wait_until_started() for task in ("work", "late_work"))
    child = child_of(stopped)
    os.kill(child, signal.SIGTERM)
    assert stopped.wait_until_stored("SUCCESS") == [SECOND_RUN, "done"]
    wait_until(lambda: child not in [one.pid for one in worker.children()], description="the child is gone")
    assert spared.journal() == ["started"]
    assert revoke(spared.result).wait(10).state is State.REVOKED
    assert stopped.journal() == [*TOLD, "started", "completed"]
    assert stopped.result.state == "SUCCESS"


def test_deaf_child_that_is_told_to_end(worker_factory: WorkerFactory) -> None:
    """A child that alone is told to end and whose body does not look is gone after a while."""
    worker = worker_factory(concurrency=1, configuration=IMPATIENT)
    job = send(worker, "late_deaf_back", 60.0).wait_until_started()
    os.kill(child_of(job), signal.SIGTERM)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert job.starts() == 2


def test_terminate_kills_a_deaf_body_at_once(worker_factory: WorkerFactory) -> None:
    """Celery's `terminate=True` ends a child although that handles SIGTERM."""
    worker = worker_factory(concurrency=1, configuration={"canceltoken_terminate_grace": 0.0})
    job = send(worker, "deaf", 60.0).wait_until_started()
    child = child_of(job)
    begun = time.monotonic()
    worker.client.control.revoke(job.id, terminate=True)
    wait_until(lambda: child not in [one.pid for one in worker.children()], description="the child is gone")
    assert time.monotonic() - begun < 5
    job.wait_until_stored("REVOKED")
    assert job.wait_until_final().state is State.REVOKED


def test_children_that_are_replaced_after_each_task(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str
) -> None:
    """With --max-tasks-per-child nothing is told of a shutdown that is none, and a real one is heard."""
    worker = worker_factory(concurrency=2, configuration=PATIENT, arguments=["--max-tasks-per-child", "1"])
    steady = send(worker, "work").wait_until_started()
    quick = [send(worker, "quick", number) for number in range(2)]
    assert [job.wait_until_stored("SUCCESS", timeout=30) for job in quick] == [0, 1]
    assert steady.journal() == ["started"]
    stop_and_wait(worker)
    assert steady.journal() == TOLD
    assert waiting_in(worker) == [(steady.id, 0)]
    take_over(heir, queue)
    steady.wait_until_stored("SUCCESS")
    assert_ran_once([steady], quick)


def test_pool_restart_spares_those_that_work(worker_factory: WorkerFactory) -> None:
    """`pool_restart` replaces each child when its body has ended; the new ones hear of a real shutdown."""
    worker = worker_factory(concurrency=2, configuration={**PATIENT, "worker_pool_restarts": True})
    jobs = [send(worker, task, task, 2.0).wait_until_started() for task in ("work", "late_work")]
    before = {child.pid for child in worker.children()}
    worker.client.control.broadcast("pool_restart", destination=[worker.name], reply=True, timeout=10)
    assert [job.wait_until_stored("SUCCESS") for job in jobs] == ["work", "late_work"]
    assert_ran_once([], jobs)
    again = send(worker, "work").wait_until_started()
    wait_until(
        lambda: before.isdisjoint(child.pid for child in worker.children()),
        timeout=20,
        description="the children are new ones",
    )
    stop_and_wait(worker)
    assert again.journal() == TOLD
    assert waiting_in(worker) == [(again.id, 0)]


def test_autoscale_down_spares_those_that_work(worker_factory: WorkerFactory) -> None:
    """A pool that shrinks ends idle children only, and those end at once."""
    worker = worker_factory(
        arguments=["--autoscale", "4,1"],
        configuration={**PATIENT, "worker_autoscaler": "tests.support.apps.quick_autoscaler:QuickAutoscaler"},
    )
    steady = send(worker, "work")
    others = [send(worker, "work", "other", 1.0) for _ in range(3)]
    for job in (steady, *others):
        job.wait_until_started(timeout=30)
    assert [job.wait_until_stored("SUCCESS") for job in others] == ["other"] * 3
    wait_until(lambda: len(worker.children()) < 4, timeout=40, description="the pool has shrunk")
    assert steady.journal() == ["started"]
    assert [job.starts() for job in others] == [1] * 3
    stop_and_wait(worker)
    assert steady.journal() == TOLD


@pytest.mark.parametrize("pool", ["prefork", "solo", pytest.param("threads", marks=SOAK)])
def test_restart_by_sighup(worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str) -> None:
    """A worker that is told to restart tells its bodies first; what Celery does afterwards is its own."""
    worker = worker_factory(pool=pool, concurrency=2, configuration=PATIENT)
    jobs = [send(worker, "late_work").wait_until_started()]
    if pool != "solo":
        jobs.append(send(worker, "work").wait_until_started())
    waiting = [send(worker, "quick")]
    worker.kill(signal.SIGHUP)
    for job in jobs:
        job.wait_until_noted("told:SHUTDOWN")
    take_over(heir, queue)
    for job in jobs:
        assert job.wait_until_stored("SUCCESS") == [SECOND_RUN, "done"]
    waiting[0].wait_until_stored("SUCCESS")
    assert_ran_once(jobs, waiting)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_embedded_worker_that_is_stopped(
    valkey: EmbeddedServer, heir: CeleryWorker, queue: str, pool: str
) -> None:
    """The end of `start_worker` tells bodies as well, without any signal, and lets them wind down."""
    app = make_app(
        broker_url=valkey.url,
        result_backend=valkey.url,
        configuration={**PATIENT, **private_names(queue), "worker_hijack_root_logger": False},
    )
    with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=20.0):
        job = Job(app.tasks["tidy_work"].delay(1.0)).wait_until_started()
        take_over(heir, queue)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    # The body was in this very process, where other modules of tests may listen to signals as well.
    diary = [line for line in job.journal() if not line.startswith("signal-")]
    assert diary == [*TOLD, "tidied", "started", "completed"]
    record = job.wait_until_final()
    assert (record.state, record.attempt, record.generation) == (State.SUCCEEDED, 2, 1)
    app.close()


@pytest.mark.parametrize(
    ("pool", "number"),
    [
        pytest.param(pool, getattr(signal, name), id=f"{pool}-{name}", marks=marks)
        for pool, name, marks in (
            ("prefork", "SIGTERM", ()),
            ("threads", "SIGQUIT", ()),
            ("gevent", "SIGQUIT", ()),
            ("prefork", "SIGQUIT", SOAK),
            ("threads", "SIGTERM", SOAK),
            ("gevent", "SIGTERM", SOAK),
        )
    ],
)
def test_bodies_may_take_their_time_to_wind_down(
    worker_factory: WorkerFactory, heir: CeleryWorker, queue: str, pool: str, number: int
) -> None:
    """A body that was told and tidies up ends before its next run begins, warm or cold."""
    worker = worker_factory(pool=pool, concurrency=1, configuration=PATIENT)
    job = send(worker, "tidy_work", 1.5).wait_until_started()
    take_over(heir, queue)
    worker.kill(number)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert job.journal() == [*TOLD, "tidied", "started", "completed"]
    worker.wait(15)


@pytest.mark.parametrize(
    "pool", ["prefork", pytest.param("threads", marks=SOAK), pytest.param("solo", marks=SOAK)]
)
def test_idle_worker_is_gone_at_once(worker_factory: WorkerFactory, pool: str) -> None:
    """Nothing of this extension holds up a worker that does nothing."""
    worker = worker_factory(pool=pool, configuration=PATIENT)
    send(worker, "quick").wait_until_stored("SUCCESS")
    begun = time.monotonic()
    stop_and_wait(worker, signal.SIGQUIT)
    assert time.monotonic() - begun < 6


# -- RabbitMQ

ON_RABBITMQ_AT_ONCE = [("prefork", "classic", "SIGTERM"), ("threads", "quorum", "SIGQUIT")]


@pytest.mark.parametrize(
    ("pool", "kind", "number"),
    [
        pytest.param(
            pool,
            kind,
            getattr(signal, name),
            id=f"{pool}-{kind}-{name}",
            marks=() if (pool, kind, name) in ON_RABBITMQ_AT_ONCE else SOAK,
        )
        for pool in ("prefork", "threads")
        for kind in ("classic", "quorum")
        for name in ("SIGTERM", "SIGQUIT")
    ],
)
def test_on_rabbitmq(
    worker_factory: WorkerFactory, rabbitmq: RabbitMQ, pool: str, kind: str, number: int
) -> None:
    """The same on RabbitMQ, with queues of both kinds."""
    configuration = {**PATIENT, "task_default_queue_type": kind}
    options: dict[str, Any] = {"broker_url": rabbitmq.url, "configuration": configuration}
    worker = worker_factory(pool=pool, concurrency=2, **options)
    jobs = [send(worker, task).wait_until_started() for task in ("work", "late_work")]
    prefetched = [send(worker, task) for task in ("quick", "late_quick")]
    for job in prefetched:
        worker.wait_for_log(f"[{job.id}] received")
    stop_and_wait(worker, number)
    assert [job.journal() for job in jobs] == [TOLD] * 2
    assert [(job.journal(), job.record()) for job in prefetched] == [([], None)] * 2
    worker_factory(pool="threads", **options)
    for job in jobs:
        assert job.wait_until_stored("SUCCESS") == [SECOND_RUN, "done"]
    for job in prefetched:
        assert job.wait_until_stored("SUCCESS") == "done"
    assert_ran_once(jobs, prefetched)
