"""Tasks for workers that stop: each tells whether it was told, and ends at once when it runs again.

A body that runs while another of the same id still does says so in its journal: `overlap`. A *deaf* body
never looks at its token. What a task is told of is noted as `told:<cause>`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery, current_task
from celery.exceptions import SoftTimeLimitExceeded

from celery_canceltoken import (
    CancellableTask,
    CancellationToken,
    CancelTokenError,
    SupersededError,
    current_execution,
)
from tests.support.apps import cancellable
from tests.support.apps.cancellable import note, pass_gate

__all__ = ["SECOND_RUN", "STOPPABLE_APP", "app", "make_app"]

STOPPABLE_APP = __name__
SECOND_RUN = "second run"
_LONG = 60.0


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app with these tasks, and those of `cancellable`."""
    app = cancellable.make_app(
        broker_url=broker_url, result_backend=result_backend, configuration=configuration
    )
    for name, function, options in (
        ("work", work, {}),
        ("late_work", work, {"acks_late": True}),
        ("late_work_back", work, {"acks_late": True, "reject_on_worker_lost": True}),
        ("late_work_strict", work, {"acks_late": True}),
        ("unkept_work", work, {"keep_message": "never"}),
        ("late_unkept_work", work, {"keep_message": "never", "acks_late": True}),
        ("failing_work", work, {"shutdown_policy": "fail"}),
        ("requeued_work", work, {"shutdown_policy": "requeue"}),
        ("ignoring_work", work, {"shutdown_policy": "ignore"}),
        ("graceful_work", work, {"shutdown_grace": 1.0}),
        ("patient_work", work, {"shutdown_grace": _LONG}),
        ("hurried_work", work, {"shutdown_grace": 0.0}),
        ("always_work", always_work, {}),
        ("tidy_work", tidy_work, {}),
        ("quick", quick, {}),
        ("late_quick", quick, {"acks_late": True}),
        ("deaf", deaf, {}),
        ("late_deaf", deaf, {"acks_late": True}),
        ("late_deaf_back", deaf, {"acks_late": True, "reject_on_worker_lost": True}),
        ("unkept_deaf", deaf, {"keep_message": "never"}),
        ("end_as", end_as, {}),
        ("count", count, {}),
        ("saver", saver, {}),
        ("save_badly", save_badly, {}),
        ("save_and_wait", save_and_wait, {}),
        ("look_around", look_around, {}),
        ("save_and_retry", save_and_retry, {"max_retries": 3}),
        ("soft_limited", soft_limited, {"soft_time_limit": 1}),
    ):
        app.task(shared=False, name=name, base=CancellableTask, **options)(function)
    app.task(shared=False, name="total")(total)
    return app


@contextmanager
def _noted() -> Iterator[int]:
    """Note the run, and how many of this id there have been; and whether another one is under way."""
    redis, task_id = current_task.app.backend.client, current_task.request.id
    if redis.incr(f"running:{task_id}") > 1:
        note("overlap")
    run = redis.incr(f"runs:{task_id}")
    note("started")
    try:
        yield run
    finally:
        redis.decr(f"running:{task_id}")


def work(value: Any = "done", seconds: float = _LONG, *, token: CancellationToken) -> Any:
    """Wait to be told in the first run."""
    with _noted() as run:
        if run > 1:
            note("completed")
            return [SECOND_RUN, value]
        if token.wait(seconds):
            note(f"told:{token.cause}")
        token.raise_if_cancelled()
        note("completed")
        return value


def always_work(token: CancellationToken) -> None:
    """Wait to be told in every run."""
    with _noted():
        token.wait(_LONG)
        note(f"told:{token.cause}")
        token.raise_if_cancelled()


def tidy_work(seconds: float, token: CancellationToken) -> str:
    """Take so long to wind down once told; in its second run end at once."""
    with _noted() as run:
        if run == 1:
            token.wait(_LONG)
            note(f"told:{token.cause}")
            time.sleep(seconds)
            note("tidied")
            token.raise_if_cancelled()
        note("completed")
        return SECOND_RUN


def quick(value: Any = "done") -> Any:
    """End at once."""
    with _noted():
        note("completed")
        return value


def deaf(seconds: float, token: CancellationToken) -> str:
    """Look at nothing for so long; in its second run end at once."""
    with _noted() as run:
        if run > 1:
            note("completed")
            return SECOND_RUN
        time.sleep(seconds)
        note("completed")
        return "first run"


def end_as(how: str, gate: str = "", *, token: CancellationToken) -> str:
    """End in one of many ways, once told; in the second run at once."""
    with _noted() as run:
        if run > 1:
            note("completed")
            return SECOND_RUN
        if gate:
            pass_gate(gate)
        else:
            token.wait(_LONG)
            note(f"told:{token.cause}")
        if how == "disregard":
            token.disregard()
        if how == "raise":
            raise RuntimeError("of its own")
        if how == "retry":
            raise current_task.retry(countdown=0)
        note("completed")
        return how


def count(until: int, gate_at: int, token: CancellationToken) -> dict[str, Any]:
    """Count from the checkpoint on; from *gate_at* on only once told or run again."""
    execution = current_execution()
    with _noted():
        begun = place = execution.resume_data["place"] if execution.is_resumed else 0
        while place < until:
            token.raise_if_cancelled()
            place += 1
            execution.checkpoint({"place": place})
            if place == gate_at:
                note("at-gate")
                token.sleep(_LONG)
        note("completed")
        return {"begun": begun, "place": place, "attempt": execution.attempt}


def saver(gate: str, data: Any, token: CancellationToken) -> str:
    """Save something once the gate opens, whatever became of the id meanwhile."""
    execution = current_execution()
    if execution.attempt > 1:
        note(f"resumed:{execution.resume_data}")
        return SECOND_RUN
    note("started")
    pass_gate(gate)
    try:
        execution.checkpoint(data)
    except SupersededError:
        note("superseded")
        raise
    note("saved")
    pass_gate(gate)
    return "saved"


def save_and_wait(until: int, token: CancellationToken) -> int:
    """In each run save one step more than the last, and wait to be told; after so many be done."""
    execution = current_execution()
    with _noted():
        done = int(execution.resume_data or 0)
        if done < until:
            execution.checkpoint(done + 1)
            token.sleep(_LONG)
        return done


def save_badly(how: str) -> str:
    """Save what cannot be saved, and tell which exception that is."""
    unsavable = {"none": None, "not-json": object(), "too-large": "x" * 65_535, "fine": 1}
    try:
        current_execution().checkpoint(unsavable[how])
    except CancelTokenError as error:
        return type(error).__name__
    return "saved"


def look_around() -> dict[str, Any]:
    """Tell what the execution knows of itself."""
    execution = current_execution()
    return {
        "task_id": execution.task_id,
        "execution_id": execution.execution_id,
        "attempt": execution.attempt,
        "is_resumed": execution.is_resumed,
        "resume_data": execution.resume_data,
    }


def save_and_retry(times: int) -> Any:
    """Save in each run, and ask for a retry so many times."""
    execution = current_execution()
    found = execution.resume_data
    note(f"found:{found}")
    if current_task.request.retries < times:
        execution.checkpoint([*(found or []), execution.attempt])
        raise current_task.retry(countdown=0)
    return found


def soft_limited(token: CancellationToken) -> str:
    """Run into its soft time limit."""
    try:
        with _noted():
            time.sleep(_LONG)
    except SoftTimeLimitExceeded:
        return "soft limit"
    return "slept"


def total(values: list[Any]) -> list[Any]:
    """The body of a chord."""
    return values


app = make_app()
