"""A task is stopped and forgotten, wherever it is; nobody who depends on it hangs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, TaskRevokedError

from celery_canceltoken import State, delete, requeue, reschedule, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


def stored_fields(job: Job) -> dict[str, str]:
    """The record as it lies in the store."""
    raw = job.app.backend.client.hgetall(f"canceltoken:task:{job.id}")
    return {name.decode(): value.decode() for name, value in raw.items()}


def test_running_task_stops(worker_of_each_broker: CeleryWorker) -> None:
    """The body is told, and what is left of the task says DELETED, by whom, and nothing more."""
    job = send(worker_of_each_broker, "act", "return looked", "", "secret").wait_until_started()
    assert "secret" in stored_fields(job)["message"]
    handle = delete(job.result, actor="support")
    assert (handle.applied, handle.previous) == (True, State.PROCESSING)
    assert handle.wait(10).state is State.DELETED
    fields = stored_fields(job)
    assert fields["actor"] == "support"
    assert {"message", "value", "error"} & set(fields) == set()
    assert "secret" not in str(fields)


def test_get_ends_at_once(shared_worker: CeleryWorker, gate: str) -> None:
    """Whoever waits in `get()` gets TaskRevokedError while the body still runs."""
    job = send(shared_worker, "act", "stop unlooked", gate).wait_until_started()
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            job.result.get(timeout=20)
        except Exception as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    handle = delete(job.id, app=shared_worker.client)
    waiter.join(10)
    assert repr(caught) == "[TaskRevokedError('deleted')]"
    assert job.record().state is State.PROCESSING  # type: ignore[union-attr]
    open_gate(shared_worker.client, gate)
    assert handle.wait(10).state is State.DELETED
    assert job.stored()[0] == "REVOKED"


def test_queued_task_never_starts(shared_solo_worker: CeleryWorker, gate: str) -> None:
    """A task behind another one never starts, and its result says so before any worker comes to it."""
    busy = send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
    job = send(shared_solo_worker, "act", "return")
    handle = delete(job.result, reason="by mistake")
    assert (handle.applied, handle.previous) == (True, None)
    with pytest.raises(TaskRevokedError, match="by mistake"):
        job.result.get(timeout=5)
    open_gate(shared_solo_worker.client, gate)
    busy.result.get(timeout=10)
    assert handle.wait(10).state is State.DELETED
    assert job.starts() == 0
    assert "message" not in stored_fields(job)


def test_scheduled_task_never_starts(main_worker: CeleryWorker) -> None:
    """What waits for its time is deleted as well."""
    job = send(main_worker, "act", "raise")
    job.wait_until_final()
    assert reschedule(job.id, countdown=0.5, app=main_worker.client)
    handle = delete(job.id, app=main_worker.client)
    assert handle.previous is State.SCHEDULED
    assert handle.wait(15).state is State.DELETED
    assert job.starts() == 1


def test_nothing_is_left_to_requeue(main_worker: CeleryWorker) -> None:
    """A deleted task cannot be requeued, and the handle says why."""
    job = send(main_worker, "always_kept_act", "stop").wait_until_started()
    delete(job.result).wait(10)
    assert "no message of the task is kept" in (requeue(job.result).refusal or "")


def test_ended_task_is_left_alone(main_worker: CeleryWorker) -> None:
    """A delete of a task that has ended is refused, and its result stays."""
    job = send(main_worker, "act", "return")
    before = job.wait_until_final()
    assert delete(job.result).refusal == "the task has ended"
    assert job.record() == before
    assert job.stored() == ("SUCCESS", "first run")


def test_outranks_what_was_asked_before(main_worker: CeleryWorker, gate: str) -> None:
    """A delete overrules a requeue and a revoke; neither overrules a delete."""
    job = send(main_worker, "act", "stop unlooked", gate).wait_until_started()
    again, stop, forget = requeue(job.result), revoke(job.result), delete(job.result)
    late = revoke(job.result)
    assert [again.applied, stop.applied, forget.applied, late.applied] == [True, True, True, False]
    open_gate(main_worker.client, gate)
    assert forget.wait(10).state is State.DELETED
    assert again.wait(5).overruled
    assert stop.wait(5).overruled
    assert job.starts() == 1


def test_unknown_id_is_refused_where_it_must_exist(shared_solo_worker: CeleryWorker) -> None:
    """With `must_exist` an unknown id is refused, and no result is written for it."""
    task_id = unique_name("id")
    assert not delete(task_id, must_exist=True, app=shared_solo_worker.client)
    assert shared_solo_worker.client.AsyncResult(task_id).state == "PENDING"


@pytest.mark.parametrize("queued", [False, True], ids=["running", "queued"])
def test_chord_body_fails(main_worker: CeleryWorker, queued: bool) -> None:
    """A chord with a deleted member ends with ChordError."""
    tasks = main_worker.client.tasks
    member = tasks["act"].si("stop")
    member.freeze()
    if queued:
        delete(member.id, app=main_worker.client)
    result = chord([member, tasks["act"].si("return")], tasks["collect"].s()).apply_async()
    if not queued:
        delete(Job(result.parent.results[0]).wait_until_started().result)
    body = main_worker.client.AsyncResult(result.id)
    with pytest.raises(ChordError, match="deleted"):
        body.get(timeout=10)


def test_deleted_body_of_a_chord_never_runs(main_worker: CeleryWorker, gate: str) -> None:
    """The body of a chord is deleted while its members run: it ends at once, and is not run later."""
    tasks = main_worker.client.tasks
    header = [tasks["act"].si("stop unlooked", gate), tasks["act"].si("return")]
    result = chord(header, tasks["collect"].s()).apply_async()
    member = Job(result.parent.results[0]).wait_until_started()
    handle = delete(result.id, app=main_worker.client)
    job = Job(main_worker.client.AsyncResult(result.id))
    assert job.stored()[0] == "REVOKED"
    assert requeue(member.result)
    open_gate(main_worker.client, gate)
    assert handle.wait(10).state is State.DELETED
    assert job.starts() == 0


def test_rest_of_the_chain_is_revoked(main_worker: CeleryWorker) -> None:
    """What follows a deleted task in a chain never runs, and its result says REVOKED."""
    tasks = main_worker.client.tasks
    last = chain(tasks["act"].si("stop"), tasks["collect"].s(), tasks["collect"].s()).apply_async()
    first = Job(last.parent.parent).wait_until_started()
    delete(first.result, reason="stop here")
    with pytest.raises(TaskRevokedError, match="stop here"):
        last.get(timeout=10)
    assert Job(last).wait_until_stored("REVOKED")
    assert Job(last).starts() == 0


def test_deleted_link_of_a_chain_ends_the_rest(main_worker: CeleryWorker, gate: str) -> None:
    """A task in the middle of a chain is deleted before its turn: it never runs, nor does the rest."""
    tasks = main_worker.client.tasks
    signature = chain(
        tasks["act"].si("return unlooked", gate), tasks["act"].si("return"), tasks["collect"].s()
    )
    last = signature.apply_async()
    Job(last.parent.parent).wait_until_started()
    handle = delete(last.parent)
    open_gate(main_worker.client, gate)
    assert handle.wait(10).state is State.DELETED
    Job(last).wait_until_stored("REVOKED")
    assert (Job(last.parent).starts(), Job(last).starts()) == (0, 0)


def test_errbacks_are_called(main_worker: CeleryWorker) -> None:
    """An errback is called, once, with TaskRevokedError."""
    tasks = main_worker.client.tasks
    signature = tasks["act"].s("stop").on_error(tasks["note_error"].s())
    job = Job(signature.apply_async()).wait_until_started()
    delete(job.result).wait(10)
    job.wait_until_noted("errback:TaskRevokedError:deleted")
    assert [event for event in job.journal() if event.startswith("errback")] == [
        "errback:TaskRevokedError:deleted"
    ]


def test_task_with_a_backend_of_its_own(main_worker: CeleryWorker, gate: str) -> None:
    """The result that ends at once is the one in the task's own backend."""
    job = send(main_worker, "elsewhere_act", "stop unlooked", gate).wait_until_started()
    handle = delete(job.id, app=main_worker.client)
    assert job.stored()[0] == "REVOKED"
    open_gate(main_worker.client, gate)
    handle.wait(10)
    assert main_worker.client.backend.client.exists(f"celery-task-meta-{job.id}") == 0


def test_task_of_a_lost_worker(worker_factory: WorkerFactory) -> None:
    """What a lost worker ran is deleted by the next one."""
    configuration: dict[str, Any] = {
        "canceltoken_heartbeat_interval": 0.2,
        "canceltoken_lease_duration": 0.5,
        "canceltoken_check_interval": 0.2,
    }
    lost = worker_factory(pool="prefork", concurrency=1, configuration=configuration)
    job = send(lost, "act", "stop").wait_until_started()
    lost.crash()
    handle = delete(job.result)
    assert handle.applied
    worker_factory(pool="solo", configuration=configuration)
    assert handle.wait(15).state is State.DELETED
    assert "message" not in stored_fields(job)
    wait_until(lambda: job.stored()[0] == "REVOKED", description="the result says so")
