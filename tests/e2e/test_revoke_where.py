"""Many tasks at once: by what they are, and by their ids."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_canceltoken import (
    InvalidArgumentError,
    State,
    StoredTask,
    reschedule,
    revoke,
    revoke_many,
    revoke_where,
)
from celery_canceltoken.configuration import client_store
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


@pytest.fixture
def tenant() -> str:
    """A stamp of this test's own: the workers and their store are shared."""
    return unique_name("tenant")


def send_stamped(worker: CeleryWorker, *args: Any, task: str = "act", **stamps: Any) -> Job:
    """Send a task with stamps."""
    signature = worker.client.tasks[task].s(*args)
    signature.stamp(**stamps)
    return Job(signature.apply_async())


def ids(handles_or_records: Any) -> set[str]:
    """Whom an answer names."""
    return {one.task_id for one in handles_or_records}


def test_by_stamp(main_worker: CeleryWorker, tenant: str) -> None:
    """Tasks with the stamp are told, among them one with several values of it; others are not."""
    one = send_stamped(main_worker, "stop", tenant=tenant).wait_until_started()
    two = send_stamped(main_worker, "stop", tenant=["other", tenant]).wait_until_started()
    spared = send_stamped(main_worker, "stop", tenant=tenant + "2").wait_until_started()
    handles = revoke_where(stamps={"tenant": tenant}, reason="gone", app=main_worker.client)
    assert ids(handles) == {one.id, two.id}
    assert {outcome.state for outcome in handles.wait(10).values()} == {State.REVOKED}
    assert spared.record().state is State.PROCESSING  # type: ignore[union-attr]
    revoke(spared.result).wait(10)


def test_by_arguments(main_worker: CeleryWorker, tenant: str) -> None:
    """The predicate sees name, arguments and headers of each task that is left, as they were sent."""
    one = send_stamped(main_worker, "stop", "", {"customer": 7}, tenant=tenant).wait_until_started()
    other = send_stamped(main_worker, "stop", "", {"customer": 8}, tenant=tenant).wait_until_started()
    seen: list[tuple[Any, ...]] = []

    def of_customer_7(task: StoredTask) -> bool:
        seen.append((task.task_id, task.name, dict(task.kwargs), task.headers["lang"]))
        return bool(task.args[2]["customer"] == 7)

    handles = revoke_where(stamps={"tenant": tenant}, where=of_customer_7, app=main_worker.client)
    assert ids(handles) == {one.id}
    assert sorted(seen) == sorted((job.id, "act", {}, "py") for job in (one, other))
    handles.wait(10)
    revoke(other.result).wait(10)


def test_by_name_and_queue(main_worker: CeleryWorker, tenant: str) -> None:
    """Every criterion given has to fit."""
    job = send_stamped(main_worker, "stop", tenant=tenant, task="late_act").wait_until_started()
    queue, app = main_worker.queue, main_worker.client

    def found(**criteria: Any) -> set[str]:
        return ids(revoke_where(stamps={"tenant": tenant}, dry_run=True, app=app, **criteria))

    assert found(name="late_act", queue=queue) == {job.id}
    assert found(name="act") == set()
    assert found(name="late_act", queue=queue + "2") == set()
    handles = revoke_where(name="late_act", queue=queue, app=app)
    assert job.id in ids(handles)
    handles.wait(10)


def test_dry_run_asks_nothing(main_worker: CeleryWorker, tenant: str) -> None:
    """A dry run returns the records of those who would be told, and writes nothing."""
    job = send_stamped(main_worker, "stop", tenant=tenant).wait_until_started()
    before = job.record()
    assert revoke_where(stamps={"tenant": tenant}, dry_run=True, app=main_worker.client) == [before]
    assert job.record() == before
    revoke(job.result).wait(10)


def test_tasks_that_wait(main_worker: CeleryWorker, tenant: str) -> None:
    """A task that waits for a time is told with those that run; one that has ended is not."""
    waits, over = (send_stamped(main_worker, "raise", tenant=tenant) for _ in range(2))
    runs = send_stamped(main_worker, "stop", tenant=tenant).wait_until_started()
    for job in (waits, over):
        job.wait_until_final()
    assert reschedule(waits.id, countdown=3600, app=main_worker.client)
    handles = revoke_where(stamps={"tenant": tenant}, app=main_worker.client)
    assert {handle.task_id: handle.previous for handle in handles} == {
        waits.id: State.SCHEDULED,
        runs.id: State.PROCESSING,
    }
    runs.wait_until_stored("REVOKED")


def test_tasks_still_to_come(main_worker: CeleryWorker, tenant: str) -> None:
    """With `until` those that come later are told as they are claimed, until the time is over."""
    now = send_stamped(main_worker, "stop", tenant=tenant).wait_until_started()
    until = datetime.now(timezone.utc) + timedelta(seconds=1.5)
    handles = revoke_where(
        stamps={"tenant": tenant}, until=until, reason="closed", actor="support", app=main_worker.client
    )
    assert ids(handles) == {now.id}
    later, other = (
        send_stamped(main_worker, "return", tenant=tenant),
        send_stamped(main_worker, "return", tenant=tenant + "2"),
    )
    record = later.wait_until_final()
    assert (record.state, record.reason, record.actor) == (State.REVOKED, "closed", "support")
    assert later.starts() == 0
    assert other.result.get(timeout=10) == "first run"
    wait_until(lambda: datetime.now(timezone.utc) > until, description="the time is over")
    assert send_stamped(main_worker, "return", tenant=tenant).result.get(timeout=10) == "first run"


