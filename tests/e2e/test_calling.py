"""`CancellationToken.none` wherever arguments go: it is dropped, and never reaches anybody."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import Signature

from celery_canceltoken import CancellationToken
from tests.e2e.conftest import Job
from tests.support.workers import CeleryWorker, WorkerFactory

NONE = CancellationToken.none
SERIALIZERS = ["json", "msgpack", "yaml", "pickle"]


@pytest.fixture(scope="module")
def accepting() -> dict[str, Any]:
    """A configuration that accepts them all."""
    return {"accept_content": SERIALIZERS, "result_accept_content": SERIALIZERS}


def call_all(app: Any) -> dict[str, Any]:
    """Send `wait(0)` in every way that takes a placeholder along, and return the results."""
    wait, add, note = app.tasks["wait"], app.tasks["add"], app.tasks["note_value"]
    ways = {
        "delay": wait.delay(0, NONE),
        "delay by name": wait.delay(0, token=NONE),
        "apply_async": wait.apply_async((0, NONE)),
        "signature": wait.s(0, NONE).apply_async(),
        "bare signature": Signature("wait", args=(0, NONE), app=app).apply_async(),
        "group": group(wait.s(0, NONE), wait.s(0, token=NONE), app=app).apply_async(),
    }
    if app.conf.task_serializer == "yaml":
        # Celery itself cannot send a signature within a message as YAML.
        return ways
    bare = Signature("wait", (0, NONE), immutable=True, app=app)
    return ways | {
        "starmap": wait.starmap([(0, NONE), (0,)]).apply_async(),
        "chunks": wait.chunks([(0, NONE), (0, NONE)], 1).apply_async(),
        "chain": chain(add.si(1, 1), wait.si(0, NONE), wait.si(0, token=NONE)).apply_async(),
        "bare in a chain": chain(add.si(1, 1), bare).apply_async(),
        "chord": chord([wait.s(0, NONE)], note.s()).apply_async(),
        "chord body": chord([add.s(1, 1)], wait.si(0, NONE)).apply_async(),
    }


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_everywhere(worker_factory: WorkerFactory, accepting: dict[str, Any], serializer: str) -> None:
    """Every way of calling works with a placeholder in it, with every serializer."""
    configuration = {**accepting, "task_serializer": serializer, "result_serializer": serializer}
    if serializer == "pickle":
        # Celery refuses to run as root with pickle, unless it is told to.
        configuration["result_serializer"] = "json"
    worker = worker_factory(pool="threads", configuration=configuration, environment={"C_FORCE_ROOT": "1"})
    results = call_all(worker.client)
    for name, result in results.items():
        value = result.get(timeout=15)
        flat = [one for item in (value if isinstance(value, list) else [value]) for one in _flat(item)]
        assert set(flat) == {"completed"}, name


def test_links_and_errbacks(shared_threads_worker: CeleryWorker) -> None:
    """A placeholder in a link or an errback is dropped as well."""
    app = shared_threads_worker.client
    tasks = app.tasks
    linked = tasks["wait"].si(0, NONE)
    linked.freeze()
    tasks["add"].apply_async((1, 1), link=linked)
    Job(app.AsyncResult(linked.id)).wait_until_noted("completed")
    errback = tasks["wait"].si(0, token=NONE)
    errback.freeze()
    tasks["fail"].apply_async(("broken",), link_error=errback)
    Job(app.AsyncResult(errback.id)).wait_until_noted("completed")


def test_nobody_else_sees_one(shared_threads_worker: CeleryWorker) -> None:
    """What lies in the queue is plain data without a trace of the placeholder."""
    app = shared_threads_worker.client
    redis = app.backend.client
    wait, add = app.tasks["wait"], app.tasks["add"]
    queue = f"{shared_threads_worker.queue}-nobody-reads"
    wait.apply_async((0, NONE), queue=queue)
    chain(add.si(1, 1).set(queue=queue), Signature("wait", (0, NONE), immutable=True, app=app)).apply_async()
    add.apply_async((1, 1), queue=queue, link=Signature("wait", (0, NONE), app=app))
    messages = redis.lrange(queue, 0, -1)
    redis.delete(queue)
    assert len(messages) == 3
    assert not [one for one in messages if b"canceltoken__" in one]


def test_errback_arity_is_unaffected(shared_threads_worker: CeleryWorker) -> None:
    """An errback that takes the id alone is called with the id alone, its token notwithstanding."""
    app = shared_threads_worker.client
    job = Job(app.tasks["fail"].apply_async(("broken",), link_error=app.tasks["old_errback"].s()))
    job.wait_until_noted("old-errback")


def test_beat_entry(shared_threads_worker: CeleryWorker) -> None:
    """A schedule's entry with a placeholder among its arguments is sent like any other."""
    from celery.beat import ScheduleEntry, Scheduler

    app = shared_threads_worker.client
    entry = ScheduleEntry(name="nightly", task="wait", schedule=1.0, args=(0, NONE), kwargs={}, app=app)
    result = Scheduler(app, lazy=True).apply_async(entry, advance=False)
    assert result.get(timeout=10) == "completed"


def _flat(item: Any) -> list[Any]:
    return item if isinstance(item, list) else [item]
