"""The outcome table, row by row: what was asked, how the body ended, and what everybody is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_canceltoken import Cause, RequestHandle, State, delete, requeue, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP, SECOND_RUN
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker

Order = Callable[..., RequestHandle]

ENDINGS = [
    *("stop", "stop unlooked", "return looked", "return unlooked", "disregard", "raise looked"),
    *(
        "raise unlooked",
        "retry looked",
        "retry unlooked",
        "ignore looked",
        "ignore unlooked",
        "reject looked",
    ),
    "reject unlooked",
]
"""How the first run ends; looked: having observed that it is to stop."""

TOO_LATE = {
    "return unlooked": (State.SUCCEEDED, "SUCCESS"),
    "disregard": (State.SUCCEEDED, "SUCCESS"),
    "raise unlooked": (State.FAILED, "FAILURE"),
    "ignore unlooked": (State.IGNORED, "PENDING"),
}
"""What becomes of those whom a revoke reaches too late: their record, and Celery's result."""


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


def ended(worker: CeleryWorker, order: Order, how: str, gate: str, **options: Any) -> tuple[Job, Any]:
    """A task that was told while it ran, and the outcome of the order."""
    job = send(worker, "act", how, gate, **options).wait_until_started()
    handle = order(job.result, reason="row")
    assert handle.applied
    if how.endswith("unlooked"):
        wait_until(lambda: getattr(job.record(), "delivered_at", None), description="the worker knows")
    open_gate(worker.client, gate)
    return job, handle.wait(10)


def cancellations(job: Job) -> list[str]:
    """The causes that the task's hook was told."""
    return [event.split(":")[1] for event in job.journal() if event.startswith("on_cancelled")]


def failures(job: Job) -> list[str]:
    """What is told to the hook and the signal for failures and retries."""
    return [event for event in job.journal() if event.partition(":")[0] in FAILURE_HOOKS]


FAILURE_HOOKS = ("on_failure", "on_retry", "signal-task_failure", "signal-task_retry")


@pytest.mark.parametrize("how", [how for how in ENDINGS if how != "reject unlooked"])
def test_revoked(main_worker: CeleryWorker, how: str, gate: str) -> None:
    """A revoke holds, or came too late; record, result, hooks and handle agree on which."""
    job, outcome = ended(main_worker, revoke, how, gate)
    state, result = TOO_LATE.get(how, (State.REVOKED, "REVOKED"))
    assert (outcome.state, outcome.came_too_late) == (state, how in TOO_LATE)
    record = job.wait_until_final()
    assert (record.state, record.cause, record.generation) == (state, Cause.REVOKED, 0)
    assert job.stored()[0] == result
    assert cancellations(job) == ([] if how in TOO_LATE else ["REVOKED"])
    assert bool(failures(job)) == (state is State.FAILED)
    assert job.starts() == 1


def test_revoked_too_late_for_a_rejection(main_worker: CeleryWorker, gate: str) -> None:
    """A body that rejects its message without having looked is REJECTED; its result is Celery's affair."""
    job, outcome = ended(main_worker, revoke, "reject unlooked", gate)
    assert (outcome.state, outcome.came_too_late) == (State.REJECTED, True)
    assert cancellations(job) == []


@pytest.mark.parametrize("how", ENDINGS)
def test_deleted(main_worker: CeleryWorker, how: str, gate: str) -> None:
    """A delete holds whatever the body does, and leaves neither value, error nor message."""
    job, outcome = ended(main_worker, delete, how, gate)
    assert (outcome.state, outcome.came_too_late) == (State.DELETED, False)
    record = job.wait_until_final()
    assert (record.state, record.cause, record.generation) == (State.DELETED, Cause.DELETED, 0)
    assert (record.value, record.error) == (None, None)
    state, error = job.stored()
    assert (state, type(error).__name__, str(error)) == ("REVOKED", "TaskRevokedError", "row")
    assert cancellations(job) == ["DELETED"]
    assert failures(job) == []
    assert job.starts() == 1


@pytest.mark.parametrize("how", ENDINGS)
def test_requeued(main_worker: CeleryWorker, how: str, gate: str) -> None:
    """A requeue brings the task back however its body ended, at once and without a further retry."""
    job, outcome = ended(main_worker, requeue, how, gate)
    assert (outcome.state, outcome.cause) == (State.ENQUEUED, Cause.REQUEUED)
    assert outcome.completed is (how in ("return unlooked", "disregard"))
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    record = job.wait_until_final()
    assert (record.state, record.attempt, record.generation) == (State.SUCCEEDED, 2, 1)
    assert [one["retries"] for one in job.accounts()] == [0, 0]
    assert cancellations(job) == ["REQUEUED"]
    assert failures(job) == []


