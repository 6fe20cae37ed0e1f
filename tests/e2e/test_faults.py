"""Processes die, connections break, records rot: what a cancellation and its worker make of it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from celery_canceltoken import State, StoreUnavailableError, revoke
from celery_canceltoken.configuration import client_store
from tests.e2e.conftest import Job, open_gate, send
from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name

QUICK = {
    "canceltoken_check_interval": 0.3,
    "canceltoken_heartbeat_interval": 0.2,
    "canceltoken_lease_duration": 1.0,
}
# Kombu looks for messages to restore when a worker starts, then (since 5.7) as often as it is told to.
SOON_REDELIVERED = {
    "broker_transport_options": {
        "visibility_timeout": 1,
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
    }
}


def ask_without_waking(job: Job) -> None:
    """Revoke a task while its worker's inbox is gone, so that no wake-up comes."""
    record = job.record()
    assert record is not None
    assert record.owner is not None
    assert job.app.backend.client.delete(client_store(job.app).keys.inbox(record.owner)) == 1
    assert revoke(job.result, reason="unheard")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_lost_wake_up_costs_one_check_interval(worker_factory: WorkerFactory, pool: str) -> None:
    """A request whose wake-up never came is found by the check."""
    worker = worker_factory(pool=pool, configuration=QUICK)
    job = send(worker, "wait", 30).wait_until_started()
    ask_without_waking(job)
    record = job.wait_until_final(timeout=5)
    assert (record.state, record.reason) == (State.REVOKED, "unheard")


def test_inbox_that_vanished_is_made_again(worker_factory: WorkerFactory, valkey: EmbeddedServer) -> None:
    """A worker whose connections were cut reads on, and checks at once."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {"canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool="threads", configuration=configuration)
        job = send(worker, "wait", 30).wait_until_started()
        proxy.cut()
        direct = client_of_the_same_records(worker, valkey)
        assert revoke(job.id, app=direct)
        assert job.result.state == "PENDING"
        proxy.heal()
        # The check interval is five seconds; the reconnect must not wait for it.
        wait_until(lambda: job.result.state == "REVOKED", timeout=4, description="the revoke arrives")


def test_store_down_from_the_start(worker_factory: WorkerFactory, valkey: EmbeddedServer) -> None:
    """With the store away tasks run all the same; when it is back they are recorded and can be revoked."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {**QUICK, "canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool="prefork", concurrency=2, configuration=configuration)
        proxy.cut()
        with pytest.raises(StoreUnavailableError):
            revoke("any", app=worker.client)
        assert send(worker, "big_return", 3).result.get(timeout=10) == "xxx"
        job = send(worker, "wait", 30).wait_until_started()
        proxy.heal()
        wait_until(lambda: _state_of(job) is State.PROCESSING, description="the record is written")
        assert revoke(job.result, reason="back again").wait(10).state is State.REVOKED


def test_frozen_store_delays_a_task_by_little(worker_factory: WorkerFactory, valkey: EmbeddedServer) -> None:
    """A store that accepts and never answers costs a task one short timeout, the next ones nothing."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {"canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool="solo", configuration=configuration)
        assert send(worker, "big_return", 1).result.get(timeout=10) == "x"
        proxy.freeze()
        jobs = [send(worker, "big_return", 1) for _ in range(20)]
        # Were each to wait for its claim and its finish, this would take twenty seconds.
        for job in jobs:
            assert job.result.get(timeout=8) == "x"


def test_finish_that_could_not_be_written_is_written_later(
    worker_factory: WorkerFactory, valkey: EmbeddedServer
) -> None:
    """The end of a body that the store did not hear of is written by the agent when it is back."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {"canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool="prefork", concurrency=1, configuration=configuration)
        gate = unique_name("gate")
        job = send(worker, "return_unlooked", gate).wait_until_started()
        proxy.cut()
        open_gate(worker.client, gate)
        assert job.result.get(timeout=10) == "unlooked"
        proxy.heal()
        assert job.wait_until_final().state is State.SUCCEEDED


