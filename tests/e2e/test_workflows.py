"""Who else is told when a task is revoked: chains, chords, errbacks, listeners to events."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError

from celery_canceltoken import revoke
from tests.e2e.conftest import Job
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory


def test_rest_of_the_chain_is_revoked(shared_worker: CeleryWorker) -> None:
    """What follows a revoked task in a chain never runs, and its result says REVOKED."""
    tasks = shared_worker.client.tasks
    last = chain(tasks["wait"].s(30), tasks["note_value"].s(), tasks["note_value"].s()).apply_async()
    first = Job(last.parent.parent).wait_until_started()
    revoke(first.result, reason="stop here").wait(10)
    with pytest.raises(TaskRevokedError, match="stop here"):
        last.get(timeout=10)
    assert last.state == "REVOKED"
    assert Job(last).journal() == []


def test_chord_body_fails(shared_prefork_worker: CeleryWorker) -> None:
    """A chord with a revoked member does not hang: its body fails with ChordError."""
    tasks = shared_prefork_worker.client.tasks
    result = chord([tasks["wait"].s(30), tasks["add"].s(1, 2)], tasks["note_value"].s()).apply_async()
    member = next(Job(one) for one in result.parent.results if Job(one).id in _started(result.parent.results))
    revoke(member.result, reason="stop here").wait(10)
    # Asked by its id alone: a result that knows its parents raises their error first.
    body = shared_prefork_worker.client.AsyncResult(result.id)
    with pytest.raises(ChordError, match="stop here"):
        body.get(timeout=10)


def test_group_sees_its_member_revoked(shared_threads_worker: CeleryWorker) -> None:
    """Getting a group's results raises TaskRevokedError where a member was revoked."""
    tasks = shared_threads_worker.client.tasks
    result = group([tasks["wait"].s(30), tasks["add"].s(1, 2)]).apply_async()
    member = Job(result.results[0]).wait_until_started()
    revoke(member.result).wait(10)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


def test_errbacks_are_called(shared_worker: CeleryWorker) -> None:
    """An errback is called with the TaskRevokedError."""
    tasks = shared_worker.client.tasks
    signature = tasks["wait"].s(30).on_error(tasks["note_error"].s())
    job = Job(signature.apply_async()).wait_until_started()
    revoke(job.result, reason="stop here").wait(10)
    job.wait_until_noted("errback:TaskRevokedError:stop here")


def test_errbacks_of_a_task_that_never_started_are_called(shared_worker: CeleryWorker) -> None:
    """A task revoked while it was queued calls its errback as well."""
    tasks = shared_worker.client.tasks
    signature = tasks["wait"].s(0).on_error(tasks["note_error"].s())
    signature.freeze()
    revoke(signature.id, reason="never", app=shared_worker.client)
    job = Job(signature.apply_async())
    job.wait_until_noted("errback:TaskRevokedError:never")
    assert job.starts() == 0


def test_event_is_sent(worker_factory: WorkerFactory, request: pytest.FixtureRequest) -> None:
    """A `task-revoked` event reaches whoever listens, and no `task-failed`."""
    worker = worker_factory(pool="threads", arguments=["--events"])
    events: list[dict[str, Any]] = []
    receiver = worker.client.events.Receiver(
        worker.client.connection_for_read(), handlers={"*": events.append}
    )

    def listen() -> None:
        with receiver.connection, contextlib.suppress(TimeoutError):
            receiver.capture(limit=None, timeout=5, wakeup=True)

    listener = threading.Thread(target=listen)
    listener.start()
    request.addfinalizer(lambda: setattr(receiver, "should_stop", True) or listener.join(10))
    wait_until(lambda: events, description="the listener hears of the worker")
    job = Job(worker.client.tasks["wait"].apply_async((30,))).wait_until_started()
    revoke(job.result).wait(10)

    def of_the_task() -> list[str]:
        return [one["type"] for one in events if one.get("uuid") == job.id]

    wait_until(lambda: "task-revoked" in of_the_task(), description=lambda: f"the event in {events}")
    assert of_the_task() == ["task-received", "task-started", "task-revoked"]


def _started(results: list[Any]) -> list[str]:
    jobs = [Job(one) for one in results]
    return wait_until(
        lambda: [job.id for job in jobs if job.starts()], description="a member of the chord has started"
    )