def test_still_to_come_by_name_and_queue(worker_factory: WorkerFactory) -> None:
    """A standing order by name and queue meets exactly those."""
    worker = worker_factory(pool="threads")
    revoke_where(name="act", queue=worker.queue, until=timedelta(seconds=30), app=worker.client)
    stopped, spared = send(worker, "act", "return"), send(worker, "late_act", "return")
    assert stopped.wait_until_final().state is State.REVOKED
    assert spared.wait_until_final().state is State.SUCCEEDED


def test_task_whose_message_is_not_kept_is_left_alone(main_worker: CeleryWorker, tenant: str) -> None:
    """Stamps cannot be looked up without the message; the task goes on."""
    job = send_stamped(main_worker, "stop", tenant=tenant, task="never_kept_act").wait_until_started()
    assert list(revoke_where(stamps={"tenant": tenant}, app=main_worker.client)) == []
    assert revoke(job.result).wait(10).state is State.REVOKED


@pytest.mark.parametrize("damage", ["damaged", "foreign"])
def test_message_that_cannot_be_read_keeps_nobody_else_from_being_told(
    main_worker: CeleryWorker, tenant: str, damage: str
) -> None:
    """A task whose kept message, or what is in it, cannot be read is left alone; the others are told."""
    one = send_stamped(main_worker, "stop", tenant=tenant).wait_until_started()
    spared = send_stamped(main_worker, "stop", tenant=tenant).wait_until_started()
    store = client_store(main_worker.client)
    kept = store.ask(store.calls.message(spared.id)) or ""
    bad = kept.replace("application/json", "application/x-foreign") if damage == "foreign" else kept[:-9]
    main_worker.client.backend.client.hset(store.keys.record(spared.id), "message", bad)
    told = revoke_where(
        stamps={"tenant": tenant}, where=lambda task: task.args is not None, app=main_worker.client
    )
    assert ids(told) == {one.id}
    told.wait(10)
    revoke(spared.result).wait(10)


def test_predicate_that_raises(main_worker: CeleryWorker, tenant: str) -> None:
    """What the predicate raises comes through, and nobody was told."""
    jobs = [send_stamped(main_worker, "stop", tenant=tenant).wait_until_started() for _ in range(2)]
    asked: list[StoredTask] = []

    def fail_on_the_second(task: StoredTask) -> bool:
        asked.append(task)
        return bool(task.args[len(asked)])

    with pytest.raises(IndexError):
        revoke_where(stamps={"tenant": tenant}, where=fail_on_the_second, app=main_worker.client)
    assert [job.record().request_id for job in jobs] == [None, None]  # type: ignore[union-attr]
    revoke_many([job.result for job in jobs]).wait(10)


def test_no_criterion_is_refused(main_worker: CeleryWorker) -> None:
    """All tasks of everybody are not what somebody means who forgot the criterion."""
    with pytest.raises(InvalidArgumentError):
        revoke_where(app=main_worker.client)


def test_many_in_all_states(shared_threads_worker: CeleryWorker, gate: str) -> None:
    """An answer for each id, in their order: running, told before, scheduled, ended, unknown, twice."""
    worker, app = shared_threads_worker, shared_threads_worker.client
    running = send(worker, "act", "stop").wait_until_started()
    told = send(worker, "act", "stop unlooked", gate).wait_until_started()
    revoke(told.result)
    waits, ended = send(worker, "act", "raise"), send(worker, "act", "return")
    waits.wait_until_final()
    ended.wait_until_final()
    reschedule(waits.id, countdown=3600, app=app)
    unknown = unique_name("id")
    handles = revoke_many([running.result, told.id, waits.id, ended.result, unknown], reason="all", app=app)
    assert [handle.task_id for handle in handles] == [running.id, told.id, waits.id, ended.id, unknown]
    assert [handle.applied for handle in handles] == [True, False, True, False, True]
    assert [handle.previous for handle in handles] == [
        State.PROCESSING,
        State.PROCESSING,
        State.SCHEDULED,
        State.SUCCEEDED,
        None,
    ]
    assert [handle.refusal for handle in handles.refused] == [
        "the same, or more, has been asked of the task already",
        "the task has ended",
    ]
    assert handles[0].wait(10).state is State.REVOKED
    open_gate(app, gate)
    told.wait_until_final()


def test_hundreds_at_once(main_worker: CeleryWorker) -> None:
    """Five hundred tasks are told before they are sent: those that come do not start."""
    task_ids = [unique_name("id") for _ in range(500)]
    handles = revoke_many(task_ids, app=main_worker.client)
    assert len(handles.applied) == 500
    jobs = [send(main_worker, "act", "return", task_id=task_id) for task_id in task_ids[:20]]
    assert {handle.wait(20).state for handle in handles[:20]} == {State.REVOKED}
    assert sum(job.starts() for job in jobs) == 0
