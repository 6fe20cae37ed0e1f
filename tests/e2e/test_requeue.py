"""A task is sent to its queue again: by the worker while it runs, by whoever asks once it has ended."""

from __future__ import annotations

import signal
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import chord
from celery.exceptions import TaskRevokedError

from celery_canceltoken import Cause, State, requeue, reschedule, revoke
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP, SECOND_RUN
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, unique_name


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


def failed(worker: Any, task: str = "act", **options: Any) -> Job:
    """A task whose first run has failed."""
    job = send(worker, task, "raise", **options)
    assert job.wait_until_final().state is State.FAILED
    return job


@pytest.mark.parametrize("task", ["act", "late_act"])
def test_running_task_runs_again(worker_of_each_broker: CeleryWorker, task: str) -> None:
    """The body stops, and the same id runs again from its queue, acknowledged early or late."""
    job = send(worker_of_each_broker, task, "stop").wait_until_started()
    handle = requeue(job.result, reason="new rules", actor="support")
    assert (handle.applied, handle.previous) == (True, State.PROCESSING)
    outcome = handle.wait(10)
    assert (outcome.state, outcome.cause, outcome.reason) == (State.ENQUEUED, Cause.REQUEUED, "new rules")
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    record = job.wait_until_final()
    assert (record.state, record.attempt, record.generation) == (State.SUCCEEDED, 2, 1)
    assert job.starts() == 2


def test_ended_task_runs_again(worker_of_each_broker: CeleryWorker) -> None:
    """A task that has failed is sent at once, from the message in its record."""
    job = failed(worker_of_each_broker)
    handle = requeue(job.id, app=worker_of_each_broker.client)
    assert (handle.applied, handle.previous) == (True, State.FAILED)
    assert handle.wait(10).state is State.ENQUEUED
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    record = job.wait_until_final()
    assert (record.attempt, record.generation, record.error) == (2, 1, None)


@pytest.mark.parametrize("while_running", [True, False], ids=["running", "ended"])
def test_message_is_what_it_was(worker_of_each_broker: CeleryWorker, while_running: bool) -> None:
    """Queue, priority, headers, links, errbacks, stamps, expiry and all the rest arrive as they were."""
    client = worker_of_each_broker.client
    signature = client.tasks["act"].s("stop" if while_running else "raise", "", "grün", 1.5)
    signature.link(client.tasks["collect"].s())
    signature.link_error(client.tasks["note_error"].s())
    signature.stamp(tenant="acme", days=[1, 2])
    result = signature.apply_async(
        priority=3,
        expires=datetime.now(timezone.utc) + timedelta(hours=1),
        headers={"trace": "00-ab", "nested": {"a": [1, None]}},
        soft_time_limit=60,
        time_limit=120,
        add_to_parent=False,
    )
    job = Job(result)
    if while_running:
        job.wait_until_started()
    else:
        job.wait_until_final()
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    first, second = job.accounts()
    generations = [one["headers"].pop("canceltoken_generation") for one in (first, second)]
    assert generations == [0, 1]
    assert second == first
    assert first["headers"]["trace"] == "00-ab"
    assert first["stamps"] == {"tenant": "acme", "days": [1, 2]}


def test_member_of_a_chord_stays_one(main_worker: CeleryWorker) -> None:
    """The chord waits for a member that was sent back, and gets its second result."""
    client = main_worker.client
    act, collect = client.tasks["act"], client.tasks["collect"]
    result = chord([act.si("stop"), act.si("return")], collect.s()).apply_async()
    member = Job(result.parent.results[0]).wait_until_started()
    assert requeue(member.result)
    assert result.get(timeout=15) == [SECOND_RUN, "first run"]
    assert member.starts() == 2


def test_chain_goes_on_after_it(main_worker: CeleryWorker) -> None:
    """What follows in the chain gets the second run's value, and runs once."""
    client = main_worker.client
    result = (client.tasks["act"].s("stop") | client.tasks["collect"].s()).apply_async()
    first = Job(result.parent).wait_until_started()
    assert requeue(first.result)
    assert result.get(timeout=15) == SECOND_RUN
    assert Job(result).starts() == 1


def test_retries_are_unchanged(main_worker: CeleryWorker) -> None:
    """The second run counts the retries that the first one did, not one more."""
    job = send(main_worker, "act", "stop", retries=2).wait_until_started()
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert [one["retries"] for one in job.accounts()] == [2, 2]


def test_twice_in_a_row_happens_once(main_worker: CeleryWorker, gate: str) -> None:
    """Asked again while the first time is on its way, a requeue is refused."""
    job = send(main_worker, "act", "stop unlooked", gate).wait_until_started()
    first, second = requeue(job.result), requeue(job.result)
    assert first
    assert not second
    assert second.refusal
    open_gate(main_worker.client, gate)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert job.wait_until_final().generation == 1
    assert job.starts() == 2


