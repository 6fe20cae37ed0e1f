"""Tasks that survive the restarts of their workers, and that write down each of their runs.

A body takes a number of short steps, and looks at its token between them in one of several ways. Its diary,
in the result backend's Redis, has a line for each run; a counter tells how many runs of an id there are at
once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, current_task

from celery_canceltoken import CancellableTask, CancellationToken, current_execution
from tests.support.apps import main

__all__ = ["ROLLING_APP", "TASKS", "app", "make_app"]

ROLLING_APP = __name__
TASKS = {
    "early": {},
    "late": {"acks_late": True},
    "late_back": {"acks_late": True, "reject_on_worker_lost": True},
    "graced": {"shutdown_grace": 0.3},
    "export": {},
    "late_export": {"acks_late": True},
}
"""Task names and options; an export saves a checkpoint after each step."""


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app with the tasks above. What is not given comes from the environment."""
    app = main.make_app(broker_url=broker_url, result_backend=result_backend, configuration=configuration)
    for name, options in TASKS.items():
        body = export if name.endswith("export") else walk
        app.task(shared=False, name=name, base=CancellableTask, **options)(body)
    return app


def walk(steps: int, pause: float, looks: str, token: CancellationToken) -> int:
    """Take all steps in one run; a run that is stopped has done nothing."""
    with Line(0) as line:
        while line.place < steps:
            _step(pause, looks, token)
            line.place += 1
        line.completed = True
    return steps


def export(steps: int, pause: float, looks: str, token: CancellationToken) -> int:
    """Go on from the step that the last run came to."""
    execution = current_execution()
    with Line(execution.resume_data or 0) as line:
        while line.place < steps:
            _step(pause, looks, token)
            execution.checkpoint(line.place + 1)
            line.place += 1
        line.completed = True
    return steps


def _step(pause: float, looks: str, token: CancellationToken) -> None:
    if looks == "sleeps":
        token.sleep(pause)
    elif looks == "waits":
        token.wait(pause)
        token.raise_if_cancelled()
    else:
        time.sleep(pause)
        token.raise_if_cancelled()


class Line:
    """A run's line in the diary of its task: it is begun when the body begins, and written when that ends."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.completed = False
        self._task_id, self._worker = current_task.request.id, current_task.request.hostname
        execution = current_execution()
        self._facts = {"run": execution.execution_id, "attempt": execution.attempt, "from": place}
        self._redis = current_task.app.backend.client

    def __enter__(self) -> Line:
        """The body begins."""
        began = self._redis.pipeline()
        began.incr(f"running:{self._task_id}").sadd(f"bodies:{self._worker}", self._facts["run"])
        began.rpush(f"starts:{self._task_id}", self._facts["run"]).incr("bodies")
        self._facts["at_once"] = began.execute()[0]
        self._facts["start"] = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The body ends, one way or the other."""
        facts = {
            **self._facts,
            "end": time.monotonic(),
            "to": self.place,
            "completed": self.completed,
            "worker": self._worker,
            "raised": None if kind is None else kind.__name__,
        }
        ends = self._redis.pipeline()
        ends.decr(f"running:{self._task_id}").srem(f"bodies:{self._worker}", facts["run"])
        ends.rpush(f"diary:{self._task_id}", json.dumps(facts)).incr("bodies")
        if self.completed:
            ends.sadd("completed", self._task_id)
        ends.execute()


app = make_app()
