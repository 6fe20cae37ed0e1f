"""Workers, and the apps that talk to them. Servers and options come from `tests.support`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from celery import Celery, _state

from tests.support.proxy import ToxicProxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.reporting import show_log_on_failure
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import (
    PLAIN_APP,
    CeleryWorker,
    ClientFactory,
    SharedWorkers,
    WorkerFactory,
    close_client,
    make_client,
    unique_name,
)

RUN = "CANCELTOKEN_TEST_RUN"


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail the run if a process that it started, or one that such a process started, outlives it."""
    run = uuid.uuid4().hex
    os.environ[RUN] = run
    yield
    wait_until(
        lambda: not _processes_of(run),
        description=lambda: f"no process of this run is left: {_processes_of(run)}",
    )


@pytest.fixture(autouse=True)
def tasks_stay_with_their_app() -> Iterator[None]:
    """Undo that Celery gives every task, unless told otherwise, to all apps that are made later."""
    shared: set[Any] = vars(_state)["_on_app_finalizers"]
    before = set(shared)
    yield
    shared.intersection_update(before)


@pytest.fixture
def queue() -> str:
    """The name of a queue that is this test's own."""
    return unique_name("queue")


@pytest.fixture
def worker_app() -> str:
    """The module whose app the workers of a test run. Override it to have another one."""
    return PLAIN_APP


@pytest.fixture
def client_factory(valkey: EmbeddedServer, queue: str, worker_app: str) -> Iterator[ClientFactory]:
    """Makes client apps: `make_client`, with this test's app, server and queue as defaults."""
    clients = []

    def make(app: str = worker_app, **options: Any) -> Celery:
        defaults = {"broker_url": valkey.url, "result_backend": valkey.url, "queue": queue}
        client = make_client(app, **{**defaults, **options})
        clients.append(client)
        return client

    yield make
    for client in clients:
        close_client(client)


@pytest.fixture
def client_app(client_factory: ClientFactory) -> Celery:
    """An app in this process, bound to what `worker_factory` binds its workers to."""
    return client_factory()


@pytest.fixture
def worker_factory(
    request: pytest.FixtureRequest, valkey: EmbeddedServer, queue: str, worker_app: str
) -> Iterator[WorkerFactory]:
    """Starts workers: `CeleryWorker`, with this test's app, server and queue as defaults.

    They are ready when it returns, unless told `wait=False`, and gone after the test.
    """
    workers: list[CeleryWorker] = []

    def start(app: str = worker_app, *, wait: bool = True, **options: Any) -> CeleryWorker:
        defaults = {"broker_url": valkey.url, "result_backend": valkey.url, "queue": queue}
        worker = CeleryWorker(app, **{**defaults, **options})
        workers.append(worker)
        show_log_on_failure(request.node, worker.name, worker.logs)
        worker.start()
        if wait:
            worker.wait_until_ready()
        return worker

    yield start
    for worker in workers:
        worker.close()
    for url, used in {(worker.broker_url, worker.queue) for worker in workers}:
        if url.startswith("amqp"):
            RabbitMQ(url).delete(used)


@pytest.fixture(scope="session")
def shared_workers(valkey: EmbeddedServer) -> Iterator[SharedWorkers]:
    """Returns the worker that all tests of this process share, for a pool and an app."""
    workers: dict[tuple[str, str], CeleryWorker] = {}

    def get(pool: str, app: str = PLAIN_APP) -> CeleryWorker:
        worker = workers.get((pool, app))
        if worker is None:
            worker = CeleryWorker(
                app,
                broker_url=valkey.url,
                result_backend=valkey.url,
                queue=unique_name(f"shared-{pool}"),
                pool=pool,
                concurrency=1 if pool == "solo" else 4,
            )
            workers[pool, app] = worker
        if not worker.is_running:
            worker.restart()
        return worker

    yield get
    for worker in workers.values():
        worker.close()


def _shared_worker(request: pytest.FixtureRequest, pool: str) -> CeleryWorker:
    app = request.getfixturevalue("worker_app")
    worker: CeleryWorker = request.getfixturevalue("shared_workers")(pool, app)
    seen = len(worker.logs())
    show_log_on_failure(request.node, f"the shared {pool} worker", lambda: worker.logs()[seen:])
    return worker


@pytest.fixture
def shared_prefork_worker(request: pytest.FixtureRequest) -> CeleryWorker:
    """The prefork worker that all tests of this process share."""
    return _shared_worker(request, "prefork")


@pytest.fixture
def shared_threads_worker(request: pytest.FixtureRequest) -> CeleryWorker:
    """The threads worker that all tests of this process share."""
    return _shared_worker(request, "threads")


@pytest.fixture
def shared_solo_worker(request: pytest.FixtureRequest) -> CeleryWorker:
    """The solo worker that all tests of this process share."""
    return _shared_worker(request, "solo")


@pytest.fixture(params=["prefork", "threads", "solo"])
def shared_worker(request: pytest.FixtureRequest) -> CeleryWorker:
    """Each of the shared workers in turn."""
    return _shared_worker(request, request.param)


@pytest.fixture(params=["redis", "rabbitmq"])
def each_broker_url(request: pytest.FixtureRequest) -> str:
    """The address of each kind of broker in turn."""
    service = "valkey" if request.param == "redis" else "rabbitmq"
    url: str = request.getfixturevalue(service).url
    return url


@pytest.fixture
def valkey_proxy(valkey: EmbeddedServer) -> Iterator[ToxicProxy]:
    """A proxy in front of the shared server, for faults that only this test sees."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        yield proxy


def _processes_of(run: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN) == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue  # It has ended meanwhile, or is not ours to look into.
    return found
