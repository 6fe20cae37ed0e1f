"""Celery's own revoke: `app.control.revoke`, `result.revoke`, stamped headers, `terminate=True`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_canceltoken import Cause, State, TaskRecord, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, SharedWorkers, WorkerFactory, unique_name

# Solo reads no command while a body runs in its main thread.
LISTENING = ["prefork", "threads", "gevent", "eventlet"]
SHORT_GRACE = {"canceltoken_terminate_grace": 0.3}


@pytest.fixture(params=LISTENING)
def listening_worker(
    request: pytest.FixtureRequest, shared_workers: SharedWorkers, worker_app: str
) -> CeleryWorker:
    """The shared worker of each pool that hears commands while bodies run."""
    return shared_workers(request.param, worker_app)


def assert_stopped(job: Job, reason: str = "revoked") -> TaskRecord:
    """Its token stopped it: record, result and journal agree on it."""
    record = job.wait_until_final()
    assert (record.state, record.cause, record.reason) == (State.REVOKED, Cause.REVOKED, reason)
    assert record.actor is None
    assert record.observed_at is not None
    assert "completed" not in job.journal()
    # Celery 5.6 writes a result of its own the moment it reads a command, whatever runs.
    with pytest.raises(TaskRevokedError, match=f"{reason}|revoked"):
        job.result.get(timeout=5)
    return record


# -- running


@pytest.mark.parametrize("task", ["wait", "poll", "through_current_token"])
def test_running_body_stops(listening_worker: CeleryWorker, task: str) -> None:
    """`app.control.revoke`, which is what Flower's button calls, stops a body that runs."""
    job = send(listening_worker, task, *([30] if task == "wait" else [])).wait_until_started()
    listening_worker.client.control.revoke(job.id)
    assert_stopped(job)


def test_result_revoke(listening_worker: CeleryWorker) -> None:
    """So does `result.revoke`."""
    job = send(listening_worker, "wait", 30).wait_until_started()
    job.result.revoke()
    assert_stopped(job)


def test_list_of_ids(listening_worker: CeleryWorker) -> None:
    """A list of ids stops all of them, and nothing else."""
    gate = unique_name("gate")
    spared = send(listening_worker, "return_unlooked", gate).wait_until_started()
    jobs = [send(listening_worker, "wait", 30).wait_until_started() for _ in range(3)]
    listening_worker.client.control.revoke([job.id for job in jobs])
    for job in jobs:
        assert_stopped(job)
    open_gate(listening_worker.client, gate)
    assert spared.result.get(timeout=10) == "unlooked"
    assert spared.wait_until_final().state is State.SUCCEEDED


@pytest.mark.parametrize("asked", [{"team": "blue"}, {"team": ["red", "blue"]}, ["team=blue"]], ids=str)
def test_stamped_headers(listening_worker: CeleryWorker, asked: Any) -> None:
    """`revoke_by_stamped_headers` stops what carries a stamp that is asked for, and nothing else."""
    mine = unique_name("team")
    asked = [f"team={mine}"] if isinstance(asked, list) else {"team": _renamed(asked["team"], mine)}
    gate, other = unique_name("gate"), unique_name("team")
    spared = send(listening_worker, "return_unlooked", gate, stamped_headers=["team"], team=other)
    jobs = [
        send(listening_worker, "wait", 30, stamped_headers=["team"], team=mine),
        send(listening_worker, "wait", 30, stamped_headers=["floor", "team"], team=[other, mine], floor=3),
    ]
    for job in [spared, *jobs]:
        job.wait_until_started()
    listening_worker.client.control.broadcast("revoke_by_stamped_headers", arguments={"headers": asked})
    for job in jobs:
        assert_stopped(job)
    open_gate(listening_worker.client, gate)
    assert spared.result.get(timeout=10) == "unlooked"


def _renamed(stamps: str | list[str], name: str) -> str | list[str]:
    return name if stamps == "blue" else [unique_name("team"), name]


def test_client_call_for_stamped_headers(shared_prefork_worker: CeleryWorker) -> None:
    """`app.control.revoke_by_stamped_headers` is the call that people make."""
    team = unique_name("team")
    job = send(shared_prefork_worker, "wait", 30, stamped_headers=["team"], team=team).wait_until_started()
    shared_prefork_worker.client.control.revoke_by_stamped_headers({"team": team})
    assert_stopped(job)


