"""Tasks that can be told to stop, each ending in a way of its own.

Every body keeps a journal of what happened to it, in the result backend's Redis: what tests compare answers
with. A *gate* holds a body without its looking at the token, until the test opens it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, current_task, signals
from celery.exceptions import Ignore, Reject

from celery_canceltoken import CancellableTask, CancellationToken, TaskCancelled, current_token
from tests.support.apps import main

__all__ = ["CANCELLABLE_APP", "app", "make_app"]

CANCELLABLE_APP = __name__
GATE_TIMEOUT = 30


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app with the tasks below. What is not given comes from the environment."""
    app = main.make_app(broker_url=broker_url, result_backend=result_backend, configuration=configuration)
    for function in (
        wait,
        wait_without_deadline,
        poll,
        look_and_return,
        return_unlooked,
        look_and_raise,
        raise_unlooked,
        disregard,
        stray,
        ignore,
        reject,
        without_token,
        through_current_token,
        with_callback,
        big_return,
        unserializable,
        whoami,
        old_errback,
        burn,
    ):
        app.task(shared=False, name=function.__name__, base=CancellableTask)(function)
    for function in (
        retry_until,
        retry_in,
        replace_until,
        reject_back_once,
        retry_when_told,
        replace_by_chain,
    ):
        app.task(shared=False, name=function.__name__, base=CancellableTask, bind=True, max_retries=None)(
            function
        )
    app.task(shared=False, name="late_wait", base=CancellableTask, acks_late=True)(wait)
    app.task(
        shared=False, name="late_wait_back", base=CancellableTask, acks_late=True, reject_on_worker_lost=True
    )(wait)
    app.task(shared=False, name="late_gate", base=CancellableTask, acks_late=True)(return_unlooked)
    app.task(
        shared=False,
        name="autoretry",
        base=CancellableTask,
        autoretry_for=(Exception,),
        max_retries=5,
        default_retry_delay=0,
    )(look_and_raise)
    app.task(shared=False, name="limited", base=CancellableTask, time_limit=1)(return_unlooked)
    app.task(shared=False, name="note_error")(note_error)
    app.task(shared=False, name="note_value")(note_value)
    return app


def note(event: str, task_id: str | None = None) -> None:
    """Append to the journal of the task that runs, with the time of this machine's clock."""
    task_id = task_id or current_task.request.id
    _redis().rpush(f"journal:{task_id}", f"{event} {time.monotonic_ns()} {os.getpid()}")


def pass_gate(gate: str) -> None:
    """Wait until the test opens the gate; see `open_gate` in the tests."""
    if _redis().blpop([f"gate:{gate}"], timeout=GATE_TIMEOUT) is None:
        raise TimeoutError(f"nobody opened the gate {gate}")


def _redis() -> Any:
    return current_task.app.backend.client


def wait(seconds: float, token: CancellationToken) -> str:
    note("started")
    if token.wait(seconds):
        note("observed")
    token.raise_if_cancelled()
    note("completed")
    return "completed"


def wait_without_deadline(*, token: CancellationToken) -> None:
    note("started")
    token.wait()
    token.raise_if_cancelled()


def poll(token: CancellationToken, pause: float = 0.001) -> int:
    note("started")
    turns = 0
    while not token.cancel_requested:
        turns += 1
        time.sleep(pause)
    note("observed")
    raise TaskCancelled(token.cause, token.reason)


def look_and_return(value: Any, token: CancellationToken) -> Any:
    note("started")
    token.wait(GATE_TIMEOUT)
    return value


def return_unlooked(gate: str, value: Any = "unlooked", *, token: CancellationToken) -> Any:
    note("started")
    pass_gate(gate)
    note("completed")
    return value


def look_and_raise(token: CancellationToken) -> None:
    note("started")
    token.wait(GATE_TIMEOUT)
    raise RuntimeError("could not clean up")


def raise_unlooked(gate: str, token: CancellationToken) -> None:
    note("started")
    pass_gate(gate)
    raise RuntimeError("broken")


def disregard(value: Any, token: CancellationToken) -> Any:
    note("started")
    token.wait(GATE_TIMEOUT)
    token.disregard()
    return value


def stray() -> None:
    note("started")
    raise TaskCancelled


def ignore(token: CancellationToken) -> None:
    note("started")
    raise Ignore("mine to tell")


def reject(token: CancellationToken) -> None:
    note("started")
    raise Reject("not mine", requeue=False)


def without_token(gate: str) -> str:
    note("started")
    pass_gate(gate)
    return "done"


def through_current_token() -> None:
    note("started")
    _deep_down()


def _deep_down() -> None:
    current_token().wait(GATE_TIMEOUT)
    current_token().raise_if_cancelled()


def with_callback(token: CancellationToken) -> str:
    note("started")
    ran, where = threading.Event(), []

    def callback() -> None:
        where.append(threading.current_thread().name)
        ran.set()

    with token.on_cancel(callback), token.on_cancel(lambda: 1 / 0):
        ran.wait(GATE_TIMEOUT)
    body = threading.current_thread().name
    note(f"callback-in-{'body' if where == [body] else where[0] if where else 'nothing'}")
    return "returned"


def big_return(length: int) -> str:
    return "x" * length


def unserializable(token: CancellationToken) -> Any:
    note("started")
    return object()


def whoami(token: CancellationToken | None = None) -> list[Any]:
    return [os.getpid(), token is not None and token.can_be_cancelled]


def old_errback(task_id: str, token: CancellationToken = CancellationToken.none) -> None:
    note("old-errback", task_id)


def burn(seconds: float, token: CancellationToken) -> str:
    """Computes without ever yielding, to greenlets for instance."""
    note("started")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if token.cancel_requested:
            token.raise_if_cancelled()
    return "burnt"


def retry_until(self: Any, times: int, token: CancellationToken) -> int:
    note("started")
    if self.request.retries < times:
        raise self.retry(countdown=0)
    return int(self.request.retries)


def retry_in(self: Any, seconds: float, token: CancellationToken) -> int:
    note("started")
    if not self.request.retries:
        raise self.retry(countdown=seconds)
    return int(self.request.retries)


def replace_until(self: Any, times: int, token: CancellationToken) -> str:
    note("started")
    if times:
        raise self.replace(self.app.tasks["replace_until"].s(times - 1))
    return "replaced"


def replace_by_chain(self: Any, token: CancellationToken) -> str:
    note("started")
    raise self.replace(
        self.app.tasks["add"].s(1, 2) | self.app.tasks["whoami"].si() | self.app.tasks["look_and_return"].s()
    )


def reject_back_once(self: Any, token: CancellationToken) -> str:
    note("started")
    if not self.request.delivery_info.get("redelivered"):
        raise Reject("again", requeue=True)
    return "second time"


def retry_when_told(self: Any, token: CancellationToken) -> None:
    note("started")
    token.wait(GATE_TIMEOUT)
    raise self.retry(countdown=0)


def note_error(request: Any, error: BaseException, traceback: Any) -> None:
    note(f"errback:{type(error).__name__}:{error}", request.id)


def note_value(value: Any, task_id: str = "") -> Any:
    note(f"value:{value}", task_id or None)
    return value


@signals.task_revoked.connect
def _note_revoked(sender: Any, request: Any, terminated: bool, **_: Any) -> None:
    client = sender.app.backend.client
    client.rpush(f"journal:{request.id}", f"signal-task_revoked {time.monotonic_ns()} {os.getpid()}")


app = make_app()