def test_lost_reply_to_a_claim_runs_the_body_once(
    worker_factory: WorkerFactory, valkey: EmbeddedServer
) -> None:
    """A claim that was executed but never answered is asked again and answered the same."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        configuration = {**QUICK, "canceltoken_redis_url": f"redis://127.0.0.1:{proxy.port}/0"}
        worker = worker_factory(pool="solo", configuration=configuration)
        send(worker, "whoami").result.get(timeout=10)
        proxy.lose_replies_to(b"big_return")
        job = send(worker, "big_return", 2)
        assert job.result.get(timeout=10) == "xx"
        proxy.heal()
        record = job.wait_until_final()
        assert (record.state, record.attempt) == (State.SUCCEEDED, 1)


def test_damaged_record_is_that_tasks_affair(shared_worker: CeleryWorker) -> None:
    """A task whose record is damaged runs untracked; its neighbours and the worker are unaffected."""
    store = client_store(shared_worker.client)
    redis = shared_worker.client.backend.client
    task_id = unique_name("id")
    redis.set(store.keys.record(task_id), "not a hash", ex=60)
    job = send(shared_worker, "big_return", 3, task_id=task_id)
    assert job.result.get(timeout=10) == "xxx"
    assert redis.get(store.keys.record(task_id)) == b"not a hash"
    healthy = send(shared_worker, "wait", 30).wait_until_started()
    assert revoke(healthy.result).wait(10).state is State.REVOKED


def test_record_damaged_under_a_running_task(worker_factory: WorkerFactory) -> None:
    """A record that rots while its task runs ends nothing but its tracking."""
    worker = worker_factory(pool="threads", configuration=QUICK)
    gate = unique_name("gate")
    job = send(worker, "return_unlooked", gate).wait_until_started()
    worker.client.backend.client.set(client_store(worker.client).keys.record(job.id), "rot", ex=60)
    worker.wait_for_log("cannot be read")
    open_gate(worker.client, gate)
    assert job.result.get(timeout=10) == "unlooked"
    other = send(worker, "wait", 30).wait_until_started()
    assert revoke(other.result).wait(10).state is State.REVOKED


def test_vanished_record_is_written_again(worker_factory: WorkerFactory) -> None:
    """A record that was lost while its task runs is no cancellation: it is written again."""
    worker = worker_factory(pool="prefork", concurrency=1, configuration=QUICK)
    job = send(worker, "wait", 30).wait_until_started()
    worker.client.backend.client.delete(client_store(worker.client).keys.record(job.id))
    wait_until(lambda: _state_of(job) is State.PROCESSING, description="the record is back")
    assert "observed" not in job.journal()
    assert revoke(job.result).wait(10).state is State.REVOKED


def test_request_in_a_lost_record_is_obeyed(worker_factory: WorkerFactory) -> None:
    """A revoke that finds no record of a running task reaches it all the same."""
    worker = worker_factory(pool="threads", configuration={**QUICK, "canceltoken_check_interval": 1.0})
    job = send(worker, "wait", 30).wait_until_started()
    worker.client.backend.client.delete(client_store(worker.client).keys.record(job.id))
    handle = revoke(job.result, reason="anyway")
    assert handle.previous is None
    assert handle.wait(10).state is State.REVOKED
    job.wait_until_noted("signal-task_revoked")
    assert job.journal() == ["started", "observed", "signal-task_revoked"]


def test_killed_child_is_recorded(worker_factory: WorkerFactory) -> None:
    """A child that is killed fails its task for Celery, and the record agrees."""
    worker = worker_factory(concurrency=1)
    job = send(worker, "wait", 60).wait_until_started()
    os.kill(_child_of(job), signal.SIGKILL)
    wait_until(lambda: job.result.state == "FAILURE", description="Celery has failed the task")
    assert job.wait_until_final().state is State.FAILED


def test_killed_child_whose_message_goes_back(worker_factory: WorkerFactory) -> None:
    """With `reject_on_worker_lost` the message comes back, is claimed again and runs."""
    worker = worker_factory(concurrency=1)
    job = send(worker, "late_wait_back", 60).wait_until_started()
    os.kill(_child_of(job), signal.SIGKILL)
    job.wait_until_started(2)
    assert revoke(job.result).wait(10).state is State.REVOKED
    record = job.record()
    assert record is not None
    assert record.attempt == 2


def test_hard_time_limit_is_recorded(worker_factory: WorkerFactory) -> None:
    """A task that Celery kills at its hard time limit has failed in its record as well."""
    worker = worker_factory(concurrency=1)
    job = send(worker, "limited", unique_name("gate")).wait_until_started()
    wait_until(lambda: job.result.state == "FAILURE", description="Celery has failed the task")
    assert job.wait_until_final().state is State.FAILED


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_terminated_task_is_recorded(worker_factory: WorkerFactory, signal_name: str) -> None:
    """A task that Celery terminates is REVOKED in its record as in its result."""
    worker = worker_factory(concurrency=1)
    job = send(worker, "wait", 60).wait_until_started()
    worker.client.control.revoke(job.id, terminate=True, signal=signal_name)
    wait_until(lambda: job.result.state == "REVOKED", description="Celery has revoked the task")
    assert job.wait_until_final().state is State.REVOKED


def test_respawned_child_hears_revokes(worker_factory: WorkerFactory) -> None:
    """Children forked while the agent's threads run are reached like the first ones."""
    worker = worker_factory(concurrency=1, configuration={"worker_max_tasks_per_child": 1})
    pids = {send(worker, "whoami").result.get(timeout=15)[0] for _ in range(4)}
    assert len(pids) == 4
    job = send(worker, "wait", 30).wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED


def test_revoke_pending_when_the_worker_dies(worker_factory: WorkerFactory) -> None:
    """A revoke that was applied takes effect also if the worker is killed before it is heeded."""
    doomed = worker_factory(concurrency=1, configuration=QUICK)
    job = send(doomed, "return_unlooked", unique_name("gate")).wait_until_started()
    handle = revoke(job.result, reason="applied")
    doomed.crash()
    worker_factory(pool="solo", configuration=QUICK)
    outcome = handle.wait(20)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "applied")
    assert job.result.state == "REVOKED"


def test_early_acknowledged_task_of_a_dead_worker_fails(worker_factory: WorkerFactory) -> None:
    """A task that was acknowledged early and whose worker died ends FAILED, in record and result."""
    doomed = worker_factory(concurrency=1, configuration=QUICK)
    job = send(doomed, "return_unlooked", unique_name("gate")).wait_until_started()
    doomed.crash()
    worker_factory(pool="solo", configuration=QUICK)
    record = job.wait_until_final(timeout=20)
    assert record.state is State.FAILED
    assert record.error is not None
    assert "worker was lost" in record.error
    wait_until(lambda: job.result.state == "FAILURE", description="Celery's result says so too")


def test_redelivered_copy_takes_over_from_a_dead_worker(worker_factory: WorkerFactory) -> None:
    """A late-acknowledged task of a dead worker runs again as soon as its message is redelivered."""
    configuration = {**QUICK, **SOON_REDELIVERED}
    doomed = worker_factory(concurrency=1, configuration=configuration)
    gate = unique_name("gate")
    job = send(doomed, "late_gate", gate).wait_until_started()
    doomed.crash()
    wait_until_redelivery_is_due(job)
    heir = worker_factory(pool="solo", configuration=configuration)
    job.wait_until_started(2, timeout=40)
    open_gate(heir.client, gate)
    record = job.wait_until_final()
    assert (record.state, record.attempt, record.generation) == (State.SUCCEEDED, 2, 1)