@pytest.mark.parametrize("task", ["autoretry", "retry_when_told"])
def test_never_becomes_a_retry(listening_worker: CeleryWorker, task: str) -> None:
    """A body that asks for a retry when it is told to stop has stopped."""
    job = send(listening_worker, task).wait_until_started()
    listening_worker.client.control.revoke(job.id)
    assert job.wait_until_final().state is State.REVOKED
    assert job.starts() == 1


def test_unlooked_is_a_success(listening_worker: CeleryWorker) -> None:
    """A body that returns without having looked has succeeded, and nothing says otherwise."""
    gate = unique_name("gate")
    job = send(listening_worker, "return_unlooked", gate, 42).wait_until_started()
    listening_worker.client.control.revoke(job.id, reply=True, timeout=1)
    open_gate(listening_worker.client, gate)
    assert job.wait_until_final().state is State.SUCCEEDED
    wait_until(
        lambda: Job(job.app.AsyncResult(job.id)).result.state == "SUCCESS", description="Celery says so too"
    )


def test_ours_and_celerys_together(listening_worker: CeleryWorker) -> None:
    """Where both are asked for, the task is revoked once, and the handle hears of it."""
    job = send(listening_worker, "wait", 30).wait_until_started()
    listening_worker.client.control.revoke(job.id)
    handle = revoke(job.result, reason="customer left")
    assert handle.wait(10).state is State.REVOKED
    assert job.starts() == 1


@pytest.mark.parametrize("pool", LISTENING)
def test_told_once(worker_factory: WorkerFactory, pool: str) -> None:
    """The event `task-revoked` and the signal `task_revoked` come once."""
    worker = worker_factory(pool=pool, arguments=["--task-events"])
    with events_of(worker) as seen:
        job = send(worker, "wait", 30).wait_until_started()
        worker.client.control.revoke(job.id)
        assert_stopped(job)
        after = send(worker, "whoami")
        after.result.get(timeout=10)
        wait_until(
            lambda: ("task-succeeded", after.id) in seen, description="the events up to here have come"
        )
    assert seen.count(("task-revoked", job.id)) == 1
    assert ("task-failed", job.id) not in seen
    assert job.journal().count("signal-task_revoked") == 1


@pytest.mark.parametrize("pool", LISTENING)
def test_needs_no_store(worker_factory: WorkerFactory, valkey: EmbeddedServer, pool: str) -> None:
    """With the store away a body stops all the same; when it is back the record says so."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {"canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool=pool, concurrency=2, configuration=configuration)
        claimed = send(worker, "wait", 30).wait_until_started()
        proxy.cut()
        unclaimed = send(worker, "wait", 30).wait_until_started()
        for job in (claimed, unclaimed):
            worker.client.control.revoke(job.id)
            job.wait_until_noted("signal-task_revoked")
            with pytest.raises(TaskRevokedError, match="revoked"):
                job.result.get(timeout=10)
        proxy.heal()
        for job in (claimed, unclaimed):
            record = job.wait_until_final()
            assert (record.state, record.cause) == (State.REVOKED, Cause.REVOKED)


def test_missed_while_cut_off_from_the_broker(worker_factory: WorkerFactory, valkey: EmbeddedServer) -> None:
    """A revoke that a worker could not hear is heard of from the others, when it is back."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {"canceltoken_redis_url": valkey.url}
        cut_off = worker_factory(
            pool="threads",
            broker_url=f"redis://127.0.0.1:{proxy.port}/0",
            configuration=configuration,
            neighbours=True,
        )
        job = send(cut_off, "wait", 30).wait_until_started()
        other = worker_factory(pool="solo", configuration=configuration, neighbours=True)
        proxy.cut()
        (answer,) = other.client.control.revoke(job.id, reply=True, timeout=2)
        assert list(answer) == [other.name]
        proxy.heal()
        assert_stopped(job)


# -- not running yet


def test_on_its_way_into_the_pool(worker_factory: WorkerFactory) -> None:
    """What Celery has handed to a pool of threads, and would start all the same, stops at its first look."""
    worker = worker_factory(pool="threads", concurrency=1)
    gate = unique_name("gate")
    first = send(worker, "return_unlooked", gate).wait_until_started()
    job = send(worker, "wait", 30)
    worker.wait_for_log(f"wait[{job.id}] received")
    answers = worker.client.control.revoke(job.id, reply=True)
    assert answers
    open_gate(worker.client, gate)
    assert first.result.get(timeout=10) == "unlooked"
    assert job.wait_until_final().state is State.REVOKED
    assert "completed" not in job.journal()


