"""The control functions for asyncio apps: `from celery_canceltoken import aio`, then `await aio.revoke(id)`.

Names, arguments, answers and errors are those of the functions of the same names in `celery_canceltoken`, on
`redis.asyncio` and with the same scripts. What goes through Celery (publishing a message again, writing or
forgetting a result, Celery's own revoke) is done in a thread.

Connections belong to the event loop that runs: at most 8 for calls, and one for each wait. They are closed
when the loop shuts its asynchronous generators down, as `asyncio.run` and web servers have it do at its end;
`close` gives them back sooner. Whoever closes a loop by hand awaits `close` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar, overload
from weakref import WeakKeyDictionary

from celery import Celery
from celery.result import AsyncResult, GroupResult

from celery_canceltoken.app_side import Actions, decoder_of, ids_of, resolve, resolve_many
from celery_canceltoken.configuration import async_store, settings_of
from celery_canceltoken.control.arguments import checked_flag, checked_id, checked_seconds, checked_states
from celery_canceltoken.control.handle import LOOK_AGAIN, Handle, Handles, Outcome, outcome_of
from celery_canceltoken.control.listing import RecordPage, list_steps
from celery_canceltoken.control.many import (
    StoredTask,
    criteria_of,
    revoke_many_steps,
    revoke_where_steps,
    revoke_workflow_steps,
    select_steps,
)
from celery_canceltoken.control.orders import (
    Answered,
    FromState,
    checked_store_down,
    delete_steps,
    order_of,
    read_steps,
    requeue_steps,
    reschedule_steps,
    revoke_steps,
    withdraw_order,
    withdraw_steps,
)
from celery_canceltoken.control.steps import Ask, Steps, act
from celery_canceltoken.draining import ask_worker
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.store.async_store import AsyncStore
from celery_canceltoken.store.calls import Calls

__all__ = [
    "AsyncRequestHandle",
    "AsyncRequestHandles",
    "close",
    "delete",
    "drain",
    "get_record",
    "list_records",
    "requeue",
    "reschedule",
    "revoke",
    "revoke_group",
    "revoke_many",
    "revoke_where",
    "revoke_workflow",
    "undrain",
    "withdraw",
]

T = TypeVar("T")

# As a string: before Celery 5.7 it is no generic class at run time.
Task: TypeAlias = "str | AsyncResult[Any]"


class _LoopStores:
    """The stores of one event loop: connections of one loop are of no use to another."""

    def __init__(self) -> None:
        self.by_app: WeakKeyDictionary[Celery, AsyncStore] = WeakKeyDictionary()
        self._life = self._live()
        # Its first step, by which the loop comes to know it, waits for nothing.
        with contextlib.suppress(StopIteration):
            self._life.asend(None).send(None)

    async def _live(self) -> AsyncGenerator[None, None]:
        """Wait for the end of the loop: what it closes then is what asyncio offers to be told by."""
        try:
            yield
        finally:
            with _loops_lock:
                _loops.pop(asyncio.get_running_loop(), None)
            for store in list(self.by_app.values()):
                await store.close()


# Owner: each event loop, for its own entry. It would keep its loop alive, so the loop's end takes it out.
_loops: dict[asyncio.AbstractEventLoop, _LoopStores] = {}
_loops_lock = threading.Lock()


class AsyncRequestHandle(Handle):
    """The answer to one order; true if it was applied. For tasks of the event loop that asked."""

    def __init__(self, app: Celery, answered: Answered) -> None:
        super().__init__(answered, app)

    async def record(self) -> TaskRecord | None:
        """Read the task's record now. Raises StoreUnavailableError, RecordUnreadableError."""
        return await get_record(self.task_id, app=self.app)

    async def wait(self, timeout: float | None = None) -> Outcome:
        """Wait until the order has had its effect, as `RequestHandle.wait` does, with the same errors.

        Cancelling the wait changes nothing about the order.
        """
        deadline = None if timeout is None else time.monotonic() + checked_seconds("timeout", timeout)
        store = _store_of(self.app)
        async with store.end_of(self.task_id) as end:
            while True:
                outcome = outcome_of(self._answered, await self.record())
                if outcome is not None:
                    return outcome
                left = LOOK_AGAIN if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"task {self.task_id}: nothing has come of it within {timeout} s")
                await end.wait(min(left, LOOK_AGAIN))


