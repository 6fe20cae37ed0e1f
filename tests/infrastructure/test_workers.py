from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from celery import Celery

from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import (
    PLAIN_APP,
    ROOT,
    CeleryWorker,
    ClientFactory,
    WorkerFactory,
    unique_name,
)

ORPHAN_MAKER = """
import sys, time
from tests.support.workers import CeleryWorker

worker = CeleryWorker(broker_url=sys.argv[1], result_backend=sys.argv[1], queue="orphans", concurrency=2)
worker.start()
worker.wait_until_ready()
print(worker.pid, *(child.pid for child in worker.children()), flush=True)
time.sleep(60)
"""


def names_that_answer(client: Celery, expected: int) -> set[str]:
    answers = client.control.ping(timeout=10, limit=expected) or []
    return {name for answer in answers for name in answer}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent", "eventlet"])
def test_every_pool_runs_a_task(worker_factory: WorkerFactory, client_app: Celery, pool: str) -> None:
    """A worker of each pool takes a task from its test's queue and answers."""
    worker_factory(pool=pool, concurrency=2)
    assert client_app.send_task("add", (1, 2)).get(timeout=10) == 3


def test_every_shared_worker_runs_a_task(shared_worker: CeleryWorker) -> None:
    """A shared worker answers to its own client."""
    assert shared_worker.client.send_task("add", (1, 2)).get(timeout=10) == 3


def test_a_task_that_fails_fails_at_the_client(shared_threads_worker: CeleryWorker) -> None:
    """The error of a task travels back through the result backend."""
    with pytest.raises(RuntimeError, match="out of paper"):
        shared_threads_worker.client.send_task("fail", ("out of paper",)).get(timeout=10)


def test_shared_workers_do_not_take_each_others_tasks(
    shared_threads_worker: CeleryWorker, shared_solo_worker: CeleryWorker
) -> None:
    """A task runs on the worker whose client has sent it."""
    result = shared_solo_worker.client.send_task("add", (1, 2))
    result.get(timeout=10)
    shared_solo_worker.wait_for_log(f"[{result.id}] succeeded")
    assert result.id not in shared_threads_worker.logs()


def test_a_shared_worker_that_a_test_has_killed_is_started_anew(
    shared_solo_worker: CeleryWorker, request: pytest.FixtureRequest
) -> None:
    """The next test that asks for a dead shared worker gets a living one."""
    shared_solo_worker.crash()
    request.getfixturevalue("shared_workers")("solo")
    assert shared_solo_worker.client.send_task("add", (1, 2)).get(timeout=10) == 3


def test_remote_control_reaches_only_the_workers_of_one_queue(
    worker_factory: WorkerFactory, client_app: Celery, shared_solo_worker: CeleryWorker
) -> None:
    """A broadcast of one test does not reach the workers of another."""
    worker = worker_factory(pool="solo")
    assert names_that_answer(client_app, 1) == {worker.name}
    client_app.control.shutdown()
    assert worker.wait() == 0
    assert shared_solo_worker.is_running


def test_several_workers_share_a_queue(worker_factory: WorkerFactory, client_app: Celery) -> None:
    """Workers of one test are a fleet, each with a name of its own."""
    names = {worker_factory(pool="solo").name for _ in range(2)}
    assert names_that_answer(client_app, 2) == names


def test_configuration_and_environment_reach_the_worker(worker_factory: WorkerFactory) -> None:
    """A worker runs with the settings and variables that its test gives it."""
    worker = worker_factory(
        pool="solo",
        configuration={"worker_log_format": "configured %(message)s"},
        environment={"CT_GREETING": "hello"},
    )
    assert f"configured {worker.name} ready." in worker.logs()
    assert psutil.Process(worker.pid).environ()["CT_GREETING"] == "hello"


def test_a_warm_shutdown_ends_with_zero(worker_factory: WorkerFactory) -> None:
    """Stopping waits for the exit code of a clean end."""
    worker = worker_factory(pool="solo")
    assert worker.stop() == 0
    assert not worker.is_running


def test_a_kill_hits_the_main_process(worker_factory: WorkerFactory) -> None:
    """A killed worker reports the signal that has ended it."""
    worker = worker_factory(pool="prefork", concurrency=2)
    worker.kill(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL


def test_children_are_the_processes_of_the_pool(worker_factory: WorkerFactory) -> None:
    """A prefork worker has as many children as its concurrency says."""
    worker = worker_factory(pool="prefork", concurrency=3)
    assert len(worker.children()) == 3


def test_a_crash_takes_the_pool_along(worker_factory: WorkerFactory) -> None:
    """After a crash no process of the worker is left."""
    worker = worker_factory(pool="prefork", concurrency=2)
    children = worker.children()
    worker.crash()
    wait_until(
        lambda: not any(child.is_running() for child in children), description="the pool's processes are gone"
    )


def test_a_restarted_worker_works(worker_factory: WorkerFactory, client_app: Celery) -> None:
    """After a restart the same handle stands for a new process on the same queue."""
    worker = worker_factory(pool="solo")
    first = worker.pid
    worker.restart()
    assert worker.pid != first
    assert client_app.send_task("add", (1, 2)).get(timeout=10) == 3


def test_a_worker_that_cannot_start_says_why(worker_factory: WorkerFactory) -> None:
    """The error of a failed start holds the worker's own words."""
    with pytest.raises(AssertionError, match="no_such_app"):
        worker_factory("tests.support.apps.no_such_app")


def test_a_worker_dies_with_a_parent_that_is_killed(valkey: EmbeddedServer) -> None:
    """No process of a worker is orphaned by SIGKILL of the tests."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER, valkey.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        pids = [int(pid) for pid in output.readline().split()]
    assert len(pids) == 3
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), description="the worker and its pool are gone")


def test_a_task_travels_over_each_broker(
    worker_factory: WorkerFactory, client_factory: ClientFactory, each_broker_url: str
) -> None:
    """Redis and RabbitMQ both carry a task to a worker."""
    worker_factory(pool="solo", broker_url=each_broker_url)
    client = client_factory(broker_url=each_broker_url)
    assert client.send_task("add", (1, 2)).get(timeout=10) == 3


def test_nothing_is_left_on_a_shared_rabbitmq(rabbitmq: RabbitMQ, valkey: EmbeddedServer) -> None:
    """Deleting a queue's names removes the queue and every exchange that the app has declared."""
    queue = unique_name("cleanup")
    worker = CeleryWorker(
        PLAIN_APP, broker_url=rabbitmq.url, result_backend=valkey.url, queue=queue, pool="solo"
    )
    try:
        worker.start()
        worker.wait_until_ready()
        assert worker.client.send_task("add", (1, 2)).get(timeout=10) == 3
        assert worker.client.control.ping(timeout=5, limit=1)
        assert rabbitmq.has_queue(queue)
    finally:
        worker.close()
        rabbitmq.delete(queue)
    assert not rabbitmq.has_queue(queue)
    for exchange in rabbitmq.exchanges_of(queue):
        assert not rabbitmq.has_exchange(exchange)
