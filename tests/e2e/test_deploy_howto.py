"""The numbers of `docs/how-to/deploy.md` do what it says: each test stops a worker as that supervisor does.

The seconds that tasks are given are a tenth of what the page has, so that the suite does not take minutes.
What is left to the worker for its own end is not less than on the page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from celery_canceltoken import State
from celery_canceltoken.settings import Settings
from tests.e2e.conftest import Job, send
from tests.support.apps.deployed import DEPLOYED_APP
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, CeleryWorker, WorkerFactory

PAGE = (ROOT / "docs/how-to/deploy.md").read_text(encoding="utf-8")
SCALE = 10
ROWS = 60
LONGER_THAN_ALL = 60.0


def number(pattern: str) -> float:
    """The one number that the page gives there."""
    (found,) = set(re.findall(pattern, PAGE))
    return float(found)


SOFT = number(r"worker_soft_shutdown_timeout=(\d+)\)")
GRACE = Settings().terminate_grace
RESERVE = 10.0
"""What the page says a supervisor should wait beyond these."""


def patience(pattern: str) -> float:
    """How long that supervisor waits here."""
    left = number(pattern) - SOFT - GRACE
    assert left >= RESERVE
    return (SOFT + GRACE) / SCALE + left


@dataclass
class Supervisor:
    """What stops a worker: its environment, whom it sends SIGTERM, and its patience."""

    patience: float
    environment: dict[str, str]
    terminate: Callable[[CeleryWorker], None]

    def stop(self, worker: CeleryWorker) -> float | None:
        """Stop it; return the seconds that took, or None if patience ended and all was killed."""
        began = time.monotonic()
        self.terminate(worker)
        try:
            worker.wait(self.patience)
        except subprocess.TimeoutExpired:
            worker.crash()
            return None
        # The group is gone with it, as a cgroup would be.
        worker.crash()
        return time.monotonic() - began


def main_process_alone(worker: CeleryWorker) -> None:
    worker.kill(signal.SIGTERM)


def whole_group(worker: CeleryWorker) -> None:
    os.killpg(worker.pid, signal.SIGTERM)


REMAPPED = {"REMAP_SIGTERM": "SIGQUIT"}
KUBERNETES = patience(r"terminationGracePeriodSeconds: (\d+)\n")
SYSTEMD = patience(r"TimeoutStopSec=(\d+)\n")
DOCKER = patience(r"stop_grace_period: (\d+)s\n")
SUPERVISORS = {
    "kubernetes": Supervisor(KUBERNETES, REMAPPED, main_process_alone),
    "systemd": Supervisor(SYSTEMD, REMAPPED, main_process_alone),
    "control-group": Supervisor(SYSTEMD, REMAPPED, whole_group),
    "control-group-warm": Supervisor(SYSTEMD, {}, whole_group),
    "docker": Supervisor(DOCKER, REMAPPED, main_process_alone),
}


def test_the_page_says_what_is_tested() -> None:
    """All three examples remap the signal; systemd's is told to signal the main process alone."""
    blocks = re.findall(r"```\{code-block\} (?:yaml|ini)\n.*?```", PAGE, re.S)
    assert len(blocks) == 3
    for block in blocks:
        assert re.search(r"REMAP_SIGTERM[=:\s]+(?:value: )?SIGQUIT", block)
    assert "KillMode=mixed\n" in PAGE


@pytest.fixture
def make(worker_factory: WorkerFactory) -> Callable[..., CeleryWorker]:
    """Workers of the deployed app, with the page's timeout."""

    def start(pool: str, **options: Any) -> CeleryWorker:
        configuration = {
            "worker_soft_shutdown_timeout": SOFT / SCALE,
            "canceltoken_terminate_grace": GRACE / SCALE,
            **options.pop("configuration", {}),
        }
        return worker_factory(DEPLOYED_APP, pool=pool, concurrency=2, configuration=configuration, **options)

    return start


def notes(job: Job) -> int:
    return int(job.app.backend.client.llen(f"deployed:{job.id}"))


def wait_until_begun(job: Job, times: int = 1) -> None:
    wait_until(lambda: notes(job) >= times, timeout=20, description="the body has begun")


@pytest.mark.parametrize(
    ("name", "pool"), [*((name, "prefork") for name in SUPERVISORS), ("docker", "threads")]
)
def test_who_looks_goes_on_elsewhere_from_its_checkpoint(
    make: Callable[..., CeleryWorker], name: str, pool: str
) -> None:
    """The worker ends by itself, and the next one does the rest and nothing twice."""
    supervisor = SUPERVISORS[name]
    first = make(pool, environment=supervisor.environment)
    job = send(first, "count_rows", ROWS)
    wait_until_begun(job)

    took = supervisor.stop(first)
    assert took is not None
    assert "has not stopped in time" not in first.logs()
    record = job.record()
    assert record is not None
    assert (record.state, record.cause) == (State.ENQUEUED, "SHUTDOWN")

    make(pool, queue=first.queue)
    before, after = job.result.get(timeout=20)
    assert before[0] == 0
    assert before[1] == after[0]
    assert after[1] == ROWS


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *((name, "never_look") for name, supervisor in SUPERVISORS.items() if supervisor.environment),
        ("kubernetes", "never_look_late"),
    ],
)
def test_who_never_looks_is_given_up_in_time(make: Callable[..., CeleryWorker], name: str, task: str) -> None:
    """It is killed after the soft timeout, and is back in its queue before the supervisor's patience ends."""
    supervisor = SUPERVISORS[name]
    first = make("prefork", environment=supervisor.environment)
    job = send(first, task, LONGER_THAN_ALL)
    wait_until_begun(job)

    took = supervisor.stop(first)
    assert took is not None
    assert took >= SOFT / SCALE
    assert "has not stopped in time" in first.logs()
    assert "Unrecoverable error" not in first.logs()
    record = job.record()
    assert record is not None
    assert (record.state, record.cause) == (State.ENQUEUED, "SHUTDOWN")

    make("prefork", queue=first.queue)
    assert job.result.get(timeout=20) == "again"
    assert notes(job) == 3


def test_who_never_looks_is_lost_with_a_warm_worker(make: Callable[..., CeleryWorker]) -> None:
    """Without the remapped signal the worker waits until it is killed, and the task fails."""
    configuration = {
        "canceltoken_lease_duration": 2.0,
        "canceltoken_heartbeat_interval": 0.5,
        "canceltoken_check_interval": 0.5,
    }
    supervisor = Supervisor(2.0, {}, main_process_alone)
    first = make("prefork", configuration=configuration)
    job = send(first, "never_look", LONGER_THAN_ALL)
    wait_until_begun(job)

    assert supervisor.stop(first) is None

    make("prefork", queue=first.queue, configuration=configuration)
    record = job.wait_until_final()
    assert (record.state, record.error) == (State.FAILED, "the worker was lost while it ran the task")
    assert job.stored()[0] == "FAILURE"
