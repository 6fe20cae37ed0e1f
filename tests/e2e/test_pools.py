"""What is particular to one pool, or to one way of running a worker."""

from __future__ import annotations

import time
from typing import Any

import celery
import psutil
import pytest
from celery.contrib.testing.worker import start_worker

from celery_canceltoken import State, revoke
from celery_canceltoken.configuration import client_store
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.cancellable import make_app
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, WorkerFactory, private_names, unique_name

GREEN = ["gevent", "eventlet"]


def stops(worker: CeleryWorker) -> None:
    """Declare, call, revoke, REVOKED."""
    job = send(worker, "wait", 30).wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED


@pytest.mark.parametrize("pool", GREEN)
def test_busy_greenlet_cannot_stop_the_heartbeat(worker_factory: WorkerFactory, pool: str) -> None:
    """While a greenlet computes without yielding, the lease is renewed and its own token trips."""
    worker = worker_factory(
        pool=pool,
        configuration={"canceltoken_heartbeat_interval": 0.2, "canceltoken_lease_duration": 0.8},
    )
    job = send(worker, "burn", 25).wait_until_started()
    record = job.record()
    assert record is not None
    assert record.owner is not None
    store = client_store(worker.client)
    until = time.monotonic() + 2.0
    wait_until(
        lambda: not store.is_alive(record.owner or "") or time.monotonic() > until,
        description="two and a half leases have passed, or one has lapsed",
    )
    assert store.is_alive(record.owner)
    handle = revoke(job.result, reason="cool down")
    outcome = handle.wait(5)
    assert (outcome.state, outcome.reason) == (State.REVOKED, "cool down")


@pytest.mark.parametrize("pool", GREEN)
def test_sleeping_greenlets_are_woken_side_by_side(worker_factory: WorkerFactory, pool: str) -> None:
    """Of many greenlets that wait, exactly those that are revoked wake."""
    worker = worker_factory(pool=pool, concurrency=50)
    jobs = [send(worker, "wait", 60) for _ in range(40)]
    for job in jobs:
        job.wait_until_started()
    for job in jobs[::2]:
        revoke(job.result)
    for job in jobs[::2]:
        assert job.wait_until_final().state is State.REVOKED
    assert [job.journal() for job in jobs[1::2]] == [["started"]] * 20
    for job in jobs[1::2]:
        revoke(job.result)
    for job in jobs[1::2]:
        assert job.wait_until_final().state is State.REVOKED


@pytest.mark.parametrize("pool", GREEN)
def test_five_hundred_greenlets_share_few_connections(
    worker_factory: WorkerFactory, valkey: EmbeddedServer, pool: str
) -> None:
    """Five hundred bodies at once cost the worker no more than twelve connections to the store."""
    with EmbeddedServer() as store_alone:
        configuration = {"canceltoken_redis_url": store_alone.url, "task_ignore_result": True}
        worker = worker_factory(pool=pool, concurrency=500, configuration=configuration)
        jobs = [send(worker, "wait", 120) for _ in range(500)]
        for job in jobs:
            job.wait_until_started(timeout=40)
        pids = [worker.pid]
        ours = [
            one
            for pid in pids
            for one in psutil.Process(pid).net_connections(kind="tcp")
            if one.raddr and one.raddr.port == store_alone.port and one.status == "ESTABLISHED"
        ]
        assert 1 <= len(ours) <= 12
        for job in jobs:
            assert revoke(job.result)
        for job in jobs:
            assert job.wait_until_final(timeout=40).state is State.REVOKED


@pytest.mark.skipif(
    tuple(map(int, celery.__version__.split(".")[:2])) < (5, 7), reason="Celery spawns since 5.7 only"
)
def test_spawned_children(worker_factory: WorkerFactory) -> None:
    """Children that are started afresh rather than forked are reached as well."""
    worker = worker_factory(concurrency=1, configuration={"worker_pool_start_method": "spawn"})
    stops(worker)


def test_autoscale_up_and_down(worker_factory: WorkerFactory) -> None:
    """Children that come with the load are reached, and those that stay when it goes."""
    worker = worker_factory(
        concurrency=1,
        arguments=["--autoscale", "4,1"],
        configuration={"worker_autoscaler": "tests.support.apps.quick_autoscaler:QuickAutoscaler"},
    )
    jobs = [send(worker, "wait", 60) for _ in range(4)]
    for job in jobs:
        job.wait_until_started(timeout=30)
    for job in jobs:
        assert revoke(job.result)
    for job in jobs:
        assert job.wait_until_final().state is State.REVOKED
    wait_until(lambda: len(worker.children()) < 4, timeout=40, description="the pool has shrunk")
    stops(worker)


def test_pool_restart(worker_factory: WorkerFactory) -> None:
    """After `pool_restart` the new children are reached."""
    worker = worker_factory(concurrency=1, configuration={"worker_pool_restarts": True})
    stops(worker)
    before = {child.pid for child in worker.children()}
    worker.client.control.broadcast("pool_restart", reply=True, timeout=5)
    wait_until(
        lambda: before.isdisjoint(child.pid for child in worker.children()) and worker.children(),
        timeout=30,
        description="the children are new ones",
    )
    stops(worker)


def test_two_workers_of_the_same_name(worker_factory: WorkerFactory) -> None:
    """Two workers that were given one name have an inbox each."""
    name = "twin@localhost"
    workers = [
        worker_factory(pool="solo", arguments=["--hostname", name], wait=False, neighbours=False)
        for _ in range(2)
    ]
    for worker in workers:
        worker.wait_for_log(f"{name} ready.", timeout=30)
    jobs = [send(workers[0], "wait", 60) for _ in range(2)]
    for job in jobs:
        job.wait_until_started()
    records = [job.record() for job in jobs]
    assert len({record.owner for record in records if record is not None}) == 2
    for job in jobs:
        assert revoke(job.result).wait(10).state is State.REVOKED


def embedded_app(valkey: EmbeddedServer) -> Any:
    """An app of this very process, with a queue of its own."""
    queue = unique_name("embedded")
    return make_app(
        broker_url=valkey.url,
        result_backend=valkey.url,
        configuration={**private_names(queue), "worker_hijack_root_logger": False},
    )


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_embedded_worker(valkey: EmbeddedServer, pool: str) -> None:
    """A worker that a test starts within its own process stops tasks, and takes its agent along."""
    app = embedded_app(valkey)
    with start_worker(app, pool=pool, perform_ping_check=False, loglevel="INFO"):
        job = Job(app.tasks["wait"].delay(30)).wait_until_started()
        record = job.record()
        assert revoke(job.result).wait(10).state is State.REVOKED
    assert record is not None
    assert record.owner is not None
    assert not client_store(app).is_alive(record.owner)
    app.close()


def test_several_apps_in_one_process(valkey: EmbeddedServer) -> None:
    """Two apps whose workers share a process do not mix up their tasks, whatever their workers' names."""
    first, second = embedded_app(valkey), embedded_app(valkey)
    second.conf.canceltoken_prefix = "second"
    with (
        start_worker(first, pool="threads", perform_ping_check=False, hostname="same@here"),
        start_worker(second, pool="threads", perform_ping_check=False, hostname="same@here"),
    ):
        gate = unique_name("gate")
        spared = Job(first.tasks["return_unlooked"].delay(gate)).wait_until_started()
        job = Job(second.tasks["wait"].delay(30)).wait_until_started()
        assert revoke(job.result).wait(10).state is State.REVOKED
        assert client_store(first).get(job.id) is None
        open_gate(first, gate)
        assert spared.result.get(timeout=10) == "unlooked"
    first.close()
    second.close()
