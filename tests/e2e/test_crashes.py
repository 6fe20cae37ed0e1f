"""Clients and workers die between two steps of an order: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from celery_canceltoken import State, StoreUnavailableError, delete, requeue, revoke, withdraw
from celery_canceltoken.app_side import Actions
from celery_canceltoken.configuration import client_store
from tests.e2e.conftest import Job, open_gate, send
from tests.e2e.test_faults import QUICK
from tests.support.apps.mortal import MORTAL_APP
from tests.support.proxy import ToxicProxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, CeleryWorker, WorkerFactory, unique_name

AFTER_THE_SCRIPT = "after celery_canceltoken.store.redis_store:RedisStore.ask_many"
CLIENT_PUBLISHES = "celery_canceltoken.app_side:publish"
BODY_PUBLISHES = "celery_canceltoken.task.execution:publish"
SETTLES = "celery_canceltoken.store.agent_store:AgentStore.settle"
KEPT = {**QUICK, "canceltoken_keep_message": "always"}
# So long that nothing is found by looking for it.
NO_CHECKS = {"canceltoken_check_interval": 600.0}
PATIENCE = 40


@pytest.fixture
def worker_app() -> str:
    """What runs here dies where it is told to."""
    return MORTAL_APP


@pytest.fixture
def rabbitmq_proxy(rabbitmq: RabbitMQ) -> Iterator[ToxicProxy]:
    """A proxy before RabbitMQ, for faults that only this test sees. Request it before the workers."""
    address = urlsplit(rabbitmq.url)
    with ToxicProxy((address.hostname or "127.0.0.1", address.port or 5672)) as proxy:
        yield proxy
        proxy.heal()


def order_and_die(worker: CeleryWorker, order: str, job: Job, dies: str) -> None:
    """Have a client of its own process ask something of a task, and be killed at that place."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CT_BROKER_URL": worker.broker_url,
        "CT_RESULT_BACKEND": worker.result_backend,
        "CT_CONF": json.dumps(worker.configuration),
        "CT_DIES": dies,
    }
    command = [sys.executable, "-m", MORTAL_APP, order, job.id]
    ended = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def wait_until_all_is_carried_out(job: Job, queue: str) -> None:
    """Wait until no message and no copy of one is on its way."""
    redis, keys = job.app.backend.client, client_store(job.app).keys
    wait_until(
        lambda: redis.zscore(keys.outbox, job.id) is None and not redis.llen(queue),
        timeout=PATIENCE,
        description="queue and outbox are empty",
    )


def ended_job(worker: CeleryWorker) -> Job:
    """A task that has run to its end."""
    job = send(worker, "wait", 0.01)
    assert job.wait_until_final(PATIENCE).state is State.SUCCEEDED
    return job


# -- clients


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_revoke_of_a_client_that_dies_reaches_the_body(worker_factory: WorkerFactory, pool: str) -> None:
    """A client that is killed as soon as its request is stored has woken the worker by then."""
    worker = worker_factory(pool=pool, concurrency=1, configuration=NO_CHECKS)
    job = send(worker, "wait", 60).wait_until_started()
    order_and_die(worker, "revoke", job, AFTER_THE_SCRIPT)
    record = job.wait_until_final()
    assert (record.state, record.reason) == (State.REVOKED, "asked by the dead")


def test_revoke_whose_answer_is_lost_reaches_the_body(
    worker_factory: WorkerFactory, valkey: EmbeddedServer, valkey_proxy: ToxicProxy
) -> None:
    """A client that never gets the answer is told so, and the worker was woken all the same."""
    worker = worker_factory(pool="threads", concurrency=1, configuration=NO_CHECKS)
    job = send(worker, "wait", 60).wait_until_started()
    cut_off = worker.client.__class__(set_as_current=False)
    cut_off.conf.update(canceltoken_redis_url=valkey_proxy.url)
    assert revoke("warms up", app=cut_off)
    valkey_proxy.lose_replies_to(b"answer lost")
    with pytest.raises(StoreUnavailableError):
        revoke(job.id, reason="answer lost", app=cut_off)
    assert job.wait_until_final().reason == "answer lost"


def test_requeue_of_a_client_that_dies_before_it_publishes(worker_factory: WorkerFactory, queue: str) -> None:
    """A task that was to run again, and whose message nobody sent, is sent by an agent and runs once."""
    worker = worker_factory(pool="threads", configuration=KEPT)
    job = ended_job(worker)
    order_and_die(worker, "requeue", job, f"before {CLIENT_PUBLISHES}")
    job.wait_until_started(2, timeout=PATIENCE)
    assert job.wait_until_final().attempt == 2
    wait_until_all_is_carried_out(job, queue)
    assert job.starts() == 2


