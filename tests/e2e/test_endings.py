"""Record and Celery result agree, however a body ends."""

from __future__ import annotations

import pytest

from celery_canceltoken import State
from tests.e2e.conftest import send
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory


def test_success(shared_worker: CeleryWorker) -> None:
    """A body that returns has succeeded, and the record drops the value that Celery's backend has."""
    job = send(shared_worker, "big_return", 10)
    assert job.result.get(timeout=10) == "x" * 10
    record = job.wait_until_final()
    assert (record.state, record.value) == (State.SUCCEEDED, None)


def test_failure(shared_worker: CeleryWorker) -> None:
    """A body that raises has failed."""
    job = send(shared_worker, "big_return", "no number")
    with pytest.raises(TypeError):
        job.result.get(timeout=10)
    assert job.wait_until_final().state is State.FAILED


def test_stray_cancellation_is_a_failure(shared_worker: CeleryWorker) -> None:
    """TaskCancelled that nobody asked for is an ordinary failure."""
    job = send(shared_worker, "stray")
    with pytest.raises(Exception, match="nobody had asked"):
        job.result.get(timeout=10)
    assert job.result.state == "FAILURE"
    assert job.wait_until_final().state is State.FAILED


def test_ignore(shared_worker: CeleryWorker) -> None:
    """Ignore leaves the result alone, and the record says so."""
    job = send(shared_worker, "ignore").wait_until_started()
    assert job.wait_until_final().state is State.IGNORED
    assert job.result.state == "PENDING"


def test_reject(shared_worker: CeleryWorker) -> None:
    """Reject without requeue is recorded as such."""
    job = send(shared_worker, "reject").wait_until_started()
    assert job.wait_until_final().state is State.REJECTED


def test_result_that_cannot_be_written_is_a_failure(shared_worker: CeleryWorker) -> None:
    """Where Celery turns a return value it cannot encode into a failure, the record follows."""
    job = send(shared_worker, "unserializable")
    wait_until(lambda: job.result.state == "FAILURE", description="Celery has failed the task")
    assert job.wait_until_final().state is State.FAILED


def test_reject_with_requeue_runs_again(worker_factory: WorkerFactory) -> None:
    """Reject with requeue brings the same message back, and it is claimed again."""
    worker = worker_factory(pool="threads", configuration={"task_acks_late": True})
    job = send(worker, "reject_back_once")
    assert job.result.get(timeout=15) == "second time"
    record = job.wait_until_final()
    assert (record.state, record.attempt, job.starts()) == (State.SUCCEEDED, 2, 2)


def test_retry_counts_generations(shared_worker: CeleryWorker) -> None:
    """Each retry is the next generation of the same id."""
    job = send(shared_worker, "retry_until", 5)
    assert job.result.get(timeout=15) == 5
    record = job.wait_until_final()
    assert (record.state, record.attempt, record.generation, job.starts()) == (State.SUCCEEDED, 6, 5, 6)


def test_replaced_by_a_chain(shared_worker: CeleryWorker) -> None:
    """The last task of a chain that replaces a task runs under its id, as the next generation."""
    job = send(shared_worker, "replace_by_chain")
    job.wait_until_started(2)
    from celery_canceltoken import revoke

    assert revoke(job.result).wait(10).state is State.REVOKED
    record = job.record()
    assert record is not None
    assert record.generation == 1


@pytest.mark.timeout(180)
def test_a_thousand_retries_and_two_hundred_replacements(worker_factory: WorkerFactory) -> None:
    """On four processes every copy runs once, and no record is left PROCESSING."""
    worker = worker_factory(concurrency=4)
    retried = [send(worker, "retry_until", 100) for _ in range(10)]
    replaced = [send(worker, "replace_until", 20) for _ in range(10)]
    for job in retried:
        assert job.result.get(timeout=120) == 100
    for job in replaced:
        assert job.result.get(timeout=60) == "replaced"
    assert [job.starts() for job in retried] == [101] * 10
    assert [job.starts() for job in replaced] == [21] * 10
    states = [(job.wait_until_final().state, job.wait_until_final().generation) for job in retried + replaced]
    assert states == [(State.SUCCEEDED, 100)] * 10 + [(State.SUCCEEDED, 20)] * 10
