"""However a task is declared: declare, call, revoke, REVOKED."""

from __future__ import annotations

from typing import Any

import celery
import pytest

from celery_canceltoken import State, revoke
from tests.e2e.conftest import Job
from tests.support.apps.declarations import DECLARATIONS_APP, NAMES
from tests.support.reporting import show_log_on_failure
from tests.support.workers import CeleryWorker, SharedWorkers


@pytest.fixture(params=["prefork", "threads"])
def worker(request: pytest.FixtureRequest, shared_workers: SharedWorkers) -> CeleryWorker:
    """A worker that has all the declarations."""
    worker = shared_workers(request.param, DECLARATIONS_APP)
    seen = len(worker.logs())
    show_log_on_failure(request.node, "the worker", lambda: worker.logs()[seen:])
    return worker


@pytest.mark.parametrize("name", NAMES)
def test_it_is_revoked(worker: CeleryWorker, name: str) -> None:
    """A task declared like this gets its token, and stops when it is revoked."""
    if name == "pydantic" and celery.__version__.startswith("5.5."):
        pytest.skip("Celery 5.5 does not follow postponed annotations to a model")
    argument: Any = {"rows": 3} if name == "pydantic" else 3
    task = worker.client.tasks[name]
    job = Job(task.delay(argument)).wait_until_started()
    assert revoke(job.result, reason="enough").wait(10).state is State.REVOKED
    assert job.starts() == 1
    record = job.record()
    assert record is not None
    assert record.takes_token is (name != "replaced_at_run_time")


def test_context_is_left(worker: CeleryWorker) -> None:
    """The user's `__call__` goes on after the body has stopped."""
    job = Job(worker.client.tasks["context"].delay(3)).wait_until_started()
    revoke(job.result).wait(10)
    assert "context-left" in job.journal()


def test_users_request_is_asked_as_well(worker: CeleryWorker) -> None:
    """A request class of the user's is combined with ours: both see the end, and the signal still fires."""
    job = Job(worker.client.tasks["own_request"].delay(3)).wait_until_started()
    revoke(job.result).wait(10)
    job.wait_until_noted("own-request")
    job.wait_until_noted("signal-task_revoked")


def test_models_are_sent_around_the_token(worker: CeleryWorker) -> None:
    """With `pydantic=True` a model may be passed as it is, the token's place notwithstanding."""
    from tests.support.apps.declarations import Order

    if not hasattr(celery.Task, "_dump_pydantic_arguments"):
        pytest.skip("Celery sends models since 5.7 only")
    job = Job(worker.client.tasks["pydantic"].delay(Order(rows=3))).wait_until_started()
    assert revoke(job.result).wait(10).state is State.REVOKED


def test_django_projects_have_a_class_of_their_own() -> None:
    """The combined class offers Celery's `delay_on_commit`, and tokens."""
    pytest.importorskip("django")
    from celery import Celery

    from celery_canceltoken import CancellableTask, CancellationToken
    from celery_canceltoken.django import CancellableDjangoTask

    app = Celery("shop", task_cls="celery_canceltoken.django:CancellableDjangoTask", set_as_current=False)

    @app.task
    def body(token: CancellationToken) -> bool:
        return token.can_be_cancelled

    assert isinstance(body, (CancellableDjangoTask, CancellableTask))
    assert hasattr(body, "delay_on_commit")
    assert body.apply().get() is True
