"""The app of a deployment: a task that looks at its token and saves checkpoints, and one that never looks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_canceltoken import CancellableTask, CancellationToken, current_execution
from tests.support.apps.main import make_app as make_plain_app

__all__ = ["DEPLOYED_APP", "app", "make_app"]

DEPLOYED_APP = __name__
ROW = 0.05
"""Seconds that one row takes."""


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app; see the plain one for the arguments."""
    app = make_plain_app(broker_url=broker_url, result_backend=result_backend, configuration=configuration)
    for late, ending in ((False, ""), (True, "_late")):
        options = {"base": CancellableTask, "bind": True, "acks_late": late}
        app.task(name=f"count_rows{ending}", **options)(count_rows)
        app.task(name=f"never_look{ending}", **options)(never_look)
    return app


def count_rows(self: Any, rows: int, token: CancellationToken) -> list[list[int]]:
    """Count, and return for each run where it began and ended; a run goes on where the last one stopped."""
    execution = current_execution()
    runs: list[list[int]] = execution.resume_data or []
    begin = runs[-1][1] if runs else 0
    runs.append([begin, begin])
    _note(self, "began", begin)
    for row in range(begin, rows):
        if token.cancel_requested:
            execution.checkpoint(runs)
            token.raise_if_cancelled()
        time.sleep(ROW)
        runs[-1][1] = row + 1
    return runs


def never_look(self: Any, seconds: float) -> str:
    """Sleep, if it is the first run. Whoever runs it again is to be done at once."""
    first = current_execution().attempt == 1
    _note(self, "began", current_execution().attempt)
    if first:
        time.sleep(seconds)
    _note(self, "ended", current_execution().attempt)
    return "first" if first else "again"


def _note(task: Any, what: str, value: int) -> None:
    line = json.dumps([what, value, os.getpid()])
    task.backend.client.rpush(f"deployed:{task.request.id}", line)


app = make_app()