def test_requeue_of_a_client_that_dies_after_it_has_published(
    worker_factory: WorkerFactory, queue: str
) -> None:
    """A message that is sent a second time, as nobody knows of the first, does not run a second time."""
    worker = worker_factory(pool="threads", concurrency=1, configuration=KEPT)
    job = ended_job(worker)
    assert worker.stop() == 0
    elsewhere = worker_factory(pool="solo", queue=unique_name("elsewhere"), configuration=KEPT)
    order_and_die(worker, "requeue", job, f"after {CLIENT_PUBLISHES}")
    # Goes between the two copies, so that the second one finds a record that is final.
    gate = unique_name("gate")
    between = send(worker, "return_unlooked", gate)
    redis = job.app.backend.client
    wait_until(lambda: redis.llen(queue) == 3, timeout=PATIENCE, description="an agent has sent it as well")
    assert f"{job.id} sent back to its queue" in elsewhere.logs()
    heir = worker_factory(pool="threads", concurrency=1, configuration=KEPT)
    between.wait_until_started(timeout=PATIENCE)
    assert job.wait_until_final().state is State.SUCCEEDED
    open_gate(job.app, gate)
    heir.wait_for_log(f"wait[{job.id}] ignored", timeout=PATIENCE)
    wait_until_all_is_carried_out(job, queue)
    assert job.starts() == 2


# -- workers


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("task", ["wait", "late_wait"])
def test_worker_that_dies_as_it_sends_a_task_back(
    worker_factory: WorkerFactory, queue: str, moment: str, task: str
) -> None:
    """A worker that is killed before or after it has published leaves a task that runs once again."""
    dies = {"CT_DIES": f"{moment} {BODY_PUBLISHES}"}
    doomed = worker_factory(pool="threads", concurrency=1, configuration=QUICK, environment=dies)
    job = send(doomed, task, 60).wait_until_started()
    handle = requeue(job.result)
    assert doomed.wait() == -signal.SIGKILL
    assert handle.wait(10).state is State.ENQUEUED
    heir = worker_factory(pool="threads", concurrency=2, configuration=QUICK)
    job.wait_until_started(2, timeout=PATIENCE)
    wait_until_all_is_carried_out(job, queue)
    assert revoke(job.result).wait(PATIENCE).state is State.REVOKED
    record = job.record()
    assert record is not None
    assert (record.worker, record.attempt, job.starts()) == (heir.name, 2, 2)


def test_late_acknowledged_message_comes_back_beside_the_one_in_the_outbox(
    worker_factory: WorkerFactory, rabbitmq: RabbitMQ
) -> None:
    """Where the broker still has the old message too, the task runs once again all the same."""
    doomed = worker_factory(
        broker_url=rabbitmq.url,
        pool="threads",
        concurrency=1,
        configuration=QUICK,
        environment={"CT_DIES": f"before {BODY_PUBLISHES}"},
    )
    job = send(doomed, "late_wait", 60).wait_until_started()
    assert requeue(job.result)
    assert doomed.wait() == -signal.SIGKILL
    worker_factory(broker_url=rabbitmq.url, pool="threads", concurrency=2, configuration=QUICK)
    job.wait_until_started(2, timeout=PATIENCE)
    redis, keys = job.app.backend.client, client_store(job.app).keys
    wait_until(
        lambda: redis.zscore(keys.outbox, job.id) is None, timeout=PATIENCE, description="the outbox is empty"
    )
    assert revoke(job.result).wait(PATIENCE).state is State.REVOKED
    assert job.starts() == 2


def test_child_that_dies_as_it_sends_a_task_back(worker_factory: WorkerFactory, queue: str) -> None:
    """A child that is killed between the end of a body and the publishing loses no task either."""
    worker = worker_factory(
        concurrency=1, configuration=QUICK, environment={"CT_DIES": f"before {BODY_PUBLISHES}"}
    )
    job = send(worker, "wait", 60).wait_until_started()
    assert requeue(job.result).wait(10).state is State.ENQUEUED
    job.wait_until_started(2, timeout=PATIENCE)
    wait_until_all_is_carried_out(job, queue)
    assert revoke(job.result).wait(PATIENCE).state is State.REVOKED
    assert job.starts() == 2


def test_late_news_of_a_dead_child_ends_no_later_run(worker_factory: WorkerFactory) -> None:
    """Celery notices the loss of a child seconds later: it ends the run the child had, and no other."""
    worker = worker_factory(
        concurrency=2, configuration=QUICK, environment={"CT_DIES": f"after {BODY_PUBLISHES}"}
    )
    job = send(worker, "wait", 60).wait_until_started()
    assert requeue(job.result).wait(10).state is State.ENQUEUED
    job.wait_until_started(2, timeout=PATIENCE)
    worker.wait_for_log("WorkerLostError", timeout=PATIENCE)
    handle = revoke(job.result, reason="heard by the second run")
    assert handle.previous is State.PROCESSING
    outcome = handle.wait(PATIENCE)
    assert (outcome.state, outcome.came_too_late) == (State.REVOKED, False)
    assert job.journal().count("observed") == 2


