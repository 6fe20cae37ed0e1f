"""Whole workflows are stopped: what runs, what waits, what comes later; and nothing is left hanging."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError

from celery_canceltoken import State, delete, requeue, revoke, revoke_group, revoke_workflow
from tests.e2e.conftest import Job, open_gate, send
from tests.support.apps.controlled import CONTROLLED_APP, SECOND_RUN
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker, unique_name


@pytest.fixture
def worker_app() -> str:
    """Tests here run the controlled tasks."""
    return CONTROLLED_APP


def jobs_of(signature: Any, app: Any) -> list[Job]:
    """All tasks that a frozen workflow names, those that its result does not know among them."""

    def ids(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            options = part.get("options")
            if "task" in part and isinstance(options, dict) and part.get("subtask_type") is None:
                yield from filter(None, [options.get("task_id")])
            part = list(part.values())
        if isinstance(part, (list, tuple)):
            for one in part:
                yield from ids(one)

    plain = json.loads(json.dumps(signature, default=str))
    return [Job(app.AsyncResult(task_id)) for task_id in dict.fromkeys(ids(plain))]


# Each holds one task that is told to stop, and others that end by themselves.
CANVASES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "chain first": lambda x, act, end: chain(x(), act(), end()),
    "chain middle": lambda x, act, end: chain(act(), x(), end()),
    "chain into group": lambda x, act, end: chain(x(), group(act(), act()), end()),
    "chain with group": lambda x, act, end: chain(act(), group(x(), act()), end(), end()),
    "group": lambda x, act, _: group(x(), act()),
    "group of chain": lambda x, act, _: group(chain(x(), act()), act()),
    "chord": lambda x, act, end: chord([x(), act()], end()),
    "chord of chain": lambda x, act, end: chord([chain(act(), x(), act()), act()], end()),
    "chord of chord": lambda x, act, end: chord([chord([x(), act()], end()), act()], end()),
    "chord body": lambda x, act, _: chord([act(), act()], x()),
    "chord of chord into chain": lambda x, act, end: chord(
        [chord([x(), act()], chain(end(), end())), act()], end()
    ),
    "chord of chord of chord": lambda x, act, end: chord(
        [chord([chord([act(), x()], end()), act()], end()), act()], end()
    ),
    "nested body": lambda x, act, end: chord([chord([act(), act()], x()), act()], end()),
    "chord into chain": lambda x, act, end: chord([x(), act()], chain(end(), end(), end())),
    "chord into group": lambda x, act, end: chord([x(), act()], group(end(), end())),
    "chord of chain with group": lambda x, act, end: chord(
        [chain(x(), group(act(), act()), end()), act()], end()
    ),
}


def start(worker: CeleryWorker, canvas: str) -> tuple[Any, Job, list[Job]]:
    """Send a workflow; returns its result, the task in it that waits to be told, and all its tasks."""
    tasks = worker.client.tasks
    waiting = tasks["act"].si("stop")
    waiting.freeze()
    workflow = CANVASES[canvas](lambda: waiting, lambda: tasks["act"].si("return"), tasks["collect"].s)
    result = workflow.apply_async()
    known = {job.id: job for job in jobs_of(workflow, worker.client)}
    for one in _known_to(result):
        known.setdefault(one.id, Job(one))
    return result, Job(worker.client.AsyncResult(waiting.id)).wait_until_started(), list(known.values())


def _known_to(result: Any) -> Iterator[Any]:
    if result is None:
        return
    for one in getattr(result, "results", None) or ():
        yield from _known_to(one)
    if getattr(result, "results", None) is None:
        yield result
    yield from _known_to(result.parent)


def wait_for_all(jobs: list[Job]) -> dict[str, str]:
    """Wait until every task's Celery result is there; nothing hangs."""
    states: dict[str, str] = {}

    def ready() -> bool:
        states.update({job.id: job.stored()[0] for job in jobs})
        return all(state in ("SUCCESS", "FAILURE", "REVOKED") for state in states.values())

    wait_until(ready, description=lambda: f"all tasks have a result: {states}")
    return states


