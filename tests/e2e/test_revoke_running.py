"""A running task is told to stop, on every pool."""

from __future__ import annotations

import pytest
from celery.exceptions import TaskRevokedError

from celery_canceltoken import Cause, State, revoke
from tests.e2e.conftest import open_gate, send
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker


@pytest.mark.parametrize("task", ["wait", "poll", "wait_without_deadline", "through_current_token"])
def test_body_stops(shared_worker: CeleryWorker, task: str) -> None:
    """However a body looks at its token, a revoke ends it."""
    job = send(shared_worker, task, *([30] if task == "wait" else [])).wait_until_started()
    handle = revoke(job.result, reason="customer left", actor="support")
    assert handle
    assert handle.previous is State.PROCESSING
    assert handle.wait(10).state is State.REVOKED
    assert "completed" not in job.journal()


def test_result_says_revoked_and_why(shared_worker: CeleryWorker) -> None:
    """The result state is REVOKED and `get()` raises TaskRevokedError with the reason."""
    job = send(shared_worker, "wait", 30).wait_until_started()
    revoke(job.result, reason="customer left").wait(10)
    assert job.result.state == "REVOKED"
    with pytest.raises(TaskRevokedError, match="customer left"):
        job.result.get(timeout=5)


def test_record_tells_the_whole_story(shared_worker: CeleryWorker) -> None:
    """The record has cause, reason, actor, worker, execution and attempt, and the ladder in order."""
    job = send(shared_worker, "wait", 30).wait_until_started()
    handle = revoke(job.result, reason="customer left", actor="support")
    handle.wait(10)
    record = handle.record()
    assert record is not None
    assert (record.state, record.cause) == (State.REVOKED, Cause.REVOKED)
    assert (record.reason, record.actor) == ("customer left", "support")
    assert (record.worker, record.attempt, record.generation) == (shared_worker.name, 1, 0)
    assert record.name == "wait"
    assert record.takes_token is True
    assert record.execution_id
    ladder = [record.requested_at, record.delivered_at, record.observed_at, record.stopped_at]
    assert None not in ladder
    assert ladder == sorted(ladder)


def test_signal_fires_in_the_worker(shared_worker: CeleryWorker) -> None:
    """Celery's `task_revoked` signal fires in the worker's main process."""
    job = send(shared_worker, "wait", 30).wait_until_started()
    revoke(job.result).wait(10)
    job.wait_until_noted("signal-task_revoked")


def test_twice_keeps_the_first_reason(shared_worker: CeleryWorker) -> None:
    """A second revoke is not applied, and the first one's reason stays."""
    gate = "twice" + shared_worker.name
    job = send(shared_worker, "return_unlooked", gate).wait_until_started()
    first, second = revoke(job.result, reason="first"), revoke(job.result, reason="second")
    assert first
    assert not second
    assert second.refusal
    record = job.record()
    assert record is not None
    assert record.reason == "first"
    open_gate(shared_worker.client, gate)
    first.wait(10)


def test_too_late_is_said(shared_worker: CeleryWorker) -> None:
    """A body that returns without having looked has succeeded, and the handle says: too late."""
    gate = "late" + shared_worker.name
    job = send(shared_worker, "return_unlooked", gate, 42).wait_until_started()
    handle = revoke(job.result, reason="changed my mind")
    wait_until(lambda: getattr(job.record(), "delivered_at", None), description="the revoke is delivered")
    open_gate(shared_worker.client, gate)
    outcome = handle.wait(10)
    assert outcome.came_too_late
    assert outcome.state is State.SUCCEEDED
    assert job.result.get(timeout=5) == 42


def test_seen_and_returned_is_revoked_and_the_value_kept(shared_worker: CeleryWorker) -> None:
    """A body that saw the request and returned is revoked; what it returned is in the record."""
    job = send(shared_worker, "look_and_return", {"rows": 7}).wait_until_started()
    outcome = revoke(job.result, reason="enough").wait(10)
    assert outcome.state is State.REVOKED
    assert not outcome.came_too_late
    record = job.record()
    assert record is not None
    assert record.value == '{"rows": 7}'
    with pytest.raises(TaskRevokedError):
        job.result.get(timeout=5)