@pytest.mark.xfail(reason="Celery's own end of a lost child knows nothing of the run after it", strict=True)
def test_late_news_of_a_dead_child_writes_no_result(worker_factory: WorkerFactory) -> None:
    """A task that runs again by an order is not FAILURE for those who wait for its result."""
    worker = worker_factory(
        concurrency=2, configuration=QUICK, environment={"CT_DIES": f"after {BODY_PUBLISHES}"}
    )
    job = send(worker, "wait", 60).wait_until_started()
    assert requeue(job.result).wait(10).state is State.ENQUEUED
    job.wait_until_started(2, timeout=PATIENCE)
    worker.wait_for_log("WorkerLostError", timeout=PATIENCE)
    state = job.result.state
    assert revoke(job.result).wait(PATIENCE).state is State.REVOKED
    assert state != "FAILURE"


def test_requeue_between_the_death_of_a_worker_and_its_discovery(
    worker_factory: WorkerFactory, queue: str
) -> None:
    """What a dead worker left unsettled is settled by another, which then sends it to its queue as asked."""
    doomed = worker_factory(
        pool="threads", concurrency=1, configuration=KEPT, environment={"CT_DIES": f"before {SETTLES}"}
    )
    job = send(doomed, "wait", 0.01)
    assert doomed.wait() == -signal.SIGKILL
    handle = requeue(job.result)
    assert handle.previous is State.FINISHING
    worker_factory(pool="threads", concurrency=1, configuration=KEPT)
    outcome = handle.wait(PATIENCE)
    assert (outcome.state, outcome.completed) == (State.ENQUEUED, True)
    job.wait_until_started(2, timeout=PATIENCE)
    assert job.wait_until_final().state is State.SUCCEEDED
    wait_until_all_is_carried_out(job, queue)
    assert job.starts() == 2


def test_worker_that_slept_while_its_task_was_sent_back(worker_factory: WorkerFactory, queue: str) -> None:
    """What the body of a worker without a lease comes to counts for nothing once the task is another's."""
    # Long enough for the broker to have given up waiting with the sleeper.
    configuration = {**QUICK, "canceltoken_lease_duration": 3.0}
    sleeper = worker_factory(pool="threads", concurrency=1, configuration=configuration)
    gate = unique_name("gate")
    job = send(sleeper, "return_unlooked", gate).wait_until_started()
    before = job.record()
    assert before is not None
    # Else the broker may give it the message that it does not wake up for.
    job.app.control.cancel_consumer(queue, destination=[sleeper.name])
    sleeper.wait_for_log(f"Canceling queue {queue}", timeout=PATIENCE)
    sleeper.kill(signal.SIGSTOP)
    store = client_store(job.app)
    wait_until(lambda: not store.is_alive(before.owner or ""), description="its lease has run out")
    assert requeue(job.result).wait(1).state is State.ENQUEUED
    heir = worker_factory(pool="threads", concurrency=1, configuration=QUICK)
    job.wait_until_started(2, timeout=PATIENCE)
    # The gate lets those pass first who came first.
    open_gate(job.app, gate)
    sleeper.kill(signal.SIGCONT)
    sleeper.wait_for_log(f"return_unlooked[{job.id}] ignored", timeout=PATIENCE)
    now = job.record()
    assert now is not None
    assert (now.state, now.worker, now.attempt) == (State.PROCESSING, heir.name, 2)
    assert job.result.state == "PENDING"
    open_gate(job.app, gate)
    assert job.wait_until_final().worker == heir.name


def test_renewal_that_is_cut_short_is_completed_by_the_next_beat(worker_factory: WorkerFactory) -> None:
    """A worker that lost its lease, and then the store as it took its tasks over, takes them over later."""
    fails = {"CT_FAILS_ONCE": "celery_canceltoken.store.agent_store:AgentStore.adopt"}
    # Longer than the pause after a failure: the next beat finds the new lease in place. And no other agent
    # looks on: it would take over what the dead leave.
    configuration = {
        **QUICK,
        "canceltoken_lease_duration": 3.0,
        "canceltoken_prefix": unique_name("canceltoken"),
    }
    worker = worker_factory(pool="threads", concurrency=1, configuration=configuration, environment=fails)
    job = send(worker, "wait", 60).wait_until_started()
    before = job.record()
    assert before is not None
    worker.kill(signal.SIGSTOP)
    store = client_store(job.app)
    wait_until(lambda: not store.is_alive(before.owner or ""), description="its lease has run out")
    worker.kill(signal.SIGCONT)
    worker.wait_for_log("refused by the test", timeout=PATIENCE)
    wait_until(
        lambda: getattr(job.record(), "owner", before.owner) != before.owner,
        timeout=PATIENCE,
        description="the task is the new incarnation's",
    )
    assert revoke(job.result).wait(PATIENCE).state is State.REVOKED


