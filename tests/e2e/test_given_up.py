"""What a cold shutdown kills and does not send back has failed, and who waits for its result hears of it."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from celery_canceltoken import State
from tests.e2e.conftest import send
from tests.support.apps.deployed import DEPLOYED_APP
from tests.support.waiting import wait_until
from tests.support.workers import WorkerFactory


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"canceltoken_shutdown_policy": "fail"}, "ShutdownError"),
        ({"canceltoken_shutdown_policy": "ignore"}, "WorkerLostError"),
        ({"canceltoken_keep_message": "never"}, "WorkerLostError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_the_result_of_who_was_killed_and_not_sent_back(
    worker_factory: WorkerFactory, pool: str, setting: dict[str, Any], error: str
) -> None:
    """Record and result agree, even if the worker was gone before the latter was written."""
    configuration = {"canceltoken_terminate_grace": 0.5, "canceltoken_check_interval": 0.5, **setting}
    worker = worker_factory(DEPLOYED_APP, pool=pool, concurrency=2, configuration=configuration)
    job = send(worker, "never_look", 60.0)
    wait_until(lambda: job.app.backend.client.llen(f"deployed:{job.id}"), description="the body has begun")
    worker.kill(signal.SIGQUIT)
    worker.wait(20)

    worker_factory(DEPLOYED_APP, pool=pool, concurrency=2, configuration=configuration)
    assert type(job.wait_until_stored("FAILURE")).__name__ == error
    assert job.wait_until_final().state is State.FAILED
    assert job.app.backend.client.llen(f"deployed:{job.id}") == 1
