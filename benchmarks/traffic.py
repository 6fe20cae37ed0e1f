"""What the extension asks of the server: per task, per idle worker, and over how many connections."""

from __future__ import annotations

import time
from collections.abc import Iterator

import redis
from celery import Celery
from celery.result import AsyncResult

from benchmarks.app import READY, make_app
from benchmarks.monitor import Commands, watch
from benchmarks.processes import worker
from benchmarks.report import Row
from celery_canceltoken import revoke
from examples.embedded_valkey import EmbeddedServer

__all__ = ["measure_commands", "measure_connections"]

PER_TASK_LIMIT = 2
IDLE_LIMIT = 1.0
BURST = 500
ONE_BY_ONE = 50
QUEUE = "traffic"


def measure_commands(server: EmbeddedServer, idle_seconds: float) -> Iterator[Row]:
    """Count commands of a worker, busy and idle."""
    app, socket_url = _driver(server)
    probe = app.tasks["plain"].apply_async(queue=QUEUE)
    with worker(server.url, "prefork", queue=QUEUE, ready=probe.ready):
        _burst(app, "cancellable", 100, 0.01)  # Every child opens its connections.
        counted = {}
        for task in ("plain", "cancellable"):
            with watch(socket_url) as counted[task]:
                _burst(app, task, BURST)
        with watch(socket_url) as one_by_one:
            for _ in range(ONE_BY_ONE):
                _burst(app, "cancellable", 1)
        time.sleep(1)
        with watch(socket_url) as idle:
            time.sleep(idle_seconds)
    burst, plain = counted["cancellable"], counted["plain"]
    awaited = burst.calls_of("claim", "finish") / BURST
    yield Row("commands a task waits for", f"{awaited:g}", f"{PER_TASK_LIMIT}", awaited == PER_TASK_LIMIT)
    yield Row(f"... its worker's, burst of {BURST}", f"{_beside(burst, BURST):.2f}")
    yield Row("... its worker's, one by one", f"{_beside(one_by_one, ONE_BY_ONE):.2f}")
    yield Row("... all, by difference", f"{(burst.total - plain.total) / BURST:.2f}")
    per_second = len(idle.of_extension()) / idle_seconds
    yield Row(
        f"idle worker's commands, {idle_seconds:g} s",
        f"{per_second:.2f} per second",
        f"below {IDLE_LIMIT:g}",
        per_second < IDLE_LIMIT,
    )


def measure_connections(server: EmbeddedServer) -> Iterator[Row]:
    """Count the open connections of a worker whose four bodies have worked, and one of which was stopped."""
    app, socket_url = _driver(server)
    for pool in ("prefork", "threads"):
        probe = app.tasks["plain"].apply_async(queue=QUEUE)
        with (
            redis.Redis.from_url(socket_url, decode_responses=True) as client,
            watch(socket_url) as commands,
            worker(server.url, pool, queue=QUEUE, ready=probe.ready),
        ):
            _burst(app, "cancellable", 100, 0.02)
            result = app.tasks["wait_for_cancellation"].apply_async(queue=QUEUE)
            client.blpop([READY], timeout=30)
            revoke(result).wait(timeout=30)
            ports = {
                one["addr"].rpartition(":")[2] for one in client.client_list() if "U" not in one["flags"]
            }
        ours = len(ports & commands.connections_of_extension)
        yield Row(f"connections, {pool} -c 4", f"{ours} (and {len(ports) - ours} of Celery's)")


def _driver(server: EmbeddedServer) -> tuple[Celery, str]:
    """An app that uses the server's socket file, so that what comes over TCP is the worker's."""
    path = server.unix_url.removeprefix("unix://")
    return make_app(f"redis+socket://{path}"), server.unix_url


def _burst(app: Celery, task: str, count: int, seconds: float = 0.0) -> None:
    results: list[AsyncResult] = [
        app.tasks[task].apply_async(kwargs={"seconds": seconds}, queue=QUEUE) for _ in range(count)
    ]
    for result in results:
        result.get(timeout=60)
    # Longer than the agent gathers what has ended.
    time.sleep(0.1 if count == 1 else 1.0)


def _beside(commands: Commands, tasks: int) -> float:
    """What is no body's to wait for; the heartbeat and the like of that time included."""
    return (len(commands.of_extension()) - commands.calls_of("claim", "finish")) / tasks
