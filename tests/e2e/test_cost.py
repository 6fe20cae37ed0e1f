"""What a worker pays, on every pool: commands, bytes and connections, on a store that is ours alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.e2e.conftest import send
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory

POOLS = ["prefork", "threads", "solo", "gevent", "eventlet"]
TASKS = 100
QUIET = {
    "canceltoken_check_interval": 600.0,
    "canceltoken_heartbeat_interval": 600.0,
    "canceltoken_lease_duration": 1200.0,
}
"""Nothing is due while we count."""


@pytest.fixture(scope="module")
def store_alone() -> Iterator[EmbeddedServer]:
    """A server that holds records, and nothing of Celery's."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def counter(store_alone: EmbeddedServer) -> Iterator[Redis]:
    """Asks that server for its figures."""
    with Redis.from_url(store_alone.url, decode_responses=True) as client:
        yield client


def settled(counter: Redis, number: int) -> bool:
    """Whether so many records are there, and none is unsettled."""
    states = [counter.hget(key, "state") for key in counter.scan_iter(match="*:task:*", count=1000)]
    return len(states) == number and set(states) == {"SUCCEEDED"}


def calls(counter: Redis, command: str) -> int:
    """How often a command was sent, by clients and scripts together."""
    return int(counter.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def start(worker_factory: WorkerFactory, store_alone: EmbeddedServer, pool: str) -> CeleryWorker:
    """A worker of that pool, warmed up."""
    concurrency = 1 if pool == "solo" else 4
    configuration = {**QUIET, "canceltoken_redis_url": store_alone.url}
    worker = worker_factory(pool=pool, concurrency=concurrency, configuration=configuration)
    for job in [send(worker, "whoami") for _ in range(20)]:
        job.result.get(timeout=20)
    return worker


@pytest.mark.parametrize("pool", POOLS)
def test_commands_and_bytes_per_task(
    worker_factory: WorkerFactory, store_alone: EmbeddedServer, counter: Redis, pool: str
) -> None:
    """A task costs two scripts and a share in a third; three kilobytes there, its message among them."""
    counter.flushall()
    worker = start(worker_factory, store_alone, pool)
    wait_until(lambda: settled(counter, 20), description="the warm-up is settled")
    counter.config_resetstat()
    jobs = [send(worker, "whoami") for _ in range(TASKS)]
    for job in jobs:
        job.result.get(timeout=20)
    # One look, when all is over: looking costs bytes as well.
    wait_until(
        lambda: calls(counter, "evalsha") >= 2 * TASKS + 1 and calls(counter, "srem") >= TASKS,
        description="all of it is settled",
    )
    traffic = counter.info("stats")
    scripts = calls(counter, "evalsha")
    assert 2 * TASKS < scripts <= 3 * TASKS
    assert traffic["total_net_input_bytes"] / TASKS < 3500
    assert traffic["total_net_output_bytes"] / TASKS < 2500
    assert settled(counter, 20 + TASKS)


@pytest.mark.parametrize("pool", POOLS)
def test_connections(
    worker_factory: WorkerFactory, store_alone: EmbeddedServer, counter: Redis, pool: str
) -> None:
    """One connection for each body that may run, and three for the agent."""
    before = len(counter.client_list())
    start(worker_factory, store_alone, pool)
    bodies = 1 if pool == "solo" else 4
    assert 1 + 1 <= len(counter.client_list()) - before <= bodies + 3


def test_idle_worker_sends_less_than_a_command_per_second(
    worker_factory: WorkerFactory, store_alone: EmbeddedServer, counter: Redis
) -> None:
    """Counted with intervals a tenth of the default ones: an idle worker stays below ten per second."""
    configuration = {
        "canceltoken_redis_url": store_alone.url,
        "canceltoken_check_interval": 0.5,
        "canceltoken_heartbeat_interval": 0.5,
        "canceltoken_lease_duration": 3.0,
    }
    counter.flushall()
    worker_factory(pool="solo", configuration=configuration)
    beats = commands = 0
    with counter.monitor() as monitor:
        for command in monitor.listen():
            words = command["command"]
            beats += words.startswith("SET ") and " XX" in words
            # What comes before the first renewal is the worker's start.
            commands += beats > 0
            if beats == 8:
                break
    # Seven whole heartbeats of half a second.
    assert commands / 3.5 < 10