def test_many_at_once_send_one_message(shared_solo_worker: CeleryWorker, gate: str) -> None:
    """Of requeues of an ended task from many threads one is applied."""
    job = failed(shared_solo_worker)
    busy = send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
    handles: list[Any] = []
    threads = [
        threading.Thread(target=lambda: handles.append(requeue(job.id, app=shared_solo_worker.client)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [handle.applied for handle in handles].count(True) == 1
    assert {handle.refusal for handle in handles} == {None, "the task is in its queue"}
    open_gate(shared_solo_worker.client, gate)
    busy.result.get(timeout=10)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert job.starts() == 2


def test_old_run_never_writes_over_the_new_one(worker_factory: WorkerFactory, gate: str) -> None:
    """A run whose worker lost its lease ends after the run that a requeue started: its end counts nothing."""
    configuration = {
        "canceltoken_heartbeat_interval": 0.2,
        "canceltoken_lease_duration": 0.5,
        "canceltoken_check_interval": 0.2,
    }
    old = worker_factory(pool="prefork", concurrency=1, configuration=configuration)
    job = send(old, "act", "return unlooked", gate).wait_until_started()
    # A frozen worker's last command to the broker would still be given the message.
    old.client.control.cancel_consumer(old.queue, reply=True)
    old.kill(signal.SIGSTOP)
    wait_until(
        lambda: not old.client.backend.client.exists(f"canceltoken:lease:{job.record().owner}"),  # type: ignore[union-attr]
        description="the lease has lapsed",
    )
    assert requeue(job.result)
    worker_factory(pool="threads", configuration=configuration)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    settled = job.wait_until_final()
    open_gate(old.client, gate)
    old.kill(signal.SIGCONT)
    old.wait_for_log(f"[{job.id}] ignored")
    assert job.record() == settled
    assert job.stored() == ("SUCCESS", SECOND_RUN)


def test_stale_copy_never_runs(shared_solo_worker: CeleryWorker, gate: str) -> None:
    """A copy of the old message that the broker still had is dropped."""
    client = shared_solo_worker.client
    busy = send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
    job = send(shared_solo_worker, "act", "raise")
    # The solo worker has it reserved already, so what is copied here is a message as it was sent.
    copy: list[Any] = []
    with client.connection_for_read() as connection, connection.channel() as channel:
        queue = client.amqp.queues[client.conf.task_default_queue](channel)

        def fetch() -> bool:
            message = queue.get(no_ack=True)
            if message is not None:
                copy.append(message)
            return bool(copy)

        wait_until(fetch, timeout=5, description="the message is there")
        message = copy[0]
        send_raw(client, message)
        open_gate(client, gate)
        busy.result.get(timeout=10)
        assert job.wait_until_final().state is State.FAILED
        busy = send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
        assert requeue(job.result)
        send_raw(client, message)
        open_gate(client, gate)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    send(shared_solo_worker, "whoami").result.get(timeout=10)
    assert job.starts() == 2


def send_raw(client: Any, message: Any) -> None:
    """Put a fetched message into its queue again, byte by byte."""
    with client.producer_pool.acquire(block=True) as producer:
        producer.publish(
            message.body,
            exchange=message.delivery_info["exchange"],
            routing_key=message.delivery_info["routing_key"],
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            correlation_id=message.properties["correlation_id"],
        )


def test_result_is_unknown_in_between(shared_solo_worker: CeleryWorker, gate: str) -> None:
    """From the requeue of an ended task to its next end nobody reads the old result."""
    job = failed(shared_solo_worker)
    busy = send(shared_solo_worker, "return_unlooked", gate).wait_until_started()
    assert requeue(job.id, app=shared_solo_worker.client)
    assert job.stored()[0] == "PENDING"
    open_gate(shared_solo_worker.client, gate)
    busy.result.get(timeout=10)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


def test_revoked_task_runs_again(main_worker: CeleryWorker) -> None:
    """A revoked task is requeued as a failed one is, and its REVOKED result is forgotten."""
    job = send(main_worker, "act", "stop").wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


def test_task_revoked_before_it_started_runs_then(shared_solo_worker: CeleryWorker) -> None:
    """A task that was denied has its message kept, too."""
    task_id = unique_name("id")
    handle = revoke(task_id, app=shared_solo_worker.client)
    job = send(shared_solo_worker, "act", "return", task_id=task_id)
    assert handle.wait(10).state is State.REVOKED
    assert requeue(task_id, app=shared_solo_worker.client)
    assert job.wait_until_stored("SUCCESS") == "first run"
    assert job.starts() == 1


def test_task_of_a_lost_worker_runs_again(worker_factory: WorkerFactory) -> None:
    """While a lost worker's record says PROCESSING, a requeue sends the message at once."""
    configuration = {"canceltoken_heartbeat_interval": 0.2, "canceltoken_lease_duration": 0.5}
    lost = worker_factory(pool="prefork", concurrency=1, configuration=configuration)
    job = send(lost, "act", "stop").wait_until_started()
    owner = getattr(job.record(), "owner", None)
    lost.crash()
    wait_until(
        lambda: not lost.client.backend.client.exists(f"canceltoken:lease:{owner}"),
        description="the lease has lapsed",
    )
    handle = requeue(job.result)
    assert (handle.applied, handle.previous) == (True, State.PROCESSING)
    worker_factory(pool="solo", configuration=configuration)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


def test_started_is_not_left_behind(shared_solo_worker: CeleryWorker, gate: str) -> None:
    """With task_track_started the result is not STARTED while the task is in its queue again."""
    client = shared_solo_worker.client
    job = send(shared_solo_worker, "tracked_act", "stop unlooked", gate).wait_until_started()
    assert job.stored()[0] == "STARTED"
    busy = send(shared_solo_worker, "return_unlooked", gate)
    handle = requeue(job.id, app=client)
    open_gate(client, gate)
    handle.wait(10)
    busy.wait_until_started()
    assert job.stored()[0] == "PENDING"
    open_gate(client, gate)
    assert client.AsyncResult(job.id).get(timeout=15) == SECOND_RUN


def test_task_with_a_backend_of_its_own(main_worker: CeleryWorker) -> None:
    """A task's own backend is the one whose result is forgotten and written."""
    job = failed(main_worker, "elsewhere_act")
    job.wait_until_stored("FAILURE")
    assert requeue(job.id, app=main_worker.client)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert not main_worker.client.backend.client.exists(f"celery-task-meta-{job.id}")


def test_task_that_ignores_its_result(main_worker: CeleryWorker) -> None:
    """Without a result there is still a second run, and nothing is written to the backend."""
    job = send(main_worker, "quiet_act", "stop").wait_until_started()
    assert requeue(job.id, app=main_worker.client)
    assert job.wait_until_final().state is State.SUCCEEDED
    assert job.starts() == 2
    assert main_worker.client.backend.client.exists(f"celery-task-meta-{job.id}") == 0


def test_unknown_id_is_refused(shared_solo_worker: CeleryWorker) -> None:
    """An id of which nothing is known is refused, and nothing is stored."""
    handle = requeue(unique_name("id"), app=shared_solo_worker.client)
    assert not handle
    assert handle.refusal == "nothing is known of this id"
    assert handle.record() is None


@pytest.mark.parametrize(
    ("task", "how", "reason"),
    [
        ("never_kept_act", "raise", "canceltoken_keep_message"),
        ("act", "return", "the task has succeeded"),
    ],
)
def test_no_message_is_refused_with_the_reason(
    shared_threads_worker: CeleryWorker, task: str, how: str, reason: str
) -> None:
    """Where no message is kept of an ended task, the handle says why, and the record stays."""
    job = send(shared_threads_worker, task, how)
    before = job.wait_until_final()
    handle = requeue(job.result)
    assert not handle
    assert reason in (handle.refusal or "")
    assert job.record() == before
    assert job.starts() == 1


def test_large_message_is_refused_with_the_reason(shared_threads_worker: CeleryWorker) -> None:
    """A message above canceltoken_message_limit is not kept, and the record and the handle say so."""
    job = send(shared_threads_worker, "act", "raise", "", "x" * 70_000)
    assert job.wait_until_final().message_not_kept == "too-large"
    assert "canceltoken_message_limit" in (requeue(job.result).refusal or "")


@pytest.mark.parametrize("task", ["never_kept_act", "act"])
def test_running_task_whose_message_is_not_kept_runs_again(main_worker: CeleryWorker, task: str) -> None:
    """While it runs the worker has the message at hand: neither the policy nor its size matters."""
    extra = "x" * (70_000 if task == "act" else 1)
    job = send(main_worker, task, "stop", "", extra).wait_until_started()
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    first, second = job.accounts()
    assert second["args"] == first["args"] == ["stop", "", extra]


def test_always_kept_message_of_a_success(shared_threads_worker: CeleryWorker) -> None:
    """With keep_message="always" a task that has succeeded can run again."""
    job = send(shared_threads_worker, "always_kept_act", "return")
    assert job.wait_until_final().state is State.SUCCEEDED
    assert requeue(job.id, app=shared_threads_worker.client)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


@pytest.mark.parametrize(
    ("policy", "how", "kept"),
    [("never", "raise", False), ("always", "return", True)],
)
def test_policy_by_setting(worker_factory: WorkerFactory, policy: str, how: str, kept: bool) -> None:
    """canceltoken_keep_message is what tasks go by that say nothing themselves."""
    worker = worker_factory(pool="solo", configuration={"canceltoken_keep_message": policy})
    job = send(worker, "act", how)
    job.wait_until_final()
    assert requeue(job.id, app=worker.client).applied is kept


def test_requeue_of_a_task_that_completed_unlooked(main_worker: CeleryWorker, gate: str) -> None:
    """A body that returned without looking runs again all the same, and the outcome says it had completed."""
    job = send(main_worker, "act", "return unlooked", gate).wait_until_started()
    handle = requeue(job.result)
    open_gate(main_worker.client, gate)
    outcome = handle.wait(10)
    assert (outcome.state, outcome.completed, str(outcome)) == (
        State.ENQUEUED,
        True,
        "ENQUEUED: the run had completed",
    )
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


def test_from_state_is_a_precondition(shared_threads_worker: CeleryWorker) -> None:
    """A requeue from another state than the task's is refused, and the body is not told."""
    job = send(shared_threads_worker, "act", "stop").wait_until_started()
    handle = requeue(job.result, from_state="FAILED")
    assert not handle
    assert job.record().state is State.PROCESSING  # type: ignore[union-attr]
    assert requeue(job.result, from_state=["FAILED", "PROCESSING"])
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


def test_revoke_outranks_a_requeue(main_worker: CeleryWorker, gate: str) -> None:
    """A revoke after a requeue ends the task, and the requeue's handle says that it was overruled."""
    job = send(main_worker, "act", "stop unlooked", gate).wait_until_started()
    again, stop = requeue(job.result), revoke(job.result, reason="not at all")
    assert again
    assert stop
    open_gate(main_worker.client, gate)
    assert stop.wait(10).state is State.REVOKED
    assert again.wait(10).overruled
    with pytest.raises(TaskRevokedError, match="not at all"):
        job.result.get(timeout=5)
    assert job.starts() == 1


def test_reschedule_runs_at_the_time(main_worker: CeleryWorker) -> None:
    """A failed task that is rescheduled waits SCHEDULED, and runs when its time has come, not before."""
    job = failed(main_worker)
    eta = datetime.now(timezone.utc) + timedelta(seconds=1)
    handle = reschedule(job.id, eta=eta, app=main_worker.client)
    assert handle.wait(10).state is State.SCHEDULED
    record = job.record()
    assert record is not None
    assert (record.state, record.eta) == (State.SCHEDULED, eta)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    record = job.wait_until_final()
    assert record.started_at is not None
    assert record.started_at >= eta
    assert record.eta is None


def test_reschedule_of_a_running_task(main_worker: CeleryWorker) -> None:
    """A running body is told, and runs again at the time."""
    job = send(main_worker, "act", "stop").wait_until_started()
    handle = reschedule(job.result, countdown=1)
    assert handle.wait(10).state is State.SCHEDULED
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    record = job.wait_until_final()
    assert record.started_at is not None
    assert record.requested_at is None or record.started_at - record.requested_at >= timedelta(seconds=1)


def test_reschedule_moves_what_waits(main_worker: CeleryWorker) -> None:
    """A task that waits for a far time is moved to a near one, runs once, and the older copy never runs."""
    job = failed(main_worker)
    assert reschedule(job.id, countdown=3600, app=main_worker.client)
    assert reschedule(job.id, countdown=0.5, app=main_worker.client)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    assert job.wait_until_final().generation == 2
    assert job.starts() == 2


def test_scheduled_task_can_be_revoked(main_worker: CeleryWorker) -> None:
    """What waits for a time after a reschedule is revoked as any queued task is."""
    job = failed(main_worker)
    assert reschedule(job.id, countdown=1, app=main_worker.client)
    assert revoke(job.id, app=main_worker.client).wait(15).state is State.REVOKED
    assert job.starts() == 1


def test_reschedule_to_a_later_time(main_worker: CeleryWorker) -> None:
    """A copy for an earlier time, which a worker holds already, does not run when that comes."""
    job = failed(main_worker)
    first = reschedule(job.id, countdown=0.4, app=main_worker.client)
    eta = datetime.now(timezone.utc) + timedelta(seconds=1.2)
    second = reschedule(job.id, eta=eta, app=main_worker.client)
    assert (first.applied, second.applied, second.previous) == (True, True, State.SCHEDULED)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    record = job.wait_until_final()
    assert record.started_at is not None
    assert record.started_at >= eta
    assert (job.starts(), record.generation) == (2, 2)
