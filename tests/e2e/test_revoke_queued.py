"""A task that is not running is told not to."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from celery_canceltoken import Cause, State, get_record, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name


def test_queued_behind_another_never_starts(shared_solo_worker: CeleryWorker) -> None:
    """A task that waits for a busy worker never starts, and its result says why."""
    gate = unique_name("gate")
    running = send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
    job = send(shared_solo_worker, "wait", 0)
    handle = revoke(job.result, reason="not needed")
    assert handle.applied
    assert handle.previous is None
    open_gate(shared_solo_worker.client, gate)
    running.result.get(timeout=10)
    outcome = handle.wait(10)
    assert (outcome.state, outcome.cause, outcome.reason) == (State.REVOKED, Cause.REVOKED, "not needed")
    assert job.starts() == 0
    with pytest.raises(TaskRevokedError, match="not needed"):
        job.result.get(timeout=5)


def test_with_an_eta_never_starts(shared_worker: CeleryWorker) -> None:
    """A task that a worker holds until its eta does not start when that comes."""
    eta = datetime.now(timezone.utc) + timedelta(seconds=1)
    job = send(shared_worker, "wait", 0, eta=eta)
    handle = revoke(job.result)
    assert handle.wait(15).state is State.REVOKED
    assert job.starts() == 0


def test_with_no_worker_online_never_starts(client_app: Celery, worker_factory: WorkerFactory) -> None:
    """A revoke while no worker runs is there for the one that comes."""
    job = send(client_app, "wait", 0)
    handle = revoke(job.result, reason="closed today")
    worker = worker_factory(pool="solo")
    outcome = handle.wait(15)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "closed today")
    assert job.starts() == 0
    job.wait_until_noted("signal-task_revoked")
    assert worker.is_running


def test_before_it_is_sent(shared_worker: CeleryWorker) -> None:
    """A revoke of an id not sent yet meets the next message with that id, and is used up by it."""
    task_id = unique_name("id")
    handle = revoke(task_id, app=shared_worker.client)
    assert handle.previous is None
    first = send(shared_worker, "wait", 0, task_id=task_id)
    assert handle.wait(10).state is State.REVOKED
    with pytest.raises(TaskRevokedError):
        first.result.get(timeout=5)
    second = send(shared_worker, "look_and_return", 1, task_id=task_id).wait_until_started()
    revoke(task_id, app=shared_worker.client).wait(10)
    assert second.starts() == 1


def test_must_exist_refuses_an_unknown_id(shared_solo_worker: CeleryWorker) -> None:
    """With `must_exist` an id without a record is refused and nothing is written."""
    task_id = unique_name("id")
    handle = revoke(task_id, must_exist=True, app=shared_solo_worker.client)
    assert not handle
    assert handle.previous is None
    assert get_record(task_id, app=shared_solo_worker.client) is None


def test_finished_task_is_left_alone(shared_worker: CeleryWorker) -> None:
    """A revoke of a task that has ended is not applied and changes nothing."""
    job = send(shared_worker, "whoami")
    value = job.result.get(timeout=10)
    before = job.wait_until_final()
    handle = revoke(job.result)
    assert not handle
    assert handle.previous is State.SUCCEEDED
    assert job.record() == before
    assert job.result.get(timeout=5) == value
    assert handle.wait(1).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("from_state", "applied"),
    [("PROCESSING", True), (State.ENQUEUED, False), ([State.ENQUEUED, State.PROCESSING], True)],
)
def test_from_state_is_a_precondition(
    shared_threads_worker: CeleryWorker, from_state: object, applied: bool
) -> None:
    """A revoke with `from_state` is applied only where the task is in one of those."""
    job = send(shared_threads_worker, "wait", 30).wait_until_started()
    handle = revoke(job.result, from_state=from_state)  # type: ignore[arg-type]
    assert handle.applied is applied
    if not applied:
        record = job.record()
        assert record is not None
        assert record.cause is None
        assert revoke(job.result)
    assert job.wait_until_final().state is State.REVOKED


def test_sent_again_on_purpose_runs(shared_worker: CeleryWorker) -> None:
    """An id that was revoked has a new life when it is sent again."""
    job = send(shared_worker, "wait", 30).wait_until_started()
    revoke(job.result).wait(10)
    again: Job = send(shared_worker, "wait", 0, task_id=job.id)
    again.wait_until_noted("completed")
    record = again.wait_until_final()
    assert (record.state, record.cause, record.attempt) == (State.SUCCEEDED, None, 1)
