"""Who hears of a cancellation, and who does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from celery_canceltoken import RequestHandle, State, delete, requeue, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP, SECOND_RUN
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, unique_name

Order = Callable[..., RequestHandle]
ORDERS = pytest.mark.parametrize(
    ("order", "cause"), [(revoke, "REVOKED"), (delete, "DELETED"), (requeue, "REQUEUED")]
)


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


def told(job: Job, event: str) -> list[Any]:
    """What a hook or a signal was told, each time."""
    return [json.loads(line.partition(":")[2]) for line in job.journal() if line.startswith(f"{event}:")]


@ORDERS
def test_signal(shared_worker: CeleryWorker, order: Order, cause: str) -> None:
    """task_cancelled tells why, in whose words, by whom and of what arguments, once, where the body ran."""
    job = send(shared_worker, "act", "stop", kwargs={"gate": "none"}).wait_until_started()
    order(job.result, reason="new rules", actor="support").wait(10)
    job.wait_until_final()
    assert told(job, "signal-task_cancelled") == [
        [cause, "new rules", "support", ["stop"], {"gate": "none"}, True]
    ]


@ORDERS
def test_hook(main_worker: CeleryWorker, order: Order, cause: str) -> None:
    """on_cancelled is called once, with the arguments of the call, before the result says it."""
    job = send(main_worker, "act", "stop", kwargs={"gate": "none"}).wait_until_started()
    order(job.result).wait(10)
    job.wait_until_final()
    assert [line for line in job.journal() if line.startswith("on_cancelled")] == [
        f'on_cancelled:{cause}:[["stop"], {{"gate": "none"}}]'
    ]


@pytest.mark.parametrize(("order", "cause"), [(revoke, "REVOKED"), (delete, "DELETED")])
def test_task_that_never_started(shared_worker: CeleryWorker, order: Order, cause: str) -> None:
    """Hook and signal hear of a task that was denied before its body ran."""
    task_id = unique_name("id")
    handle = order(task_id, reason="in time", app=shared_worker.client)
    job = send(shared_worker, "act", "return", task_id=task_id)
    handle.wait(10)
    assert told(job, "signal-task_cancelled") == [[cause, "in time", None, ["return"], {}, True]]
    assert f'on_cancelled:{cause}:[["return"], {{}}]' in job.journal()
    assert job.starts() == 0


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize(
    ("order", "state", "result"), [(revoke, State.REVOKED, "REVOKED"), (delete, State.DELETED, "REVOKED")]
)
def test_broken_hooks_change_nothing(
    main_worker: CeleryWorker, order: Order, state: State, result: str, started: bool
) -> None:
    """A hook and a receiver that raise are logged; the other receivers and the outcome are as ever."""
    task_id = unique_name("id")
    if started:
        job = send(main_worker, "badly_watched_act", "stop", task_id=task_id).wait_until_started()
        handle = order(job.result)
    else:
        handle = order(task_id, app=main_worker.client)
        job = send(main_worker, "badly_watched_act", "stop", task_id=task_id)
    assert handle.wait(10).state is state
    assert job.stored()[0] == result
    assert "on_cancelled" in job.journal()
    assert len(told(job, "signal-task_cancelled")) == 1
    assert f"on_cancelled of task badly_watched_act[{task_id}] failed" in main_worker.logs()


def test_broken_hooks_do_not_stop_a_requeue(main_worker: CeleryWorker) -> None:
    """The task goes back to its queue, whatever its hook raises."""
    job = send(main_worker, "badly_watched_act", "stop").wait_until_started()
    requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


@pytest.mark.parametrize("how", ["stop", "raise looked", "return looked"])
@ORDERS
def test_failure_hooks_hear_nothing(main_worker: CeleryWorker, order: Order, cause: str, how: str) -> None:
    """Neither on_failure nor task_failure is told of what ended as it was told to, nor any retry hook."""
    job = send(main_worker, "act", how).wait_until_started()
    order(job.result).wait(10)
    job.wait_until_final()
    heard = {line.partition(":")[0] for line in job.journal()}
    assert not heard & {"on_failure", "on_retry", "signal-task_failure", "signal-task_retry"}, cause


@pytest.mark.parametrize("how", ["stop", "raise looked", "return looked"])
@ORDERS
def test_error_reporters_hear_nothing(main_worker: CeleryWorker, order: Order, cause: str, how: str) -> None:
    """What wraps the call of the task to report its exceptions sees nothing to report."""
    job = send(main_worker, "reported_act", how).wait_until_started()
    order(job.result).wait(10)
    job.wait_until_final()
    assert not [line for line in job.journal() if line.startswith("reported")], cause


def test_error_reporters_hear_of_real_failures(main_worker: CeleryWorker) -> None:
    """The same wrapper sees the exception of a body that failed by itself."""
    job = send(main_worker, "reported_act", "raise")
    job.wait_until_final()
    assert "reported:RuntimeError" in job.journal()


def test_errback_hears_nothing_of_a_requeue(main_worker: CeleryWorker) -> None:
    """The errback of a task that was sent back is not called."""
    tasks = main_worker.client.tasks
    signature = tasks["act"].s("raise looked").on_error(tasks["note_error"].s())
    job = Job(signature.apply_async()).wait_until_started()
    requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    # Whatever had been sent would be in the queue before this one.
    send(main_worker, "whoami").result.get(timeout=10)
    assert not [line for line in job.journal() if line.startswith("errback")]


def test_second_run_that_fails_is_told(main_worker: CeleryWorker) -> None:
    """After a requeue a real failure is one: the errback that came with the message is called."""
    tasks = main_worker.client.tasks
    signature = tasks["look_and_raise"].s().on_error(tasks["note_error"].s())
    job = Job(signature.apply_async()).wait_until_started()
    requeue(job.result)
    job.wait_until_started(2)
    revoke(job.result, reason="enough").wait(10)
    job.wait_until_noted("errback:TaskRevokedError:enough")


def test_too_late_is_no_cancellation(main_worker: CeleryWorker, gate: str) -> None:
    """A task that ended as though nobody had asked is not announced as cancelled."""
    job = send(main_worker, "act", "return unlooked", gate).wait_until_started()
    handle = revoke(job.result)
    wait_until(lambda: getattr(job.record(), "delivered_at", None), description="the worker knows")
    open_gate(main_worker.client, gate)
    assert handle.wait(10).came_too_late
    assert told(job, "signal-task_cancelled") == []
