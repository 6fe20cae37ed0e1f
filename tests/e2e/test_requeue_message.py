"""A message goes back as it came: its exchange, priority, serializer and compression, on either broker."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from kombu import Connection, Exchange

from celery_canceltoken import State, requeue, revoke_where
from tests.e2e.conftest import send
from tests.support.apps.controlled import CONTROLLED_APP, SECOND_RUN
from tests.support.proxy import ToxicProxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, ClientFactory, WorkerFactory, unique_name

DATA = {"grün": [1, None]}
WRITTEN_IN = pytest.mark.parametrize(
    "options",
    [
        pytest.param({"serializer": "yaml"}, id="yaml"),
        pytest.param(
            {"serializer": "msgpack"},
            id="msgpack",
            marks=pytest.mark.skipif(find_spec("msgpack") is None, reason="msgpack is not installed"),
        ),
        pytest.param({"compression": "gzip"}, id="gzip"),
    ],
)
MANY_SERIALIZERS = {"accept_content": ["json", "yaml", "msgpack"]}


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


@pytest.fixture(scope="module", params=["topic", "direct"])
def worker_with_exchange(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQ, valkey: EmbeddedServer
) -> Iterator[CeleryWorker]:
    """A worker whose queue has priorities and is bound to an exchange of its own."""
    queue = unique_name("queue")
    configuration = {
        **MANY_SERIALIZERS,
        "task_queue_max_priority": 10,
        "task_default_exchange": f"{queue}-own",
        "task_default_exchange_type": request.param,
        "task_default_routing_key": "orders.#" if request.param == "topic" else "orders.new",
    }
    worker = CeleryWorker(
        CONTROLLED_APP,
        broker_url=rabbitmq.url,
        result_backend=valkey.url,
        queue=queue,
        pool="threads",
        configuration=configuration,
    )
    worker.restart()
    yield worker
    worker.close()
    rabbitmq.delete(queue)
    with Connection(rabbitmq.url) as connection, connection.channel() as channel:
        Exchange(f"{queue}-own", channel=channel).delete()


@pytest.fixture(scope="module")
def worker_on_redis(valkey: EmbeddedServer) -> Iterator[CeleryWorker]:
    """A worker that accepts more than JSON."""
    worker = CeleryWorker(
        CONTROLLED_APP,
        broker_url=valkey.url,
        result_backend=valkey.url,
        queue=unique_name("queue"),
        pool="prefork",
        concurrency=2,
        configuration=MANY_SERIALIZERS,
    )
    worker.restart()
    yield worker
    worker.close()


def accounts_of_both_runs(worker: CeleryWorker, *args: Any, running: bool, **options: Any) -> list[Any]:
    """What the message was like before and after a requeue."""
    job = send(worker, "act", "stop" if running else "raise", *args, **options)
    if running:
        job.wait_until_started()
    else:
        assert job.wait_until_final().state is State.FAILED
    assert requeue(job.id, app=worker.client)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    accounts = job.accounts()
    for account in accounts:
        account["headers"].pop("canceltoken_generation")
        # The body that goes back is what kombu has unpacked, and the header says so.
        account["headers"].pop("compression", None)
    return accounts


@pytest.mark.parametrize("running", [True, False], ids=["running", "ended"])
def test_exchange_and_priority(worker_with_exchange: CeleryWorker, running: bool) -> None:
    """An exchange of the user's own, its routing key and the priority are what they were."""
    topic = worker_with_exchange.configuration["task_default_exchange_type"] == "topic"
    key = "orders.new.eu" if topic else "orders.new"
    exchange = worker_with_exchange.configuration["task_default_exchange"]
    first, second = accounts_of_both_runs(
        worker_with_exchange, "", "grün", running=running, priority=7, routing_key=key, exchange=exchange
    )
    assert second == first
    assert first["delivery_info"]["exchange"] == exchange
    assert (first["delivery_info"]["routing_key"], first["properties"]["priority"]) == (key, 7)