@pytest.mark.parametrize(
    ("order", "state", "runs"),
    [(revoke, State.REVOKED, 1), (delete, State.DELETED, 1), (requeue, State.SUCCEEDED, 2)],
)
@pytest.mark.parametrize("how", ["raise looked", "raise unlooked"])
def test_autoretry_takes_no_cancellation_for_a_failure(
    main_worker: CeleryWorker, order: Order, state: State, runs: int, how: str, gate: str
) -> None:
    """What a body raises when it was told to stop is not retried by autoretry_for."""
    job = send(main_worker, "auto_act", how, gate).wait_until_started()
    handle = order(job.result)
    if how.endswith("unlooked"):
        wait_until(lambda: getattr(job.record(), "delivered_at", None), description="the worker knows")
    open_gate(main_worker.client, gate)
    handle.wait(10)
    assert job.wait_until_final().state is state
    assert [one["retries"] for one in job.accounts()] == [0] * runs
    assert failures(job) == []


@pytest.mark.parametrize(
    ("order", "state", "result"),
    [
        (revoke, State.FAILED, "FAILURE"),
        (delete, State.DELETED, "REVOKED"),
        (requeue, State.SUCCEEDED, "SUCCESS"),
    ],
)
def test_soft_time_limit(
    shared_prefork_worker: CeleryWorker, order: Order, state: State, result: str
) -> None:
    """A soft limit that strikes a body which has not looked is an exception like any other."""
    job = send(shared_prefork_worker, "act", "sleep", soft_time_limit=0.5).wait_until_started()
    outcome = order(job.result).wait(10)
    assert outcome.came_too_late is (order is revoke)
    assert job.wait_until_final().state is state
    job.wait_until_stored(result)
    assert ("on_failure:SoftTimeLimitExceeded" in job.journal()) is (order is revoke)


def test_soft_time_limit_of_a_body_that_has_looked(shared_prefork_worker: CeleryWorker) -> None:
    """A soft limit that strikes while the body cleans up leaves the revoke in force."""
    job = send(shared_prefork_worker, "act", "sleep looked", soft_time_limit=0.5).wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED
    assert "SoftTimeLimitExceeded" in (job.wait_until_final().error or "")
    assert failures(job) == []


@pytest.mark.parametrize(
    ("order", "state", "result"),
    [
        (None, State.FAILED, "FAILURE"),
        (revoke, State.FAILED, "FAILURE"),
        (delete, State.DELETED, "REVOKED"),
        (requeue, State.FAILED, "FAILURE"),
    ],
)
def test_hard_time_limit(
    shared_prefork_worker: CeleryWorker, order: Order | None, state: State, result: str
) -> None:
    """The hard limit kills the child: the task has failed unless it was deleted, and a requeue is told so."""
    job = send(shared_prefork_worker, "act", "sleep", time_limit=0.5).wait_until_started()
    if order is not None:
        outcome = order(job.result).wait(10)
        assert (outcome.state, outcome.came_too_late) == (state, state is State.FAILED)
    assert job.wait_until_final().state is state
    job.wait_until_stored(result)
    assert job.starts() == 1


def test_task_that_hit_its_hard_limit_can_be_requeued(shared_prefork_worker: CeleryWorker) -> None:
    """Its message is kept, as that of any failed task."""
    job = send(shared_prefork_worker, "act", "sleep", time_limit=0.5)
    job.wait_until_final()
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


@pytest.mark.parametrize(("order", "state"), [(delete, State.DELETED), (requeue, State.REVOKED)])
def test_terminated(shared_prefork_worker: CeleryWorker, order: Order, state: State) -> None:
    """Celery's terminate kills the child: it is revoked, or deleted where that was asked."""
    job = send(shared_prefork_worker, "act", "sleep").wait_until_started()
    handle = order(job.result)
    shared_prefork_worker.client.control.revoke(job.id, terminate=True, signal="SIGKILL")
    outcome = handle.wait(15)
    assert (outcome.state, outcome.came_too_late) == (state, order is requeue)
    job.wait_until_stored("REVOKED")
    assert job.starts() == 1
