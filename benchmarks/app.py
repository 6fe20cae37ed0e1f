"""The app whose workers are measured."""

from __future__ import annotations

import os
import time

from celery import Celery, Task

from benchmarks.stream_reader import STAMPS
from celery_canceltoken import CancellableTask, CancellationToken

__all__ = ["READY", "make_app"]

READY = "bench:ready"
"""The list on which a body says that it is about to wait for its token."""


def make_app(url: str) -> Celery:
    """Return the app, bound to that server."""
    app = Celery("bench", broker=url, backend=url, set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    app.task(base=Task, name="plain")(plain_task)
    app.task(base=CancellableTask, name="cancellable")(cancellable_task)
    app.task(base=CancellableTask, name="wait_for_cancellation", bind=True)(wait_for_cancellation)
    for name, body in (("wait", wait_for_cancellation), ("compute", compute_until_cancelled)):
        # So that nobody is left to run it: what is measured ends there.
        options = {"base": CancellableTask, "bind": True, "shutdown_policy": "fail"}
        app.task(name=f"{name}_until_shutdown", **options)(body)
    return app


def plain_task(seconds: float = 0.0) -> None:
    time.sleep(seconds)


def cancellable_task(token: CancellationToken, seconds: float = 0.0) -> None:
    token.sleep(seconds)


def wait_for_cancellation(self: CancellableTask, token: CancellationToken) -> None:
    """Note the moment at which the wait has ended; the clock is the same in all processes."""
    self.backend.client.rpush(READY, self.request.id)
    token.wait(30)
    now = time.monotonic_ns()
    self.backend.client.rpush(STAMPS, now)


def compute_until_cancelled(self: CancellableTask, token: CancellationToken) -> None:
    """The same for a body that never waits."""
    self.backend.client.rpush(READY, self.request.id)
    number = 0
    while not token.cancel_requested:
        number += 1
    now = time.monotonic_ns()
    self.backend.client.rpush(STAMPS, now)


app = make_app(os.environ.get("CANCELTOKEN_BENCH_URL", "redis://localhost:6379/0"))