@WRITTEN_IN
@pytest.mark.parametrize("running", [True, False], ids=["running", "ended"])
def test_serializers_on_redis(worker_on_redis: CeleryWorker, running: bool, options: dict[str, Any]) -> None:
    """The body is understood on its second way as on its first, whatever it is written in."""
    first, second = accounts_of_both_runs(worker_on_redis, "", DATA, running=running, **options)
    assert second == first
    assert second["args"] == ["stop" if running else "raise", "", DATA]


@WRITTEN_IN
@pytest.mark.parametrize("running", [True, False], ids=["running", "ended"])
def test_serializers_on_rabbitmq(
    worker_with_exchange: CeleryWorker, running: bool, options: dict[str, Any]
) -> None:
    """Likewise where the broker is RabbitMQ."""
    exchange = worker_with_exchange.configuration["task_default_exchange"]
    first, second = accounts_of_both_runs(
        worker_with_exchange,
        "",
        DATA,
        running=running,
        exchange=exchange,
        routing_key="orders.new",
        **options,
    )
    assert second == first
    assert second["args"] == ["stop" if running else "raise", "", DATA]


@WRITTEN_IN
def test_predicate_reads_any_of_them(worker_on_redis: CeleryWorker, options: dict[str, Any]) -> None:
    """The arguments that `revoke_where` shows are those that were sent, whatever they are written in."""
    customer = unique_name("customer")
    job = send(worker_on_redis, "act", "stop", "", {"id": customer}, **options).wait_until_started()
    handles = revoke_where(
        where=lambda task: len(task.args) > 2 and task.args[2] == {"id": customer}, app=worker_on_redis.client
    )
    assert [handle.task_id for handle in handles] == [job.id]
    assert handles[0].wait(10).state is State.REVOKED


def test_nothing_is_left_unacknowledged(worker_on_redis: CeleryWorker) -> None:
    """After a requeue of a late acknowledged task the broker holds none of its messages."""
    job = send(worker_on_redis, "late_act", "stop").wait_until_started()
    redis = worker_on_redis.client.backend.client

    def unacknowledged() -> bool:
        return any(job.id.encode() in message for message in redis.hvals("unacked"))

    assert unacknowledged()
    requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    wait_until(lambda: not unacknowledged(), description="both copies are acknowledged")


def test_redelivered_copy_never_runs(worker_factory: WorkerFactory, rabbitmq: RabbitMQ) -> None:
    """The copy that RabbitMQ takes back from a lost worker is older than the requeue, and is dropped."""
    configuration = {"canceltoken_heartbeat_interval": 0.2, "canceltoken_lease_duration": 0.5}
    lost = worker_factory(broker_url=rabbitmq.url, pool="prefork", concurrency=1, configuration=configuration)
    job = send(lost, "late_act", "stop").wait_until_started()
    owner = getattr(job.record(), "owner", None)
    lost.crash()
    wait_until(
        lambda: not lost.client.backend.client.exists(f"canceltoken:lease:{owner}"),
        description="the lease has lapsed",
    )
    assert requeue(job.result)
    worker = worker_factory(broker_url=rabbitmq.url, pool="threads", configuration=configuration)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN
    worker.wait_for_log(f"Task late_act[{job.id}] received", times=2)
    worker.wait_for_log(f"[{job.id}] ignored")
    assert job.starts() == 2
    assert job.wait_until_final().generation == 1


def test_broker_that_is_away(
    worker_factory: WorkerFactory, client_factory: ClientFactory, valkey_proxy: ToxicProxy
) -> None:
    """What cannot be published is kept, and a worker sends it."""
    worker = worker_factory(pool="threads", configuration={"canceltoken_check_interval": 0.5})
    job = send(worker, "act", "raise")
    job.wait_until_final()
    cut_off = client_factory(broker_url=valkey_proxy.url)
    valkey_proxy.cut()
    handle = requeue(job.id, app=cut_off)
    assert handle.applied
    assert job.wait_until_stored("SUCCESS", timeout=20) == SECOND_RUN
    assert (job.starts(), job.wait_until_final().generation) == (2, 1)
