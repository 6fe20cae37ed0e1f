"""What a worker pays: connections and commands, counted."""

from __future__ import annotations

from typing import Any

import pytest

from celery_canceltoken.configuration import client_store
from tests.e2e.conftest import send
from tests.support.waiting import wait_until
from tests.support.workers import PLAIN_APP, WorkerFactory

SCRIPTS_A_TASK_WAITS_FOR = 2


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_commands_per_task(worker_factory: WorkerFactory, pool: str) -> None:
    """A hundred tasks cost two commands each, and a few more for settling them together."""
    # Nothing else is due while we count.
    worker = worker_factory(
        pool=pool,
        configuration={
            "canceltoken_check_interval": 600.0,
            "canceltoken_heartbeat_interval": 600.0,
            "canceltoken_lease_duration": 1200.0,
        },
    )
    redis = worker.client.backend.client
    keys = client_store(worker.client).keys
    send(worker, "whoami").result.get(timeout=10)
    with redis.monitor() as monitor:
        jobs = [send(worker, "whoami") for _ in range(100)]
        for job in jobs:
            job.result.get(timeout=20)
        for job in jobs:
            job.wait_until_final()
        redis.echo("the end of the count")
        commands: list[dict[str, Any]] = []
        for command in monitor.listen():
            if "the end of the count" in command["command"]:
                break
            commands.append(command)
    scripts = [
        one["command"]
        for one in commands
        if one["client_type"] != "lua"
        and one["command"].startswith("EVALSHA")
        and f"{keys.prefix}:task:" in one["command"]
    ]
    assert 200 <= len(scripts) <= 200 + 100, len(scripts)


@pytest.mark.parametrize(("pool", "added"), [("prefork", 4 + 3), ("threads", 4 + 3), ("solo", 1 + 3)])
def test_connections(worker_factory: WorkerFactory, pool: str, added: int) -> None:
    """One connection for each body that runs, one for the inbox, and at most two for the agent's work."""

    def connections(app: str) -> int:
        worker = worker_factory(app, pool=pool, arguments=["--without-heartbeat"])
        redis = worker.client.backend.client
        results = [worker.client.tasks["add"].delay(1, 2) for _ in range(20)]
        if app != PLAIN_APP:
            results += [send(worker, "big_return", 5).result for _ in range(100)]
        for result in results:
            result.get(timeout=20)
        pids = {worker.pid, *(child.pid for child in worker.children())}
        ports = {
            connection.laddr.port
            for pid in pids
            for connection in _tcp(pid)
            if connection.raddr and connection.raddr.port == redis.connection_pool.connection_kwargs["port"]
        }
        worker.stop()
        return len(ports)

    plain = connections(PLAIN_APP)
    cancellable = connections("tests.support.apps.cancellable")
    assert cancellable - plain <= added


def _tcp(pid: int) -> list[Any]:
    import psutil

    return [one for one in psutil.Process(pid).net_connections(kind="tcp") if one.status == "ESTABLISHED"]


def test_idle_worker_sends_less_than_a_command_per_second(worker_factory: WorkerFactory) -> None:
    """Counted with intervals a tenth of the default ones: an idle worker stays below ten per second."""
    worker = worker_factory(
        pool="solo",
        configuration={
            "canceltoken_check_interval": 0.5,
            "canceltoken_heartbeat_interval": 0.5,
            "canceltoken_lease_duration": 3.0,
        },
    )
    redis = worker.client.backend.client
    prefix = client_store(worker.client).keys.prefix
    beats = 0
    commands = 0
    with redis.monitor() as monitor:
        for command in monitor.listen():
            words = command["command"]
            if f"{prefix}:" not in words:
                continue
            beats += words.startswith("SET ") and words.endswith(" XX")
            # What comes before the first renewal is the worker's start.
            commands += beats > 0
            if beats == 8:
                break
    # Seven whole heartbeats of half a second.
    assert commands / 3.5 < 10
    wait_until(lambda: worker.is_running, description="the worker runs")
