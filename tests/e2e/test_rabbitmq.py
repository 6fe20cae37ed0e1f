"""The main job with RabbitMQ as broker and Valkey as store."""

from __future__ import annotations

import pytest
from celery.exceptions import TaskRevokedError

from celery_canceltoken import State, revoke
from tests.e2e.conftest import send
from tests.support.rabbitmq import RabbitMQ
from tests.support.workers import WorkerFactory


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_running_task_stops(worker_factory: WorkerFactory, rabbitmq: RabbitMQ, pool: str) -> None:
    """A task that came over RabbitMQ is revoked as any other."""
    worker = worker_factory(broker_url=rabbitmq.url, pool=pool)
    job = send(worker, "wait", 30).wait_until_started()
    outcome = revoke(job.result, reason="customer left").wait(10)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "customer left")
    with pytest.raises(TaskRevokedError, match="customer left"):
        job.result.get(timeout=5)


def test_without_a_redis_backend_the_store_is_named(
    worker_factory: WorkerFactory, rabbitmq: RabbitMQ
) -> None:
    """Where neither broker nor backend is Redis, the worker refuses to start and names the setting."""
    worker = worker_factory(broker_url=rabbitmq.url, result_backend="rpc://", pool="solo", wait=False)
    assert worker.wait() != 0
    assert "set canceltoken_redis_url" in worker.logs()


def test_late_acknowledged_retries_and_rejects(worker_factory: WorkerFactory, rabbitmq: RabbitMQ) -> None:
    """Retries, and a message that goes back to RabbitMQ, are claimed once each."""
    worker = worker_factory(broker_url=rabbitmq.url, concurrency=2, configuration={"task_acks_late": True})
    retried, rejected = send(worker, "retry_until", 20), send(worker, "reject_back_once")
    assert retried.result.get(timeout=20) == 20
    assert rejected.result.get(timeout=20) == "second time"
    assert (retried.starts(), rejected.starts()) == (21, 2)
    assert retried.wait_until_final().state is State.SUCCEEDED
