"""The functions for event loops, each against a worker. No call may block the loop that makes it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

import pytest
from celery import chain, group
from celery.exceptions import TaskRevokedError
from redis import Redis
from redis.connection import AbstractConnection

from celery_canceltoken import Cause, State, aio, get_record
from celery_canceltoken.configuration import settings_of
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP, SECOND_RUN
from tests.support.proxy import ToxicProxy
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, ClientFactory, unique_name

T = TypeVar("T")


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


@pytest.fixture(autouse=True)
def blocking_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail a test whose event loop was held up by redis-py's blocking connections, Celery's included."""
    seen: list[str] = []

    def watch(name: str) -> None:
        original = getattr(AbstractConnection, name)

        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None:
                stack = traceback.extract_stack()
                # A result of Celery's that is collected says goodbye in whichever thread that happens.
                if not any(frame.name == "__del__" for frame in stack):
                    seen.append("".join(stack.format()))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(AbstractConnection, name, watched)

    for name in ("connect", "send_packed_command", "read_response"):
        watch(name)
    yield seen
    assert not seen, seen[0]


@pytest.fixture
def worker(shared_threads_worker: CeleryWorker) -> CeleryWorker:
    """The worker that all tests here share."""
    return shared_threads_worker


def run(steps: Coroutine[Any, Any, T]) -> T:
    """Run in an event loop of its own; nothing may hang."""
    return asyncio.run(asyncio.wait_for(steps, 30))