def test_queued_is_celerys(shared_worker: CeleryWorker) -> None:
    """What has not been started Celery drops by itself, as ever."""
    job = Job(shared_worker.client.AsyncResult(unique_name("id")))
    assert shared_worker.client.control.revoke(job.id, reply=True, timeout=2)
    send(shared_worker, "wait", 30, task_id=job.id)
    wait_until(lambda: job.result.state == "REVOKED", description="Celery has revoked it")
    job.wait_until_noted("signal-task_revoked")
    assert job.starts() == 0


def test_solo_hears_it_when_the_body_is_over(shared_solo_worker: CeleryWorker) -> None:
    """A solo worker reads no command while a body runs; it completes, and what comes later never starts."""
    worker = shared_solo_worker
    gate = unique_name("gate")
    running = send(worker, "return_unlooked", gate).wait_until_started()
    later = Job(worker.client.AsyncResult(unique_name("id")))
    worker.client.control.revoke([running.id, later.id])
    open_gate(worker.client, gate)
    record = running.wait_until_final()
    assert (record.state, record.cause) == (State.SUCCEEDED, None)
    wait_until(
        lambda: any(later.id in line and "flagged as revoked" in line for line in worker.logs().splitlines()),
        description="the command is read",
    )
    send(worker, "wait", 30, task_id=later.id)
    worker.wait_for_log(f"Discarding revoked task: wait[{later.id}]")
    assert later.starts() == 0


# -- what Celery drops, and our record of it


def test_dropped_request_is_answered(shared_worker: CeleryWorker) -> None:
    """A task that we and Celery were asked to revoke, and that Celery drops, is revoked in its record."""
    app = shared_worker.client
    job = Job(app.AsyncResult(unique_name("id")))
    handle = revoke(job.result, reason="customer left", actor="support")
    assert app.control.revoke(job.id, reply=True, timeout=2)
    send(shared_worker, "wait", 30, task_id=job.id)
    outcome = handle.wait(10)
    assert (outcome.state, outcome.reason, outcome.came_too_late) == (State.REVOKED, "customer left", False)
    shared_worker.wait_for_log(f"Discarding revoked task: wait[{job.id}]")
    assert job.starts() == 0


def test_expired_request_is_answered(shared_worker: CeleryWorker) -> None:
    """So is one that Celery drops because it has expired."""
    job = Job(shared_worker.client.AsyncResult(unique_name("id")))
    handle = revoke(job.result, reason="customer left")
    send(shared_worker, "wait", 30, task_id=job.id, expires=datetime.now(timezone.utc) - timedelta(hours=1))
    assert handle.wait(10).state is State.REVOKED
    assert job.starts() == 0


def test_dropped_retry_is_revoked(shared_worker: CeleryWorker) -> None:
    """A retry that waits for its time and is dropped then is revoked in its record as in its result."""
    job = send(shared_worker, "retry_in", 1).wait_until_started()
    wait_until(lambda: job.result.state == "RETRY", description="the retry is on its way")
    shared_worker.client.control.revoke(job.id)
    record = job.wait_until_final()
    assert (record.state, record.cause, record.reason) == (State.REVOKED, Cause.REVOKED, "revoked")
    assert (record.attempt, job.starts()) == (1, 1)
    wait_until(lambda: job.result.state == "REVOKED", description="Celery has revoked it")


def test_retry_that_expires_is_revoked(shared_worker: CeleryWorker) -> None:
    """A retry whose time comes after its expiry ends as Celery ends it, and says why."""
    job = send(shared_worker, "retry_in", 2, expires=1).wait_until_started()
    record = job.wait_until_final()
    assert (record.state, record.cause, record.reason) == (State.REVOKED, Cause.REVOKED, "expired")
    assert job.starts() == 1


def test_dropped_without_a_record_leaves_none(shared_worker: CeleryWorker) -> None:
    """Of what Celery drops and nobody has asked of us, nothing is written."""
    app = shared_worker.client
    unknown, known = (Job(app.AsyncResult(unique_name("id"))) for _ in range(2))
    handle = revoke(known.result)
    assert app.control.revoke([unknown.id, known.id], reply=True, timeout=2)
    for job in (unknown, known):
        send(shared_worker, "wait", 30, task_id=job.id)
        shared_worker.wait_for_log(f"Discarding revoked task: wait[{job.id}]")
    # They are looked at in their order.
    assert handle.wait(10).state is State.REVOKED
    assert unknown.record() is None


