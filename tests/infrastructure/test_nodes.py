from __future__ import annotations

import psutil
import pytest
from pytest_celery import (
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryWorkerCluster,
    RedisTestBroker,
    add,
)

from tests.support.node_fixtures import NodeFactory
from tests.support.nodes import NodeOptions, NodeWorker
from tests.support.waiting import wait_until


def test_celery_setup_works_without_docker(celery_setup: CeleryTestSetup) -> None:
    """pytest-celery's own setup is ready on every broker, and runs its own tasks."""
    assert celery_setup.ready(ping=True)
    assert celery_setup.app.control.ping(timeout=10, limit=1) == [
        {celery_setup.worker.hostname(): {"ok": "pong"}}
    ]
    assert add.s(1, 2).apply_async().get(timeout=10) == 3
    celery_setup.worker.assert_log_exists("succeeded")
    assert celery_setup.worker.get_running_processes_info(["pid"])


class OnRedis:
    """`celery_setup` on Redis, with an app of the tests and another pool than pytest-celery's."""

    @pytest.fixture
    def celery_broker_cluster(self, celery_redis_broker: RedisTestBroker) -> CeleryBrokerCluster:
        return CeleryBrokerCluster(celery_redis_broker)

    @pytest.fixture
    def node_options(self) -> NodeOptions:
        return NodeOptions(
            app="tests.support.apps.main", pool="threads", environment={"CT_GREETING": "hello"}
        )


class TestOneWorker(OnRedis):
    def test_the_chosen_app_runs(self, celery_setup: CeleryTestSetup) -> None:
        """A node runs the module and the pool that the options name, and still answers to pytest-celery."""
        assert celery_setup.ready(ping=True)
        assert celery_setup.app.send_task("add", (1, 2)).get(timeout=10) == 3
        container = celery_setup.worker.container
        assert container.children() == []
        assert psutil.Process(container.pid).environ()["CT_GREETING"] == "hello"

    def test_a_worker_is_killed_and_restarted(self, celery_setup: CeleryTestSetup) -> None:
        """A node goes through SIGTERM, SIGKILL and a restart as a container would."""
        worker = celery_setup.worker
        worker.kill("SIGTERM")
        assert worker.container.wait() == 0
        worker.restart()
        worker.kill()
        assert worker.container.status == "exited"
        worker.restart()
        assert celery_setup.ready(ping=True)

    def test_a_broker_is_restarted(self, celery_setup: CeleryTestSetup) -> None:
        """A broker node comes back at the same address, and its workers find it again."""
        address = celery_setup.broker.container.url
        celery_setup.broker.restart()
        assert celery_setup.broker.container.url == address
        assert celery_setup.ready(ping=True)


class TestTwoWorkers(OnRedis):
    @pytest.fixture
    def celery_worker_cluster(
        self, celery_worker: NodeWorker, node_factory: NodeFactory
    ) -> CeleryWorkerCluster:
        return CeleryWorkerCluster(celery_worker, node_factory(pool="solo", concurrency=1))

    def test_both_answer(self, celery_setup: CeleryTestSetup) -> None:
        """Several nodes of one test are reached by one broadcast."""
        expected = {worker.hostname() for worker in celery_setup.worker_cluster}

        def answered() -> bool:
            # Redis keeps no broadcast for a worker that has only just begun to listen.
            answers = celery_setup.app.control.ping(timeout=2, limit=2)
            return {name for answer in answers for name in answer} == expected

        wait_until(answered, timeout=30, description="both have answered")
