"""The tasks of `tests.support.apps.cancellable`, and what their bodies wrote down."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_canceltoken import TaskRecord, get_record
from tests.support.apps.cancellable import CANCELLABLE_APP
from tests.support.rabbitmq import RabbitMQ
from tests.support.reporting import show_log_on_failure
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, SharedWorkers, unique_name

POOLS = ["prefork", "threads", "solo", "gevent", "eventlet"]


@pytest.fixture
def worker_app() -> str:
    """Tests here run the cancellable tasks."""
    return CANCELLABLE_APP


@pytest.fixture
def gate() -> str:
    """A gate of this test's own."""
    return unique_name("gate")


@pytest.fixture(params=POOLS)
def shared_worker(
    request: pytest.FixtureRequest, shared_workers: SharedWorkers, worker_app: str
) -> CeleryWorker:
    """Each pool's shared worker in turn."""
    return _shown(request, shared_workers(request.param, worker_app))


@pytest.fixture(params=["prefork", "threads"])
def main_worker(
    request: pytest.FixtureRequest, shared_workers: SharedWorkers, worker_app: str
) -> CeleryWorker:
    """A pool of processes and one of threads in turn, where the others make no difference."""
    return _shown(request, shared_workers(request.param, worker_app))


@pytest.fixture(scope="session")
def rabbitmq_workers(rabbitmq: RabbitMQ, valkey: EmbeddedServer) -> Iterator[SharedWorkers]:
    """Returns the RabbitMQ worker that all tests of this process share, for a pool and an app."""
    workers: dict[tuple[str, str], CeleryWorker] = {}

    def get(pool: str, app: str = CANCELLABLE_APP) -> CeleryWorker:
        if (pool, app) not in workers:
            worker = CeleryWorker(
                app,
                broker_url=rabbitmq.url,
                result_backend=valkey.url,
                queue=unique_name(f"shared-{pool}"),
                pool=pool,
            )
            workers[pool, app] = worker
            worker.restart()
        return workers[pool, app]

    yield get
    for worker in workers.values():
        worker.close()
        rabbitmq.delete(worker.queue)


@pytest.fixture(
    params=[*(f"redis-{pool}" for pool in POOLS), *(f"rabbitmq-{pool}" for pool in ("prefork", "threads"))]
)
def worker_of_each_broker(request: pytest.FixtureRequest, worker_app: str) -> CeleryWorker:
    """The shared worker of each pool on Redis in turn, then those on RabbitMQ."""
    broker, pool = request.param.split("-")
    workers = request.getfixturevalue("shared_workers" if broker == "redis" else "rabbitmq_workers")
    return _shown(request, workers(pool, worker_app))


def _shown(request: pytest.FixtureRequest, worker: CeleryWorker) -> CeleryWorker:
    seen = len(worker.logs())
    show_log_on_failure(request.node, f"the shared worker {worker.queue}", lambda: worker.logs()[seen:])
    return worker


@pytest.fixture(scope="session", autouse=True)
def no_result_outlives_the_server(valkey: EmbeddedServer) -> Iterator[None]:
    """Collect what results are left while their server still answers: they say goodbye to it."""
    yield
    with warnings.catch_warnings():
        # Celery leaves the sockets of a result backend to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Job:
    """A task that a test has sent, seen from outside: result, record, journal."""

    def __init__(self, result: AsyncResult[Any]) -> None:
        self.result = result
        self.id: str = result.id
        self.app = result.app

    def journal(self) -> list[str]:
        """The events its bodies noted, over all runs."""
        lines = self.app.backend.client.lrange(f"journal:{self.id}", 0, -1)
        return [line.decode().rpartition(" ")[0].rpartition(" ")[0] for line in lines]

    def accounts(self) -> list[dict[str, Any]]:
        """What the message of each run was like; see `tests.support.apps.controlled`."""
        return [json.loads(line) for line in self.app.backend.client.lrange(f"accounts:{self.id}", 0, -1)]

    def starts(self) -> int:
        """How often a body has begun."""
        return self.journal().count("started")

    def record(self) -> TaskRecord | None:
        """Its record now."""
        return get_record(self.id, app=self.app)

    def stored(self) -> tuple[str, Any]:
        """State and value of its Celery result now, from the backend itself.

        A result object may still be handed an earlier end of the same id, which its process had been told of.
        """
        meta = self.result.backend.get_task_meta(self.id, cache=False)
        return meta["status"], meta["result"]

    def wait_until_stored(self, state: str, timeout: float = 15.0) -> Any:
        """Wait until its Celery result is in *state*, and return the value."""
        wait_until(
            lambda: self.stored()[0] == state,
            timeout=timeout,
            description=lambda: f"the result is {state}, not {self.stored()}",
        )
        return self.stored()[1]

    def wait_until_started(self, times: int = 1, timeout: float = 15.0) -> Job:
        """Wait until a body runs."""
        wait_until(
            lambda: self.starts() >= times, timeout=timeout, description=f"the body has started {times} times"
        )
        return self

    def wait_until_noted(self, event: str) -> None:
        """Wait until the journal holds *event*."""
        wait_until(lambda: event in self.journal(), description=lambda: f"{event!r} in {self.journal()}")

    def wait_until_final(self, timeout: float = 15.0) -> TaskRecord:
        """Wait until its record is final, and return that."""

        def final() -> TaskRecord | None:
            record = self.record()
            return (
                record if record is not None and record.state is not None and record.state.is_final else None
            )

        return wait_until(final, timeout=timeout, description="the record is final")


def send(where: CeleryWorker | Any, task: str, *args: Any, **options: Any) -> Job:
    """Send one of the cancellable tasks to a worker's queue, or with a client app."""
    app = where.client if isinstance(where, CeleryWorker) else where
    kwargs = options.pop("kwargs", None)
    return Job(app.tasks[task].apply_async(args, kwargs, **options))


def open_gate(app: Any, gate: str) -> None:
    """Let one body pass."""
    app.backend.client.rpush(f"gate:{gate}", "open")