def test_dropped_task_that_was_tracked_is_revoked(worker_factory: WorkerFactory) -> None:
    """A task whose record says that it waits is revoked there as well, and its message stays kept."""
    worker = worker_factory(pool="threads", configuration={"canceltoken_track_enqueued": True})
    job = Job(worker.client.AsyncResult(unique_name("id")))
    assert worker.client.control.revoke(job.id, reply=True, timeout=2)
    send(worker, "wait", 30, task_id=job.id)
    record = job.wait_until_final()
    assert (record.state, record.reason, job.starts()) == (State.REVOKED, "revoked", 0)
    assert [change.state for change in record.history][:1] == [State.ENQUEUED]
    assert record.message_not_kept is None
    assert record.started_at is None


def test_dropped_while_the_store_is_away(worker_factory: WorkerFactory, valkey: EmbeddedServer) -> None:
    """A drop that the store could not be told of is told when it is back."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {"canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool="solo", configuration=configuration)
        job = Job(worker.client.AsyncResult(unique_name("id")))
        handle = revoke(job.result, reason="customer left")
        proxy.cut()
        assert worker.client.control.revoke(job.id, reply=True, timeout=2)
        send(worker, "wait", 30, task_id=job.id)
        worker.wait_for_log(f"Discarding revoked task: wait[{job.id}]")
        proxy.heal()
        assert handle.wait(15).state is State.REVOKED


# -- terminate


def test_terminated_body_that_heeds_keeps_its_process(worker_factory: WorkerFactory) -> None:
    """With `terminate=True` a body that stops by its token is all that stops."""
    worker = worker_factory(concurrency=1)
    (pid, _) = send(worker, "whoami").result.get(timeout=10)
    job = send(worker, "wait", 30).wait_until_started()
    worker.client.control.revoke(job.id, terminate=True)
    assert_stopped(job, "terminated")
    assert send(worker, "whoami").result.get(timeout=10)[0] == pid
    assert "signal-task_revoked" in job.journal()


def test_process_outlives_the_grace(worker_factory: WorkerFactory) -> None:
    """A process whose task has heeded is left alone when the grace is over, whatever it does by then."""
    worker = worker_factory(concurrency=1, configuration=SHORT_GRACE)
    (pid, _) = send(worker, "whoami").result.get(timeout=10)
    job = send(worker, "wait", 30).wait_until_started()
    worker.client.control.revoke(job.id, terminate=True)
    assert_stopped(job, "terminated")
    # Longer than the grace, and in the same process.
    bystander = send(worker, "wait", 1.0).wait_until_started()
    assert bystander.result.get(timeout=10) == "completed"
    assert send(worker, "whoami").result.get(timeout=10)[0] == pid


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_terminated_body_that_does_not_heed_is_killed(
    worker_factory: WorkerFactory, signal_name: str
) -> None:
    """A body that goes on is killed after the grace, with the signal that was asked for; told once."""
    worker = worker_factory(concurrency=1, configuration=SHORT_GRACE, arguments=["--task-events"])
    with events_of(worker) as seen:
        (pid, _) = send(worker, "whoami").result.get(timeout=10)
        job = send(worker, "return_unlooked", unique_name("gate")).wait_until_started()
        asked_at = time.monotonic()
        worker.client.control.revoke(job.id, terminate=True, signal=signal_name)
        worker.wait_for_log(f"return_unlooked[{job.id}] did not stop within 0.3 s")
        assert time.monotonic() - asked_at >= 0.3
        assert_killed(job)
        after = send(worker, "whoami")
        assert after.result.get(timeout=15)[0] != pid
        wait_until(
            lambda: ("task-succeeded", after.id) in seen, description="the events up to here have come"
        )
    assert seen.count(("task-revoked", job.id)) == 1
    assert job.journal().count("signal-task_revoked") == 1


@pytest.mark.parametrize("command", ["terminate", "revoke_by_stamped_headers"])
def test_other_commands_that_terminate(worker_factory: WorkerFactory, command: str) -> None:
    """`celery control terminate`, and stamped headers with `terminate=True`, give the grace as well."""
    worker = worker_factory(concurrency=2, configuration=SHORT_GRACE)
    team = unique_name("team")
    stamped = {"stamped_headers": ["team"], "team": team}
    heeding = send(worker, "wait", 30, **stamped).wait_until_started()
    deaf = send(worker, "return_unlooked", unique_name("gate"), **stamped).wait_until_started()
    worker.client.control.broadcast(
        command,
        arguments={"signal": "SIGKILL", "task_id": [heeding.id, deaf.id]}
        if command == "terminate"
        else {"headers": {"team": team}, "terminate": True, "signal": "SIGKILL"},
    )
    assert_stopped(heeding, "terminated")
    assert_killed(deaf)


def test_without_grace_it_is_killed_at_once(worker_factory: WorkerFactory) -> None:
    """With a grace of 0 Celery terminates as ever."""
    worker = worker_factory(concurrency=1, configuration={"canceltoken_terminate_grace": 0})
    job = send(worker, "return_unlooked", unique_name("gate")).wait_until_started()
    worker.client.control.revoke(job.id, terminate=True)
    # The default grace would take five seconds.
    wait_until(lambda: job.result.state == "REVOKED", timeout=4, description="Celery has revoked it")
    assert_killed(job)
    assert "did not stop within" not in worker.logs()


def test_terminate_needs_no_store(worker_factory: WorkerFactory, valkey: EmbeddedServer) -> None:
    """With the store away a body has its grace, and is killed after it."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {**SHORT_GRACE, "canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(concurrency=2, configuration=configuration)
        heeding = send(worker, "wait", 30).wait_until_started()
        deaf = send(worker, "return_unlooked", unique_name("gate")).wait_until_started()
        proxy.cut()
        worker.client.control.revoke([heeding.id, deaf.id], terminate=True)
        heeding.wait_until_noted("observed")
        deaf.wait_until_noted("signal-task_revoked")
        proxy.heal()
        assert_stopped(heeding, "terminated")
        assert_killed(deaf)


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_greenlet_that_does_not_heed_is_killed(worker_factory: WorkerFactory, pool: str) -> None:
    """On the green pools Celery kills the greenlet, and the record follows."""
    worker = worker_factory(pool=pool, configuration=SHORT_GRACE)
    heeding = send(worker, "wait", 30).wait_until_started()
    deaf = send(worker, "return_unlooked", unique_name("gate")).wait_until_started()
    worker.client.control.revoke([heeding.id, deaf.id], terminate=True)
    assert_stopped(heeding, "terminated")
    assert_killed(deaf)


