"""What a body saves for its next attempt, and what it may know of its own execution."""

from __future__ import annotations

import pytest

from celery_canceltoken import InvalidArgumentError, State, requeue, revoke
from celery_canceltoken.configuration import client_store
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.stoppable import SECOND_RUN, STOPPABLE_APP
from tests.support.workers import CeleryWorker, WorkerFactory


@pytest.fixture
def worker_app() -> str:
    """Tests here run bodies that save how far they came."""
    return STOPPABLE_APP


def test_execution_knows_itself(shared_worker: CeleryWorker) -> None:
    """A first attempt is told its ids, and that nothing was saved before it."""
    job = send(shared_worker, "look_around")
    told = job.wait_until_stored("SUCCESS")
    record = job.wait_until_final()
    assert told == {
        "task_id": job.id,
        "execution_id": record.execution_id,
        "attempt": 1,
        "is_resumed": False,
        "resume_data": None,
    }


def test_requeued_task_goes_on_where_it_was(shared_worker: CeleryWorker) -> None:
    """What a body has saved is what the next attempt finds; it is gone when the task has succeeded."""
    job = send(shared_worker, "count", 5, 3)
    job.wait_until_noted("at-gate")
    record = job.record()
    assert record is not None
    assert record.checkpoint == '{"place":3}'
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == {"begun": 3, "place": 5, "attempt": 2}
    record = job.wait_until_final()
    assert (record.state, record.checkpoint) == (State.SUCCEEDED, None)


def test_stopped_worker_hands_the_place_over(worker_factory: WorkerFactory) -> None:
    """A task that its worker's shutdown has stopped goes on from its checkpoint on another worker."""
    worker = worker_factory(concurrency=1)
    job = send(worker, "count", 5, 3)
    job.wait_until_noted("at-gate")
    assert worker.stop() == 0
    worker_factory(pool="solo")
    assert job.wait_until_stored("SUCCESS") == {"begun": 3, "place": 5, "attempt": 2}


def test_retry_keeps_the_checkpoint(shared_worker: CeleryWorker) -> None:
    """Each retry finds what the attempt before it has saved."""
    job = send(shared_worker, "save_and_retry", 2)
    # Celery writes RETRY beside the next run, now and then after that has written its SUCCESS.
    job.wait_until_noted("found:[1, 2]")
    record = job.wait_until_final()
    assert (record.state, record.checkpoint) == (State.SUCCEEDED, None)


def test_new_life_starts_without_a_checkpoint(main_worker: CeleryWorker) -> None:
    """An id that is sent again on purpose does not go on from where an earlier life was stopped."""
    job = send(main_worker, "count", 5, 3)
    job.wait_until_noted("at-gate")
    assert revoke(job.result).wait(10).state is State.REVOKED
    assert job.wait_until_final().checkpoint is not None
    job.app.backend.client.delete(f"journal:{job.id}")
    send(main_worker, "count", 2, 99, task_id=job.id)
    assert job.wait_until_stored("SUCCESS") == {"begun": 0, "place": 2, "attempt": 1}


def test_requeue_of_a_revoked_task_goes_on_where_it_was(main_worker: CeleryWorker) -> None:
    """A task that was stopped half-way and is wanted after all need not begin anew."""
    job = send(main_worker, "count", 5, 3)
    job.wait_until_noted("at-gate")
    assert revoke(job.result).wait(10).state is State.REVOKED
    job.wait_until_final()
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == {"begun": 3, "place": 5, "attempt": 2}


def test_only_the_owner_saves(main_worker: CeleryWorker, gate: str) -> None:
    """A body whose id belongs to another execution by now is told, and changes nothing."""
    job = send(main_worker, "saver", gate, {"from": "the first"})
    job.wait_until_started()
    record = job.record()
    assert record is not None
    # As after a lapsed lease: another execution holds the record.
    redis, key = job.app.backend.client, client_store(job.app).keys.record(job.id)
    redis.hset(key, "execution", "another")
    open_gate(job.app, gate)
    job.wait_until_noted("superseded")
    assert redis.hget(key, "checkpoint") is None


def test_checkpoint_of_a_requeued_run_is_kept(main_worker: CeleryWorker, gate: str) -> None:
    """Asked to run again, a body may still save how far it came."""
    job = send(main_worker, "saver", gate, ["half", "way"])
    job.wait_until_started()
    assert requeue(job.result)
    open_gate(job.app, gate)
    job.wait_until_noted("saved")
    open_gate(job.app, gate)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert "resumed:['half', 'way']" in job.journal()


@pytest.mark.parametrize("how", ["none", "not-json", "too-large"])
def test_what_cannot_be_saved(main_worker: CeleryWorker, how: str) -> None:
    """None, what JSON does not hold and what is too large are refused within the body."""
    job = send(main_worker, "save_badly", how)
    assert job.wait_until_stored("SUCCESS") == InvalidArgumentError.__name__


def test_eager_run_has_nowhere_to_save(main_worker: CeleryWorker) -> None:
    """An eager run knows its attempt; a checkpoint of it is refused."""
    tasks = main_worker.client.tasks
    assert tasks["look_around"].apply().get()["attempt"] == 1
    assert tasks["save_badly"].apply(("fine",)).get() == "CancelTokenError"


def test_jobs_of_ids_are_told_apart(main_worker: CeleryWorker) -> None:
    """Two ids that run side by side in one process save their own."""
    jobs = [send(main_worker, "count", until, 1) for until in (2, 3)]
    for job in jobs:
        job.wait_until_noted("at-gate")
    for job in jobs:
        assert requeue(job.result)
    assert [_place(job) for job in jobs] == [2, 3]


def _place(job: Job) -> int:
    return int(job.wait_until_stored("SUCCESS")["place"])
