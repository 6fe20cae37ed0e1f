"""What was asked of a task is taken back, as long as nobody has heeded it."""

from __future__ import annotations

import signal

import pytest

from celery_canceltoken import RequestHandle, State, delete, reschedule, revoke, withdraw
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


@pytest.fixture
def queued(shared_solo_worker: CeleryWorker, gate: str) -> Job:
    """A task behind another one that holds the gate."""
    send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
    return send(shared_solo_worker, "act", "return")


@pytest.mark.parametrize("by_handle", [True, False], ids=["handle", "id"])
def test_revoke_of_a_queued_task(
    shared_solo_worker: CeleryWorker, queued: Job, gate: str, by_handle: bool
) -> None:
    """The task runs as though nobody had asked, and both handles say what happened."""
    stop = revoke(queued.result)
    back = withdraw(stop if by_handle else queued.id, app=shared_solo_worker.client)
    assert (back.applied, back.kind, back.previous) == (True, "withdraw", None)
    assert stop.wait(5).withdrawn
    open_gate(shared_solo_worker.client, gate)
    assert queued.wait_until_stored("SUCCESS") == "first run"
    assert back.wait(10).state is State.SUCCEEDED
    assert queued.starts() == 1


def test_delete_of_a_queued_task(shared_solo_worker: CeleryWorker, queued: Job, gate: str) -> None:
    """The result that said REVOKED is unknown again, until the task has run."""
    forget = delete(queued.id, app=shared_solo_worker.client)
    assert queued.stored()[0] == "REVOKED"
    assert withdraw(forget)
    assert queued.stored()[0] == "PENDING"
    open_gate(shared_solo_worker.client, gate)
    assert queued.wait_until_stored("SUCCESS") == "first run"


def test_delete_of_a_task_with_a_backend_of_its_own(shared_threads_worker: CeleryWorker) -> None:
    """The result that is unknown again is the one in the task's own backend."""
    client = shared_threads_worker.client
    job = send(client, "elsewhere_act", "raise")
    job.wait_until_final()
    assert reschedule(job.id, countdown=3600, app=client)
    forget = delete(job.id, app=client)
    assert job.stored()[0] == "REVOKED"
    assert withdraw(forget)
    assert job.stored()[0] == "PENDING"


def test_can_be_asked_anew(shared_solo_worker: CeleryWorker, queued: Job, gate: str) -> None:
    """After a withdrawal another request is a first one."""
    withdraw(revoke(queued.result))
    again = revoke(queued.result, reason="after all")
    assert again
    open_gate(shared_solo_worker.client, gate)
    outcome = again.wait(10)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "after all")
    assert queued.starts() == 0


def test_handle_takes_back_its_own_request_only(
    shared_solo_worker: CeleryWorker, queued: Job, gate: str
) -> None:
    """A request that another one has overruled takes nothing back."""
    stop, forget = revoke(queued.result), delete(queued.result)
    back = withdraw(stop)
    assert not back
    assert back.refusal == "nothing is asked of the task that could be taken back"
    open_gate(shared_solo_worker.client, gate)
    assert forget.wait(10).state is State.DELETED


def test_body_that_was_told_stays_told(main_worker: CeleryWorker, gate: str) -> None:
    """Once the token has tripped there is no way back."""
    job = send(main_worker, "act", "stop unlooked", gate).wait_until_started()
    stop = revoke(job.result)
    wait_until(lambda: getattr(job.record(), "delivered_at", None), description="the worker knows")
    back = withdraw(stop)
    assert not back
    assert back.refusal == "the body has been told already"
    open_gate(main_worker.client, gate)
    assert stop.wait(10).state is State.REVOKED
    assert back.wait(5).state is State.REVOKED


def test_running_task_before_it_was_told(worker_factory: WorkerFactory, gate: str) -> None:
    """What is taken back before the worker heard of it never reaches the token."""
    worker = worker_factory(pool="prefork", concurrency=1)
    job = send(worker, "disregard", 5)
    held = send(worker, "return_unlooked", gate)
    job.wait_until_started()
    worker.kill(signal.SIGSTOP)
    stop: RequestHandle = revoke(job.result)
    assert withdraw(stop)
    worker.kill(signal.SIGCONT)
    later = revoke(held.result, reason="the worker has read its mail by then")
    assert later
    record = job.record()
    assert record is not None
    assert (record.state, record.delivered_at, record.answer) == (State.PROCESSING, None, "withdrawn")
    assert stop.wait(5).withdrawn
    assert revoke(job.result).wait(10).came_too_late


@pytest.mark.parametrize("ended", [True, False])
def test_nothing_to_take_back(shared_threads_worker: CeleryWorker, ended: bool, gate: str) -> None:
    """Where nothing is asked, or the task has ended, a withdrawal is refused with the reason."""
    job = send(shared_threads_worker, "act", "return unlooked", gate).wait_until_started()
    if ended:
        open_gate(shared_threads_worker.client, gate)
        job.wait_until_final()
    back = withdraw(job.result)
    assert not back
    assert back.refusal == (
        "the task has ended" if ended else "nothing is asked of the task that could be taken back"
    )
    open_gate(shared_threads_worker.client, gate)


def test_unknown_id(shared_threads_worker: CeleryWorker) -> None:
    """For an id of which nothing is known there is nothing to take back, and nothing is stored."""
    back = withdraw(unique_name("id"), app=shared_threads_worker.client)
    assert not back
    assert back.record() is None