# -- brokers


def test_broker_that_is_away_when_a_body_is_sent_back(
    rabbitmq_proxy: ToxicProxy, rabbitmq: RabbitMQ, worker_factory: WorkerFactory
) -> None:
    """A message that RabbitMQ does not take stays in the outbox, and is sent when it is back."""
    address = urlsplit(rabbitmq.url)
    through = address._replace(netloc=address.netloc.rpartition("@")[0] + f"@127.0.0.1:{rabbitmq_proxy.port}")
    worker = worker_factory(broker_url=through.geturl(), pool="threads", concurrency=1, configuration=QUICK)
    job = send(worker, "wait", 60).wait_until_started()
    rabbitmq_proxy.cut()
    handle = requeue(job.result)
    worker.wait_for_log("is sent back later", timeout=PATIENCE)
    assert handle.wait(10).state is State.ENQUEUED
    redis, keys = job.app.backend.client, client_store(job.app).keys
    assert redis.zscore(keys.outbox, job.id) is not None
    rabbitmq_proxy.heal()
    job.wait_until_started(2, timeout=PATIENCE)
    wait_until(
        lambda: redis.zscore(keys.outbox, job.id) is None, timeout=PATIENCE, description="the outbox is empty"
    )
    assert revoke(job.result).wait(PATIENCE).state is State.REVOKED
    assert job.starts() == 2


def test_broker_that_is_away_when_a_client_sends_a_task_back(
    worker_factory: WorkerFactory, valkey: EmbeddedServer, private_valkey: EmbeddedServer
) -> None:
    """A requeue is applied while the broker, another Redis than the store, is away; the task runs later."""
    with ToxicProxy((private_valkey.host, private_valkey.port)) as broker:
        worker = worker_factory(broker_url=broker.url, pool="threads", concurrency=1, configuration=KEPT)
        job = ended_job(worker)
        broker.cut()
        handle = requeue(job.result)
        assert handle.wait(1).state is State.ENQUEUED
        redis, keys = job.app.backend.client, client_store(job.app).keys
        assert redis.zscore(keys.outbox, job.id) is not None
        broker.heal()
        job.wait_until_started(2, timeout=PATIENCE)
        assert job.wait_until_final().state is State.SUCCEEDED
        wait_until(
            lambda: redis.zscore(keys.outbox, job.id) is None,
            timeout=PATIENCE,
            description="the outbox is empty",
        )
        assert job.starts() == 2
        worker.stop()


# -- clients that are slow between two steps


@pytest.mark.xfail(reason="a client forgets the result that it finds, whichever run's it is", strict=True)
def test_requeue_of_a_slow_client_leaves_the_next_result(
    worker_factory: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that forgets the old result only when an agent has had the task run leaves the new one."""
    worker = worker_factory(pool="threads", concurrency=1, configuration=KEPT)
    job = ended_job(worker)
    forget = Actions.forget_result

    def forget_late(actions: Actions, task_id: str, name: str | None) -> None:
        job.wait_until_started(2, timeout=PATIENCE)
        job.wait_until_final(PATIENCE)
        forget(actions, task_id, name)

    monkeypatch.setattr(Actions, "forget_result", forget_late)
    assert requeue(job.id, app=worker.client)
    record = job.wait_until_final(PATIENCE)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
    assert job.app.backend.get_state(job.id) == "SUCCESS"


@pytest.mark.xfail(reason="a client ends the result whatever has become of its order meanwhile", strict=True)
def test_delete_of_a_slow_client_leaves_the_next_result(
    worker_factory: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose delete was withdrawn before it wrote the result leaves that of the run to the run."""
    worker = worker_factory(pool="threads", concurrency=1, configuration=KEPT)
    gate, other_gate = unique_name("gate"), unique_name("gate")
    blocker = send(worker, "return_unlooked", gate).wait_until_started()
    job = send(worker, "raise_unlooked", other_gate)
    end = Actions.end_result

    def end_late(actions: Actions, task_id: str, name: str | None, reason: str) -> None:
        assert withdraw(job.result)
        open_gate(worker.client, gate)
        open_gate(worker.client, other_gate)
        job.wait_until_final(PATIENCE)
        end(actions, task_id, name, reason)

    monkeypatch.setattr(Actions, "end_result", end_late)
    assert delete(job.id, app=worker.client)
    assert blocker.wait_until_final().state is State.SUCCEEDED
    assert job.wait_until_final().state is State.FAILED
    assert job.app.backend.get_state(job.id) == "FAILURE"
