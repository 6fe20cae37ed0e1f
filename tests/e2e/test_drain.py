"""A worker is emptied without being stopped, and filled again."""

from __future__ import annotations

import pytest

from celery_canceltoken import State, drain, undrain
from tests.e2e.conftest import Job, send
from tests.support.apps.stoppable import SECOND_RUN, STOPPABLE_APP
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name

TOLD = ["started", "told:SHUTDOWN"]
ANSWER = 10.0


@pytest.fixture
def worker_app() -> str:
    """Tests here run tasks that tell whether they were told."""
    return STOPPABLE_APP


def waiting_in(worker: CeleryWorker) -> int:
    """How many messages are in a worker's queue."""
    return int(worker.client.backend.client.llen(worker.queue))


def wait_until_waiting(worker: CeleryWorker, number: int) -> None:
    """Wait until so many messages are in a worker's queue."""
    wait_until(
        lambda: waiting_in(worker) == number,
        description=lambda: f"{number} messages are in the queue, not {waiting_in(worker)}",
    )


@pytest.mark.parametrize(
    "pool", ["prefork", "threads", "gevent", pytest.param("eventlet", marks=pytest.mark.soak)]
)
def test_drain_and_undrain(worker_factory: WorkerFactory, pool: str) -> None:
    """A drained worker tells its bodies, sends all back, starts nothing; when it is filled again it does."""
    worker = worker_factory(pool=pool, concurrency=2, configuration={"worker_prefetch_multiplier": 2})
    app = worker.client
    running = [send(worker, task, task).wait_until_started() for task in ("work", "late_work")]
    prefetched = [send(worker, task) for task in ("quick", "late_quick")]
    worker.wait_for_log(f"[{prefetched[0].id}] received")
    assert drain(worker.name, timeout=ANSWER, app=app)
    for job in running:
        job.wait_until_noted("told:SHUTDOWN")
    wait_until_waiting(worker, 4)
    late = send(worker, "quick", "sent later")
    wait_until_waiting(worker, 5)
    assert [(job.journal(), job.record()) for job in (*prefetched, late)] == [([], None)] * 3
    assert [record.state for job in running if (record := job.record()) is not None] == [State.ENQUEUED] * 2
    assert max(worker.logs().count(f"[{job.id}] given back") for job in prefetched) <= 1
    assert worker.is_running
    # Asked twice it is as drained as before.
    assert drain(worker.name, timeout=ANSWER, app=app)

    assert undrain(worker.name, timeout=ANSWER, app=app)
    for job in running:
        assert job.wait_until_stored("SUCCESS")[0] == SECOND_RUN
        assert job.journal() == [*TOLD, "started", "completed"]
    for job in (*prefetched, late):
        job.wait_until_stored("SUCCESS")
        assert job.journal() == ["started", "completed"]
    # And it hears of the next shutdown.
    again = send(worker, "work").wait_until_started()
    worker.stop()
    assert again.journal() == TOLD


def test_nobody_is_drained(worker_factory: WorkerFactory) -> None:
    """Who does not exist, or was not drained, does not answer that it was done."""
    worker = worker_factory(pool="threads", concurrency=1)
    assert not drain(unique_name("nobody"), app=worker.client)
    assert not undrain(unique_name("nobody"), app=worker.client)
    assert not undrain(worker.name, app=worker.client)
    send(worker, "quick").wait_until_stored("SUCCESS")


def test_worker_that_is_stopped_while_drained(worker_factory: WorkerFactory) -> None:
    """A drained worker is stopped like any other."""
    worker = worker_factory(concurrency=1)
    job = send(worker, "work").wait_until_started()
    assert drain(worker.name, timeout=ANSWER, app=worker.client)
    wait_until_waiting(worker, 1)
    assert worker.stop(timeout=10) == 0
    assert job.journal() == TOLD
    assert waiting_in(worker) == 1


class Evictor:
    """Sends the tasks of one worker back again and again, by draining it."""

    def __init__(self, worker: CeleryWorker) -> None:
        self.worker = worker

    def evict(self, job: Job, *, starts: int) -> None:
        """Have the run that is under way told of a shutdown, and the next one begin."""
        job.wait_until_started(starts)
        assert drain(self.worker.name, timeout=ANSWER, app=self.worker.client)
        wait_until(
            lambda: (record := job.record()) is not None and record.state is not State.PROCESSING,
            description="the run has ended",
        )
        assert undrain(self.worker.name, timeout=ANSWER, app=self.worker.client)


@pytest.fixture(params=["prefork", "threads"])
def evictor(request: pytest.FixtureRequest, worker_factory: WorkerFactory) -> Evictor:
    """A worker that lets a shutdown send a task back twice in a row."""
    configuration = {"canceltoken_max_shutdown_requeues": 2}
    return Evictor(worker_factory(pool=request.param, concurrency=1, configuration=configuration))


def test_cap_on_requeues(evictor: Evictor) -> None:
    """A task that shutdowns have sent back so often without a checkpoint in between has failed."""
    job = send(evictor.worker, "always_work")
    for starts in (1, 2, 3):
        evictor.evict(job, starts=starts)
    record = job.wait_until_final()
    assert (record.state, record.attempt, record.shutdown_requeues) == (State.FAILED, 3, 2)
    error = job.wait_until_stored("FAILURE")
    assert type(error).__name__ == "ShutdownError"


def test_checkpoint_resets_the_cap(evictor: Evictor) -> None:
    """Progress counts: a task that saves some each time is sent back as often as it takes."""
    job = send(evictor.worker, "save_and_wait", 3)
    for starts in (1, 2, 3):
        evictor.evict(job, starts=starts)
    assert job.wait_until_stored("SUCCESS") == 3
    assert job.starts() == 4