async def blocking(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Do what blocks, as an asyncio app has to."""
    return await asyncio.to_thread(call, *args, **kwargs)


def value_of_second_run(job: Job) -> Any:
    """Read it anew: who has sent the task is told of the first run's result as well, however late."""
    assert job.wait_until_started(2).wait_until_final().state is State.SUCCEEDED
    return job.app.backend.get_task_meta(job.id, cache=False)["result"]


def listeners(worker: CeleryWorker, task_id: str) -> int:
    channel = f"{settings_of(worker.client).prefix}:stopped:{task_id}"
    with Redis.from_url(worker.broker_url) as client:
        return int(client.pubsub_numsub(channel)[0][1])


def test_the_watch_over_the_loop_sees_what_blocks(worker: CeleryWorker, blocking_calls: list[str]) -> None:
    """The blocking function, called in a loop, is what this file's watch would fail a test for."""

    async def block() -> None:
        get_record("id", app=worker.client)

    run(block())
    assert blocking_calls
    blocking_calls.clear()


def test_revoke_stops_a_running_body(worker: CeleryWorker) -> None:
    """`await revoke` reaches the token, and the handle's wait tells the end, with who and why."""
    job = send(worker, "act", "stop").wait_until_started()

    async def revoke() -> Any:
        handle = await aio.revoke(job.result, reason="enough", actor="test")
        assert (handle.applied, handle.previous) == (True, State.PROCESSING)
        return await handle.wait(10)

    outcome = run(revoke())
    assert (outcome.state, outcome.cause) == (State.REVOKED, Cause.REVOKED)
    assert (outcome.reason, outcome.actor) == ("enough", "test")
    with pytest.raises(TaskRevokedError, match="enough"):
        job.result.get(timeout=5)


def test_delete_ends_the_result_at_once(worker: CeleryWorker) -> None:
    """`await delete` writes Celery's result before the body has stopped."""
    gate = unique_name("gate")
    job = send(worker, "act", "return unlooked", gate).wait_until_started()
    handle = run(aio.delete(job.result, reason="gone"))
    assert handle
    with pytest.raises(TaskRevokedError, match="gone"):
        job.result.get(timeout=5)
    assert job.starts() == 1
    open_gate(worker.client, gate)
    assert run(handle.wait(10)).state is State.DELETED


def test_requeue_of_a_running_body_runs_it_again(worker: CeleryWorker) -> None:
    """`await requeue` tells the body, and the message comes again."""
    job = send(worker, "act", "stop").wait_until_started()
    handle = run(aio.requeue(job.result))
    assert run(handle.wait(10)).cause is Cause.REQUEUED
    assert job.result.get(timeout=10) == SECOND_RUN


def test_requeue_of_an_ended_task_publishes_its_message(worker: CeleryWorker) -> None:
    """`await requeue` of a task that has failed sends it itself, and clears the result."""
    job = send(worker, "act", "raise")
    assert job.wait_until_final().state is State.FAILED
    handle = run(aio.requeue(job.result))
    assert (handle.applied, handle.previous) == (True, State.FAILED)
    assert value_of_second_run(job) == SECOND_RUN


def test_reschedule_gives_a_time(worker: CeleryWorker) -> None:
    """`await reschedule` of a task that has failed has it wait for its time, where it can be revoked."""
    job = send(worker, "act", "raise")
    job.wait_until_final()
    eta = datetime.now(timezone.utc) + timedelta(hours=1)

    async def reschedule() -> Any:
        assert await aio.reschedule(job.result, eta=eta)
        record = await aio.get_record(job.result)
        assert await aio.reschedule(job.result, countdown=0)
        return record

    record = run(reschedule())
    assert (record.state, record.eta) == (State.SCHEDULED, eta)
    assert value_of_second_run(job) == SECOND_RUN


def test_withdraw_takes_a_request_back(worker: CeleryWorker) -> None:
    """`await withdraw` of a handle, in time: the task runs, and the wait says that it was withdrawn."""
    task_id = unique_name("id")

    async def revoke_and_withdraw() -> Any:
        handle = await aio.revoke(task_id, app=worker.client)
        assert await aio.withdraw(handle, app=worker.client)
        return await handle.wait(5)

    assert run(revoke_and_withdraw()).withdrawn
    assert send(worker, "act", task_id=task_id).result.get(timeout=10) == "first run"


def test_revoke_many_answers_for_each(worker: CeleryWorker) -> None:
    """`await revoke_many` has a handle for each id, and one wait for all of them."""
    jobs = [send(worker, "act", "stop").wait_until_started() for _ in range(3)]
    done = send(worker, "act")
    done.wait_until_final()

    async def revoke() -> Any:
        handles = await aio.revoke_many([*(job.result for job in jobs), done.id], reason="all")
        assert [handle.task_id for handle in handles.refused] == [done.id]
        return await handles.wait(10)

    outcomes = run(revoke())
    assert {job.id: State.REVOKED for job in jobs} == {key: one.state for key, one in outcomes.items()}


def test_a_wait_for_many_has_one_timeout(worker: CeleryWorker) -> None:
    """The timeout of a wait for many is for all of them, and names the one that it stopped at."""
    gate = unique_name("gate")
    job = send(worker, "act", "return unlooked", gate).wait_until_started()
    handles = run(aio.revoke_many([job.result]))
    with pytest.raises(TimeoutError, match=job.id):
        run(handles.wait(0.05))
    open_gate(worker.client, gate)
    assert run(handles.wait(10))[job.id].came_too_late


def test_revoke_group_reaches_all_members(worker: CeleryWorker) -> None:
    """`await revoke_group` stops each member of a group."""
    act = worker.client.tasks["act"]
    result = group(act.s("stop") for _ in range(2)).apply_async()
    jobs = [Job(one).wait_until_started() for one in result.results]
    handles = run(aio.revoke_group(result, reason="all"))
    assert {one.state for one in run(handles.wait(10)).values()} == {State.REVOKED}
    assert len(handles) == len(jobs)


def test_revoke_workflow_reaches_what_comes_later(worker: CeleryWorker) -> None:
    """`await revoke_workflow` marks the root: what the workflow sends from then on never starts."""
    act = worker.client.tasks["act"]
    gate, later = unique_name("gate"), unique_name("later")
    result = chain(act.si("return unlooked", gate), act.si("return").set(task_id=later)).apply_async()
    Job(result.parent).wait_until_started()
    assert run(aio.revoke_workflow(result, reason="stop it"))
    open_gate(worker.client, gate)
    follower = Job(result)
    assert follower.id == later
    assert follower.wait_until_final().state is State.REVOKED
    assert follower.starts() == 0


def test_revoke_where_finds_what_fits(worker: CeleryWorker) -> None:
    """`await revoke_where` asks a predicate about each kept message; dry first, then in earnest."""
    mark = unique_name("mark")
    jobs = [send(worker, "act", "stop", "", each).wait_until_started() for each in (mark, "other")]

    async def revoke() -> Any:
        def fits(task: Any) -> bool:
            return mark in task.args

        found = await aio.revoke_where(queue=worker.queue, where=fits, dry_run=True, app=worker.client)
        assert [record.task_id for record in found] == [jobs[0].id]
        assert (await aio.get_record(jobs[0].result)).request_id is None
        handles = await aio.revoke_where(queue=worker.queue, where=fits, app=worker.client)
        assert [handle.task_id for handle in handles] == [jobs[0].id]
        await handles.wait(10)
        record = await aio.get_record(jobs[1].result)
        await (await aio.revoke(jobs[1].result)).wait(10)
        return record

    assert run(revoke()).state is State.PROCESSING


def test_list_records_leads_from_page_to_page(worker: CeleryWorker) -> None:
    """`await list_records` pages as the blocking function does."""
    jobs = [send(worker, "quiet_act") for _ in range(3)]
    for job in jobs:
        job.wait_until_final()

    async def read() -> list[str]:
        ids, cursor = [], None
        while True:
            page = await aio.list_records(name="quiet_act", limit=2, cursor=cursor, app=worker.client)
            ids += [record.task_id for record in page]
            cursor = page.cursor
            if cursor is None:
                return ids

    assert sorted(run(read())) == sorted(job.id for job in jobs)


def test_records_are_those_of_the_blocking_function(worker: CeleryWorker) -> None:
    """`await get_record` and the handle's record read what `get_record` reads."""
    job = send(worker, "act")
    record = job.wait_until_final()

    async def read() -> list[Any]:
        handle = await aio.revoke(job.result)
        assert handle.refusal == "the task has ended"
        return [await aio.get_record(job.result), await handle.record()]

    assert run(read()) == [record, record]


def test_a_wait_is_pushed_and_not_polled(worker: CeleryWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait reads the record when it begins and when it is told something, and not in between."""
    # What is not told is found by looking again: here, not before the test has failed.
    monkeypatch.setattr(aio, "LOOK_AGAIN", 3600.0)
    gate = unique_name("gate")
    job = send(worker, "act", "return unlooked", gate).wait_until_started()
    reads = []
    get_record = aio.get_record

    async def counted(*args: Any, **kwargs: Any) -> Any:
        reads.append(args)
        return await get_record(*args, **kwargs)

    monkeypatch.setattr(aio, "get_record", counted)

    async def wait() -> Any:
        handle = await aio.revoke(job.result)
        waiting = asyncio.ensure_future(handle.wait(20))
        await blocking(
            wait_until, lambda: listeners(worker, job.id) and reads, description="it has looked and listens"
        )
        await blocking(open_gate, worker.client, gate)
        return await waiting

    assert run(wait()).came_too_late
    # It is told twice: that it listens, and that the body has ended.
    assert len(reads) <= 3


def test_a_hundred_waits_for_one_task_end_together(worker: CeleryWorker) -> None:
    """Many may wait for the same task; each is told, and none is in the way of the calls."""
    job = send(worker, "act", "stop").wait_until_started()

    async def wait() -> list[Any]:
        handle = await aio.revoke(job.result, must_exist=True)
        return await asyncio.gather(*(handle.wait(20) for _ in range(100)))

    assert {outcome.state for outcome in run(wait())} == {State.REVOKED}


def test_a_cancelled_wait_does_not_withdraw(worker: CeleryWorker) -> None:
    """Whoever stops waiting, by a timeout of asyncio's too, has taken nothing back."""
    gate = unique_name("gate")
    job = send(worker, "act", "stop unlooked", gate).wait_until_started()

    async def give_up() -> Any:
        handle = await aio.revoke(job.result, reason="enough")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle.wait(), 0.1)
        await blocking(
            wait_until, lambda: not listeners(worker, job.id), description="nobody listens any more"
        )
        await blocking(open_gate, worker.client, gate)
        return await handle.wait(10)

    assert run(give_up()).reason == "enough"


def test_without_a_store_the_workers_may_be_told_by_celery(
    client_factory: ClientFactory, worker: CeleryWorker, valkey_proxy: ToxicProxy
) -> None:
    """`store_down="broadcast"`: workers are told by Celery's own revoke, and the handle says so."""
    configuration = {**worker.configuration, "canceltoken_redis_url": valkey_proxy.url}
    client = client_factory(
        queue=worker.queue, configuration={**configuration, "canceltoken_store_timeout": 0.2}
    )
    valkey_proxy.freeze("down")
    task_id = unique_name("id")
    handle = run(aio.revoke(task_id, store_down="broadcast", app=client))
    assert (handle.applied, handle.broadcast) == (False, True)
    job = send(worker, "act", task_id=task_id)
    with pytest.raises(TaskRevokedError):
        job.result.get(timeout=10)
    assert job.starts() == 0