@pytest.mark.parametrize("order", [revoke, delete], ids=["revoke", "delete"])
@pytest.mark.parametrize("canvas", CANVASES)
def test_nothing_hangs(shared_prefork_worker: CeleryWorker, canvas: str, order: Any) -> None:
    """Where one task of a workflow is stopped, each of the others comes to an end as well.

    It is the last one of its chord to end: Celery fails the body then, and tells nobody behind that.
    """
    _, waiting, jobs = start(shared_prefork_worker, canvas)
    # Whatever has been sent by now is taken up before this one.
    send(shared_prefork_worker, "whoami").result.get(timeout=10)
    wait_until(
        lambda: sum(job.starts() for job in jobs) == sum(job.stored()[0] == "SUCCESS" for job in jobs) + 1,
        description="all else that has started has ended",
    )
    assert order(waiting.result)
    assert wait_for_all(jobs)[waiting.id] == "REVOKED"


@pytest.mark.parametrize("canvas", CANVASES)
def test_requeued_task_keeps_its_place(shared_prefork_worker: CeleryWorker, canvas: str) -> None:
    """Where one task of a workflow is sent back, the whole comes to its end with the second run's value."""
    result, waiting, jobs = start(shared_prefork_worker, canvas)
    assert requeue(waiting.result)
    assert set(wait_for_all(jobs).values()) == {"SUCCESS"}
    assert waiting.stored() == ("SUCCESS", SECOND_RUN)
    assert waiting.starts() == 2
    result.get(timeout=10)


@pytest.mark.parametrize("canvas", CANVASES)
def test_whole_workflow_is_stopped(shared_prefork_worker: CeleryWorker, canvas: str) -> None:
    """Revoked as a whole, by its result, a workflow ends with the task that ran, and nothing hangs."""
    result, waiting, jobs = start(shared_prefork_worker, canvas)
    handles = revoke_workflow(result, reason="all of it")
    assert waiting.id in {handle.task_id for handle in handles.applied}
    assert wait_for_all(jobs)[waiting.id] == "REVOKED"
    assert waiting.starts() == 1


def test_chain_by_the_id_of_its_first_task(main_worker: CeleryWorker) -> None:
    """An id alone does: its task is told, and what would follow never runs."""
    tasks = main_worker.client.tasks
    last = chain(tasks["act"].si("stop"), tasks["act"].si("return"), tasks["collect"].s()).apply_async()
    first = Job(last.parent.parent).wait_until_started()
    revoke_workflow(first.id, reason="all of it", app=main_worker.client)
    with pytest.raises(TaskRevokedError, match="all of it"):
        last.get(timeout=10)
    assert (Job(last.parent).starts(), Job(last).starts()) == (0, 0)


def test_waiting_for_a_chain_is_waiting_for_what_has_begun(main_worker: CeleryWorker) -> None:
    """What was never sent has a handle, and no end: only the member that ran is waited for."""
    tasks = main_worker.client.tasks
    last = chain(tasks["act"].si("stop"), tasks["act"].si("return")).apply_async()
    first = Job(last.parent).wait_until_started()
    handles = revoke_workflow(last)
    assert {handle.task_id for handle in handles.applied} == {first.id, last.id}
    outcomes = handles.wait(timeout=10)
    assert {task_id: outcome.state for task_id, outcome in outcomes.items()} == {first.id: State.REVOKED}


def test_running_member_that_does_not_look_is_followed_by_nothing(
    main_worker: CeleryWorker, gate: str
) -> None:
    """Where the running task came to its end all the same, what it leads to is told on its claim."""
    tasks = main_worker.client.tasks
    last = chain(
        tasks["act"].si("return unlooked", gate), tasks["act"].si("return"), tasks["collect"].s()
    ).apply_async()
    first = Job(last.parent.parent).wait_until_started()
    revoke_workflow(first.id, reason="all of it", app=main_worker.client)
    open_gate(main_worker.client, gate)
    assert first.wait_until_stored("SUCCESS") == "first run"
    assert Job(last.parent).wait_until_final().state is State.REVOKED
    Job(last).wait_until_stored("REVOKED")
    assert (Job(last.parent).starts(), Job(last).starts()) == (0, 0)


def test_queued_members_never_start(shared_solo_worker: CeleryWorker, gate: str) -> None:
    """Members of a chord that wait behind another task are told by the chord's result."""
    client = shared_solo_worker.client
    busy = send(client, "return_unlooked", gate).wait_until_started()
    tasks = client.tasks
    result = chord([tasks["act"].si("return") for _ in range(3)], tasks["collect"].s()).apply_async()
    handles = revoke_workflow(result, reason="all of it")
    assert len(handles) == 4
    assert all(handles)
    open_gate(client, gate)
    busy.result.get(timeout=10)
    body = Job(client.AsyncResult(result.id))
    with pytest.raises((ChordError, TaskRevokedError), match="all of it"):
        body.result.get(timeout=10)
    assert [Job(one).starts() for one in result.parent.results] == [0, 0, 0]
    assert body.starts() == 0


