"""Records in lists, and what a record tells of a task's life."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_canceltoken import Cause, InvalidArgumentError, State, TaskRecord, list_records, requeue, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


@pytest.fixture
def own_worker(worker_factory: WorkerFactory) -> CeleryWorker:
    """A worker whose records are its own."""
    return worker_factory(pool="threads", configuration={"canceltoken_prefix": unique_name("prefix")})


def everything(limit: int, **criteria: Any) -> Iterator[list[TaskRecord]]:
    """All pages of a list."""
    cursor = None
    while True:
        page = list_records(limit=limit, cursor=cursor, **criteria)
        yield list(page)
        cursor = page.cursor
        if cursor is None:
            return


def test_by_state_name_and_worker(own_worker: CeleryWorker, gate: str) -> None:
    """Each criterion finds its records, together they find those that fit all."""
    app = own_worker.client
    good, bad, late = send(app, "act", "return"), send(app, "act", "raise"), send(app, "late_act", "return")
    for job in (good, bad, late):
        job.wait_until_final()
    running = send(app, "act", "stop unlooked", gate).wait_until_started()

    def found(**criteria: Any) -> set[str]:
        return {record.task_id for record in list_records(app=app, **criteria)}

    assert found() == {good.id, bad.id, late.id, running.id}
    assert found(state="SUCCEEDED") == {good.id, late.id}
    assert found(state=[State.FAILED, State.PROCESSING]) == {bad.id, running.id}
    assert found(name="act") == {good.id, bad.id, running.id}
    assert found(name="act", state="SUCCEEDED") == {good.id}
    assert found(worker=own_worker.name) == {good.id, bad.id, late.id, running.id}
    assert found(worker=own_worker.name, name="late_act", state="SUCCEEDED") == {late.id}
    assert found(worker="celery@nowhere") == found(name="nothing") == found(state="DELETED") == set()
    open_gate(app, gate)
    running.wait_until_final()
    assert found(state="PROCESSING") == set()


def test_pages(own_worker: CeleryWorker) -> None:
    """Page by page all records come, each once, those that changed last first."""
    app = own_worker.client
    jobs = [send(app, "act", "return") for _ in range(25)]
    for job in jobs:
        job.wait_until_final()
    pages = list(everything(10, state="SUCCEEDED", app=app))
    assert [len(page) for page in pages if page] == [10, 10, 5]
    records = [record for page in pages for record in page]
    assert {record.task_id for record in records} == {job.id for job in jobs}
    settled = [record.history[-1].at for record in records]
    assert settled == sorted(settled, reverse=True)


def test_pages_over_several_states(own_worker: CeleryWorker) -> None:
    """The cursor leads from one state's list into the next."""
    app = own_worker.client
    jobs = [send(app, "act", how) for how in ("return", "raise") * 5]
    for job in jobs:
        job.wait_until_final()
    pages = list(everything(3, state=["SUCCEEDED", "FAILED"], app=app))
    assert sorted(record.task_id for page in pages for record in page) == sorted(job.id for job in jobs)


def test_bad_cursor_is_refused(shared_threads_worker: CeleryWorker) -> None:
    """A cursor that is none raises, and says so."""
    with pytest.raises(InvalidArgumentError, match="cursor"):
        list_records(cursor="yesterday", app=shared_threads_worker.client)


def test_list_goes_by_what_is(own_worker: CeleryWorker) -> None:
    """A requeued task is listed where it is now, and nowhere else."""
    app = own_worker.client
    job = send(app, "act", "raise")
    job.wait_until_final()
    requeue(job.id, app=app)
    job.wait_until_stored("SUCCESS")
    job.wait_until_final()
    states = [state for state in State for record in list_records(state=state, app=app)]
    assert states == [State.SUCCEEDED]


def test_history_of_a_life(main_worker: CeleryWorker) -> None:
    """The record tells the changes in their order: runs, requests, what became of them, and who ran it."""
    job = send(main_worker, "look_and_raise").wait_until_started()
    requeue(job.result, reason="once more", actor="support").wait(10)
    job.wait_until_started(2)
    handle = revoke(job.result, reason="enough")
    handle.wait(10)
    record = job.wait_until_final()
    told = [
        (line.state, line.attempt, line.request_kind, line.answer, line.reason) for line in record.history
    ]
    assert told == [
        (State.PROCESSING, 1, None, None, None),
        (State.PROCESSING, 1, "requeue", "pending", "once more"),
        (State.ENQUEUED, 1, "requeue", "effective", "once more"),
        (State.PROCESSING, 2, None, None, None),
        (State.PROCESSING, 2, "revoke", "pending", "enough"),
        (State.REVOKED, 2, "revoke", "effective", "enough"),
    ]
    assert [line.worker for line in record.history] == [main_worker.name] * 6
    assert [line.actor for line in record.history][2] == "support"
    assert record.history[-1].cause is Cause.REVOKED
    assert record.history[-1].request_id == handle.request_id
    times = [line.at for line in record.history]
    assert times == sorted(times)


def test_history_keeps_the_last_twenty(main_worker: CeleryWorker) -> None:
    """A long life is told from its twentieth change before the last on."""
    job = send(main_worker, "retry_until", 15)
    job.result.get(timeout=15)
    record = job.wait_until_final()
    assert len(record.history) == 20
    assert (record.history[-1].state, record.history[-1].attempt) == (State.SUCCEEDED, 16)
    assert [line.attempt for line in record.history] == sorted(line.attempt for line in record.history)


def test_seconds_to_stop(main_worker: CeleryWorker, gate: str) -> None:
    """The time from the request to the end of the body, and none where nobody has asked."""
    job = send(main_worker, "act", "stop unlooked", gate).wait_until_started()
    handle = revoke(job.result)
    wait_until(lambda: getattr(job.record(), "delivered_at", None), description="the worker knows")
    assert job.record().seconds_to_stop is None  # type: ignore[union-attr]
    open_gate(main_worker.client, gate)
    handle.wait(10)
    record = job.wait_until_final()
    assert record.requested_at is not None
    assert record.stopped_at is not None
    assert record.seconds_to_stop == (record.stopped_at - record.requested_at).total_seconds() > 0
    quiet: Job = send(main_worker, "act", "return")
    assert quiet.wait_until_final().seconds_to_stop is None