def test_redelivered_copy_of_a_live_run_does_not_start(worker_factory: WorkerFactory) -> None:
    """A copy that the broker delivers while the first run lives waits, and never runs once that has ended."""
    configuration = {**SOON_REDELIVERED, "worker_prefetch_multiplier": 4}
    worker = worker_factory(pool="threads", concurrency=3, configuration=configuration)
    gate = unique_name("gate")
    job = send(worker, "late_gate", gate).wait_until_started()
    wait_until_redelivery_is_due(job)
    other = worker_factory(pool="threads", concurrency=3, configuration=configuration)
    wait_until(
        lambda: (worker.logs() + other.logs()).count(f"late_gate[{job.id}] received") >= 2,
        timeout=40,
        description="the broker has redelivered the message",
    )
    open_gate(worker.client, gate)
    assert job.result.get(timeout=10) == "unlooked"
    wait_until(
        lambda: f"late_gate[{job.id}] ignored" in worker.logs() + other.logs(),
        description="the copy is dropped",
    )
    assert job.starts() == 1


def test_frozen_worker_goes_on_as_a_new_incarnation(worker_factory: WorkerFactory) -> None:
    """A worker that slept through its lease keeps what nobody took, and hears revokes of it."""
    worker = worker_factory(pool="threads", configuration=QUICK)
    job = send(worker, "wait", 60).wait_until_started()
    before = job.record()
    store = client_store(worker.client)
    assert before is not None
    assert before.owner is not None
    worker.kill(signal.SIGSTOP)
    wait_until(lambda: not store.is_alive(before.owner or ""), description="the lease has run out")
    worker.kill(signal.SIGCONT)
    wait_until(
        lambda: getattr(job.record(), "owner", before.owner) != before.owner, description="it is adopted"
    )
    assert revoke(job.result).wait(10).state is State.REVOKED
    assert job.starts() == 1


def test_frozen_worker_that_was_replaced_stops_its_body(worker_factory: WorkerFactory) -> None:
    """A worker that slept through its lease and lost a task to another trips its token: SUPERSEDED."""
    configuration = {**QUICK, **SOON_REDELIVERED}
    sleeper = worker_factory(pool="threads", concurrency=1, configuration=configuration)
    job = send(sleeper, "late_wait", 60).wait_until_started()
    sleeper.kill(signal.SIGSTOP)
    wait_until_redelivery_is_due(job)
    heir = worker_factory(pool="threads", concurrency=1, configuration=configuration)
    job.wait_until_started(2, timeout=40)
    sleeper.kill(signal.SIGCONT)
    job.wait_until_noted("observed")
    record = job.record()
    assert record is not None
    assert (record.state, record.worker) == (State.PROCESSING, heir.name)
    assert revoke(job.result).wait(10).state is State.REVOKED


def test_stopped_worker_leaves_no_lease(worker_factory: WorkerFactory) -> None:
    """A worker that is stopped in order gives up its lease and its inbox."""
    worker = worker_factory(pool="solo")
    redis = worker.client.backend.client
    job = send(worker, "whoami")
    job.result.get(timeout=10)
    record = job.wait_until_final()
    keys = client_store(worker.client).keys
    assert record.owner is not None
    assert redis.exists(keys.lease(record.owner), keys.inbox(record.owner)) == 2
    assert worker.stop() == 0
    assert redis.exists(keys.lease(record.owner), keys.inbox(record.owner)) == 0


def client_of_the_same_records(worker: CeleryWorker, valkey: EmbeddedServer) -> Any:
    """An app that reaches the store directly, where the worker's goes through a proxy."""
    from tests.support.apps.cancellable import make_app

    return make_app(
        broker_url=worker.broker_url,
        result_backend=worker.result_backend,
        configuration={**worker.configuration, "canceltoken_redis_url": valkey.url},
    )


def wait_until_redelivery_is_due(job: Job) -> None:
    """Wait until the broker holds a message that nobody has acknowledged for longer than it tolerates."""
    wait_until(
        lambda: job.app.backend.client.zcount("unacked_index", 0, time.time() - 1.2),
        description="the visibility timeout has passed",
    )


def _state_of(job: Job) -> State | None:
    try:
        record = job.record()
    except StoreUnavailableError:
        time.sleep(0.05)
        return None
    return record.state if record else None


def _child_of(job: Job) -> int:
    line: bytes = job.app.backend.client.lindex(f"journal:{job.id}", 0)
    return int(line.rpartition(b" ")[2])