class AsyncRequestHandles(Handles[AsyncRequestHandle]):
    """The answers to an order about many tasks."""

    async def wait(self, timeout: float | None = None) -> dict[str, Outcome]:
        """Wait for all that are `awaited`, *timeout* seconds in all; the outcomes by task id."""
        deadline = None if timeout is None else time.monotonic() + checked_seconds("timeout", timeout)
        outcomes = {}
        for handle in self.awaited:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            outcomes[handle.task_id] = await handle.wait(left)
        return outcomes


async def revoke(
    task_id: Task,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    store_down: Literal["raise", "broadcast"] = "raise",
    app: Celery | None = None,
) -> AsyncRequestHandle:
    """Ask a task to stop; see `celery_canceltoken.revoke`."""
    app, task = resolve(task_id, app)
    order = order_of("revoke", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist)
    checked_store_down(store_down)
    return await _one(app, revoke_steps(_calls(app), order, store_down))


async def delete(
    task_id: Task,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> AsyncRequestHandle:
    """Ask a task to stop and be forgotten; see `celery_canceltoken.delete`."""
    app, task = resolve(task_id, app)
    order = order_of("delete", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist)
    return await _one(app, delete_steps(_calls(app), order))


async def requeue(
    task_id: Task,
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> AsyncRequestHandle:
    """Ask for a task to run again from its queue; see `celery_canceltoken.requeue`."""
    app, task = resolve(task_id, app)
    order = order_of(
        "requeue", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist
    )
    return await _one(app, requeue_steps(_calls(app), order))


async def reschedule(
    task_id: Task,
    *,
    eta: datetime | None = None,
    countdown: float | None = None,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> AsyncRequestHandle:
    """Ask for a task to run at a time; see `celery_canceltoken.reschedule`."""
    app, task = resolve(task_id, app)
    order = order_of(
        "requeue", task, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist
    )
    return await _one(app, reschedule_steps(_calls(app), order, eta=eta, countdown=countdown))


async def withdraw(
    task_id: Task | Handle, *, from_state: FromState = None, app: Celery | None = None
) -> AsyncRequestHandle:
    """Take back what was asked of a task; see `celery_canceltoken.withdraw`."""
    handle = task_id if isinstance(task_id, Handle) else None
    if handle is not None:
        app, task_id = app or handle.app, handle.task_id
    app, task = resolve(task_id, app)
    request_id = handle.request_id if handle is not None else None
    order = withdraw_order(checked_id(task), request_id, checked_states(from_state))
    return await _one(app, withdraw_steps(_calls(app), order))


async def revoke_many(
    task_ids: Iterable[Task],
    *,
    reason: str | None = None,
    actor: str | None = None,
    from_state: FromState = None,
    must_exist: bool = False,
    app: Celery | None = None,
) -> AsyncRequestHandles:
    """Ask many tasks to stop; see `celery_canceltoken.revoke_many`."""
    app, ids = resolve_many(task_ids, app)
    steps = revoke_many_steps(
        _calls(app), ids, reason=reason, actor=actor, from_state=from_state, must_exist=must_exist
    )
    return await _several(app, steps)


async def revoke_group(
    group: GroupResult,
    *,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> AsyncRequestHandles:
    """Ask all members of a group to stop; see `celery_canceltoken.revoke_group`."""
    app, _ = resolve(group, app)
    ids = ids_of(group, with_parents=False)
    return await _several(app, revoke_many_steps(_calls(app), ids, reason=reason, actor=actor))


async def revoke_workflow(
    workflow: Task | GroupResult,
    *,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> AsyncRequestHandles:
    """Ask all of a workflow to stop; see `celery_canceltoken.revoke_workflow`."""
    app, _ = resolve(workflow, app)
    ids = [workflow] if isinstance(workflow, str) else ids_of(workflow, with_parents=True)
    answers = await _perform(app, revoke_workflow_steps(_calls(app), ids, reason=reason, actor=actor))
    handles = [AsyncRequestHandle(app, one) for one in answers]
    return AsyncRequestHandles(handles, awaits_unclaimed=False)


@overload
async def revoke_where(
    *,
    name: str | None = None,
    queue: str | None = None,
    stamps: Mapping[str, Any] | None = None,
    where: Callable[[StoredTask], bool] | None = None,
    until: datetime | timedelta | None = None,
    dry_run: Literal[False] = False,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> AsyncRequestHandles: ...


@overload
async def revoke_where(
    *,
    name: str | None = None,
    queue: str | None = None,
    stamps: Mapping[str, Any] | None = None,
    where: Callable[[StoredTask], bool] | None = None,
    until: datetime | timedelta | None = None,
    dry_run: Literal[True],
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> list[TaskRecord]: ...


async def revoke_where(
    *,
    name: str | None = None,
    queue: str | None = None,
    stamps: Mapping[str, Any] | None = None,
    where: Callable[[StoredTask], bool] | None = None,
    until: datetime | timedelta | None = None,
    dry_run: bool = False,
    reason: str | None = None,
    actor: str | None = None,
    app: Celery | None = None,
) -> AsyncRequestHandles | list[TaskRecord]:
    """Ask all tasks to stop that fit; see `celery_canceltoken.revoke_where`."""
    app, _ = resolve("", app)
    calls, decode = _calls(app), decoder_of(app)
    criteria = criteria_of(name=name, queue=queue, stamps=stamps, where=where, until=until)
    if checked_flag("dry_run", dry_run):
        return await _perform(app, select_steps(calls, criteria, decode))
    return await _several(app, revoke_where_steps(calls, criteria, decode, reason=reason, actor=actor))


async def drain(worker: str, *, timeout: float = 1.0, app: Celery | None = None) -> bool:
    """Empty one worker without stopping it; see `celery_canceltoken.drain`."""
    app, _ = resolve("", app)
    name, seconds = checked_id(worker, "worker"), checked_seconds("timeout", timeout)
    return await asyncio.to_thread(ask_worker, app, name, drain=True, timeout=seconds)


async def undrain(worker: str, *, timeout: float = 1.0, app: Celery | None = None) -> bool:
    """Have a drained worker take tasks again; see `celery_canceltoken.undrain`."""
    app, _ = resolve("", app)
    name, seconds = checked_id(worker, "worker"), checked_seconds("timeout", timeout)
    return await asyncio.to_thread(ask_worker, app, name, drain=False, timeout=seconds)


async def get_record(task_id: Task, *, app: Celery | None = None) -> TaskRecord | None:
    """Return what is recorded of a task; see `celery_canceltoken.get_record`."""
    app, task = resolve(task_id, app)
    return await _perform(app, read_steps(_calls(app), checked_id(task)))


async def list_records(
    *,
    state: FromState = None,
    name: str | None = None,
    worker: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
    app: Celery | None = None,
) -> RecordPage:
    """Return records that fit every criterion given; see `celery_canceltoken.list_records`."""
    app, _ = resolve("", app)
    steps = list_steps(_calls(app), state=state, name=name, worker=worker, limit=limit, cursor=cursor)
    return await _perform(app, steps)


async def close(*, app: Celery | None = None) -> None:
    """Close this event loop's connections: for the end of an app's life. Later calls open new ones."""
    app, _ = resolve("", app)
    stores = _loops.get(asyncio.get_running_loop())
    store = stores.by_app.pop(app, None) if stores is not None else None
    if store is not None:
        await store.close()


def _calls(app: Celery) -> Calls:
    return Calls(settings_of(app))


def _store_of(app: Celery) -> AsyncStore:
    loop = asyncio.get_running_loop()
    stores = _loops.get(loop)
    if stores is None:
        with _loops_lock:
            # Those that were closed by hand, and told nobody.
            for closed in [one for one in _loops if one.is_closed()]:
                _loops.pop(closed, None)
            stores = _loops[loop] = _LoopStores()
    store = stores.by_app.get(app)
    if store is None:
        store = stores.by_app[app] = async_store(app)
    return store


async def _perform(app: Celery, steps: Steps[T]) -> T:
    store, actions = _store_of(app), Actions(app)
    answer: Any = None
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Ask):
                    answer = await store.ask_many(step.calls)
                else:
                    answer = await asyncio.to_thread(act, step, actions)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def _one(app: Celery, steps: Steps[Answered]) -> AsyncRequestHandle:
    return AsyncRequestHandle(app, await _perform(app, steps))


async def _several(app: Celery, steps: Steps[list[Answered]]) -> AsyncRequestHandles:
    return AsyncRequestHandles(AsyncRequestHandle(app, one) for one in await _perform(app, steps))