def test_threads_cannot_be_terminated(worker_factory: WorkerFactory) -> None:
    """Where the pool cannot terminate, the token is told, the log says so, and that is all."""
    worker = worker_factory(pool="threads", configuration=SHORT_GRACE)
    heeding = send(worker, "wait", 30).wait_until_started()
    gate = unique_name("gate")
    deaf = send(worker, "return_unlooked", gate).wait_until_started()
    (answer,) = worker.client.control.revoke([heeding.id, deaf.id], terminate=True, reply=True, timeout=2)
    assert "ok" in answer[worker.name]
    assert_stopped(heeding, "terminated")
    worker.wait_for_log(f"return_unlooked[{deaf.id}] is told to stop but cannot be terminated")
    open_gate(worker.client, gate)
    assert deaf.wait_until_final().state is State.SUCCEEDED


def assert_killed(job: Job) -> None:
    """Celery killed it, and its record agrees."""
    wait_until(lambda: job.result.state == "REVOKED", description="Celery has revoked the task")
    record = job.wait_until_final()
    assert (record.state, record.cause, record.reason) == (State.REVOKED, Cause.REVOKED, "terminated")
    assert job.journal()[:1] == ["started"]
    assert "completed" not in job.journal()


@contextlib.contextmanager
def events_of(worker: CeleryWorker) -> Iterator[list[tuple[str, str]]]:
    """What the worker tells its listeners: pairs of an event's type and its task."""
    seen: list[tuple[str, str]] = []
    receiver = worker.client.events.Receiver(
        worker.client.connection_for_read(),
        handlers={"*": lambda event: seen.append((event["type"], event.get("uuid", "")))},
    )

    def listen() -> None:
        with receiver.connection, contextlib.suppress(TimeoutError):
            receiver.capture(limit=None, timeout=20, wakeup=True)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        wait_until(lambda: seen, description="the listener hears of the worker")
        yield seen
    finally:
        receiver.should_stop = True
        listener.join(25)