def test_seen_and_raised_is_revoked_and_the_error_kept(shared_worker: CeleryWorker) -> None:
    """A body that saw the request and failed to clean up is revoked; the error is in the record."""
    job = send(shared_worker, "look_and_raise").wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED
    record = job.record()
    assert record is not None
    assert record.error is not None
    assert "could not clean up" in record.error


def test_raised_unlooked_is_a_failure(shared_worker: CeleryWorker) -> None:
    """An error of a body that had not looked is Celery's ordinary failure, and the revoke came too late."""
    gate = "raise" + shared_worker.name
    job = send(shared_worker, "raise_unlooked", gate).wait_until_started()
    handle = revoke(job.result)
    open_gate(shared_worker.client, gate)
    outcome = handle.wait(10)
    assert (outcome.state, outcome.came_too_late) == (State.FAILED, True)
    with pytest.raises(RuntimeError, match="broken"):
        job.result.get(timeout=5)


def test_disregarded_is_a_success(shared_worker: CeleryWorker) -> None:
    """A body that was told and finished all the same, and says so, has succeeded."""
    job = send(shared_worker, "disregard", 5).wait_until_started()
    outcome = revoke(job.result).wait(10)
    assert (outcome.state, outcome.came_too_late) == (State.SUCCEEDED, True)
    assert job.result.get(timeout=5) == 5


def test_callbacks_run_elsewhere_and_survive_each_other(shared_worker: CeleryWorker) -> None:
    """A callback runs on a thread of its own, also after another one has raised."""
    job = send(shared_worker, "with_callback").wait_until_started()
    revoke(job.result).wait(10)
    assert "callback-in-canceltoken-callbacks" in job.journal()


@pytest.mark.parametrize("task", ["autoretry", "retry_when_told"])
def test_cancellation_never_becomes_a_retry(shared_worker: CeleryWorker, task: str) -> None:
    """Neither autoretry nor `retry()` sends a task again that was told to stop."""
    job = send(shared_worker, task).wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED
    assert job.starts() == 1
    record = job.record()
    assert record is not None
    assert record.generation == 0
    # Whatever had been sent would be in the queue before this one.
    send(shared_worker, "whoami").result.get(timeout=10)
    assert job.starts() == 1


def test_task_without_token_is_recorded_so(shared_worker: CeleryWorker) -> None:
    """The record of a task that takes no token says so, and a revoke of it comes too late."""
    gate = "none" + shared_worker.name
    job = send(shared_worker, "without_token", gate).wait_until_started()
    handle = revoke(job.result)
    record = job.record()
    assert record is not None
    assert record.takes_token is False
    open_gate(shared_worker.client, gate)
    assert handle.wait(10).came_too_late


def test_reason_reaches_the_body(shared_worker: CeleryWorker) -> None:
    """What a body raises by itself from the token's cause and reason is a cancellation like any other."""
    job = send(shared_worker, "poll").wait_until_started()
    outcome = revoke(job.result, reason="grün & <b>").wait(10)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "grün & <b>")


def test_others_are_left_alone(shared_prefork_worker: CeleryWorker) -> None:
    """A revoke reaches the one task it names."""
    gate = "others" + shared_prefork_worker.name
    spared = send(shared_prefork_worker, "return_unlooked", gate).wait_until_started()
    job = send(shared_prefork_worker, "wait", 30).wait_until_started()
    revoke(job.result).wait(10)
    record = spared.record()
    assert record is not None
    assert (record.state, record.cause) == (State.PROCESSING, None)
    open_gate(shared_prefork_worker.client, gate)
    assert spared.result.get(timeout=10) == "unlooked"


def test_wait_gives_up_in_time(shared_prefork_worker: CeleryWorker) -> None:
    """`wait` raises TimeoutError where the task does not end."""
    gate = "slow" + shared_prefork_worker.name
    job = send(shared_prefork_worker, "return_unlooked", gate).wait_until_started()
    handle = revoke(job.result)
    with pytest.raises(TimeoutError, match=job.id):
        handle.wait(0.05)
    open_gate(shared_prefork_worker.client, gate)
    handle.wait(10)