def test_what_its_tasks_send_later(main_worker: CeleryWorker, gate: str) -> None:
    """What a task of the workflow sends after the revoke is told as a worker claims it."""
    client = main_worker.client
    ids = [unique_name("id"), unique_name("id")]
    parent = send(client, "send_on", gate, ids).wait_until_started()
    revoke_workflow(parent.result, reason="all of it")
    open_gate(client, gate)
    parent.wait_until_noted("sent on")
    child = Job(client.AsyncResult(ids[0]))
    record = child.wait_until_final()
    assert (record.state, record.reason) == (State.REVOKED, "all of it")
    child.wait_until_stored("REVOKED")
    assert [child.starts(), Job(client.AsyncResult(ids[1])).starts()] == [0, 0]


def test_what_its_tasks_have_sent_is_found(main_worker: CeleryWorker, gate: str) -> None:
    """What was sent from within is found by the id of the first task, though no result knows it."""
    client = main_worker.client
    root_id, child_id = unique_name("id"), unique_name("id")
    root = send(client, "return_unlooked", gate, task_id=root_id).wait_until_started()
    child = send(client, "act", "stop", task_id=child_id, root_id=root_id).wait_until_started()
    handles = revoke_workflow(root_id, app=client)
    assert {handle.task_id for handle in handles} == {root_id, child_id}
    assert child.wait_until_final().state is State.REVOKED
    open_gate(client, gate)
    root.wait_until_final()


def test_root_sent_again_lifts_it(main_worker: CeleryWorker) -> None:
    """The same workflow sent anew, under the same id, runs."""
    client = main_worker.client
    task_id = unique_name("id")
    job = send(client, "act", "stop", task_id=task_id).wait_until_started()
    revoke_workflow(task_id, app=client).wait(10)
    again = client.tasks["act"].si("return").set(task_id=task_id) | client.tasks["act"].si("return")
    last = Job(again.apply_async())
    last.wait_until_stored("SUCCESS")
    assert (job.starts(), last.starts()) == (2, 1)


def test_requeued_member_of_a_revoked_workflow_runs(main_worker: CeleryWorker) -> None:
    """Who requeues one task of a revoked workflow wants it to run, whatever was asked of the whole."""
    job = send(main_worker, "act", "stop").wait_until_started()
    revoke_workflow(job.id, app=main_worker.client).wait(10)
    assert requeue(job.result)
    assert job.wait_until_stored("SUCCESS") == SECOND_RUN


def test_other_workflows_are_left_alone(main_worker: CeleryWorker, gate: str) -> None:
    """A workflow of the same shape goes on."""
    tasks = main_worker.client.tasks

    def send_one(how: str) -> Any:
        return chain(tasks["act"].si(how, gate), tasks["collect"].s()).apply_async()

    spared, stopped = send_one("return unlooked"), send_one("stop")
    Job(spared.parent).wait_until_started()
    Job(stopped.parent).wait_until_started()
    revoke_workflow(stopped)
    Job(stopped.parent).wait_until_stored("REVOKED")
    open_gate(main_worker.client, gate)
    assert spared.get(timeout=10) == "first run"


def test_group_of_groups(main_worker: CeleryWorker, gate: str) -> None:
    """revoke_group tells all members, those of groups within it too, and whoever is no member not."""
    tasks = main_worker.client.tasks
    spared = send(main_worker, "act", "return unlooked", gate).wait_until_started()
    result = group(
        tasks["act"].si("stop"), group(tasks["act"].si("stop"), chain(tasks["act"].si("stop")))
    ).apply_async()
    members = [Job(one) for one in _known_to(result)]
    for member in members:
        member.wait_until_started()
    handles = revoke_group(result, reason="all of it")
    assert {handle.task_id for handle in handles} == {member.id for member in members}
    assert {outcome.state for outcome in handles.wait(10).values()} == {State.REVOKED}
    open_gate(main_worker.client, gate)
    assert spared.result.get(timeout=10) == "first run"
