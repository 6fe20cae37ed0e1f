"""The same body, declared in every way there is."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Optional

from celery import Celery, shared_task
from celery.worker.request import Request
from django.conf import settings
from pydantic import BaseModel

from celery_canceltoken import CancellableTask, CancellationToken
from celery_canceltoken.django import CancellableDjangoTask
from tests.support.apps import main
from tests.support.apps.cancellable import GATE_TIMEOUT, note

if TYPE_CHECKING:
    import typing as only_for_checkers

if not settings.configured:
    # Until then Django's settings raise at whatever looks at them, as pytest-celery does at all objects.
    settings.configure()

__all__ = ["DECLARATIONS_APP", "NAMES", "app", "make_app"]

DECLARATIONS_APP = __name__


MaybeToken = Optional[CancellationToken]  # noqa: UP045 - the older spelling is what is tested


def _body(rows: int, token: CancellationToken) -> None:
    assert rows == 3, rows
    note("started")
    token.wait(GATE_TIMEOUT)
    token.raise_if_cancelled()


def plain(rows: int, token: CancellationToken) -> None:
    _body(rows, token)


def first(token: CancellationToken, rows: int) -> None:
    _body(rows, token)


def keyword_only(rows: int, *, token: CancellationToken) -> None:
    _body(rows, token)


def with_default(rows: int, token: CancellationToken = CancellationToken.none) -> None:
    _body(rows, token)


def optional(rows: int, token: MaybeToken = None) -> None:
    assert token is not None
    _body(rows, token)


def or_none(rows: int, token: CancellationToken | None = None) -> None:
    assert token is not None
    _body(rows, token)


def annotated(rows: int, token: Annotated[CancellationToken, "from the worker"]) -> None:
    _body(rows, token)


def quoted(rows: int, token: CancellationToken) -> None:  # the future import makes it a string
    _body(rows, token)


def for_checkers_only(rows: int, token: only_for_checkers.Optional[CancellationToken] = None) -> None:  # noqa: UP045
    assert token is not None
    _body(rows, token)


def bound(self: Any, rows: int, token: CancellationToken) -> None:
    assert self.request.id
    _body(rows, token)


@shared_task(base=CancellableTask, name="shared")
def shared(rows: int, token: CancellationToken) -> None:
    _body(rows, token)


class ClassBased(CancellableTask):
    name = "class_based"

    def run(self, rows: int, token: CancellationToken) -> None:
        _body(rows, token)


class Calling(ClassBased):
    """Inherits, and calls its parent's body as any method."""

    name = "super_run"

    def run(self, rows: int, token: CancellationToken) -> None:
        super().run(rows, token)


class Mixin:
    """A class that is not ours, and knows nothing of tokens."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


class Mixed(Mixin, CancellableTask):
    abstract = True


class ContextTask(CancellableTask):
    """As Flask's documentation has it: `run` within a context."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(*args, **kwargs)
        finally:
            note("context-left")


class OwnRequest(Request):
    """A request of the user's."""

    def on_failure(self, *args: Any, **kwargs: Any) -> Any:
        self.app.backend.client.rpush(f"journal:{self.id}", f"own-request {time.monotonic_ns()} 0")
        return super().on_failure(*args, **kwargs)


class Order(BaseModel):
    rows: int


def with_model(order: Order, token: CancellationToken) -> None:
    _body(order.rows, token)


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as it should be."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        note("decorated")
        return function(*args, **kwargs)

    return inner


@traced
def decorated(rows: int, token: CancellationToken) -> None:
    _body(rows, token)


def replaced_at_run_time(rows: int) -> None:
    raise AssertionError("this one is not to run any more")


NAMES = [
    "plain",
    "first",
    "keyword_only",
    "with_default",
    "optional",
    "or_none",
    "annotated",
    "quoted",
    "for_checkers_only",
    "bound",
    "shared",
    "class_based",
    "super_run",
    "mixed",
    "context",
    "own_request",
    "autoretry",
    "decorated",
    "replaced_at_run_time",
    "pydantic",
    "late",
    "django",
]


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app with all of them. What is not given comes from the environment."""
    app = main.make_app(broker_url=broker_url, result_backend=result_backend, configuration=configuration)
    # Set on an app that exists: what follows is cancellable without naming a base.
    app.task_cls = "celery_canceltoken:CancellableTask"
    for function in (
        plain,
        first,
        keyword_only,
        with_default,
        optional,
        or_none,
        annotated,
        quoted,
        for_checkers_only,
        decorated,
        replaced_at_run_time,
    ):
        app.task(shared=False, name=function.__name__, base=CancellableTask)(function)
    app.task(shared=False, name="bound", bind=True)(bound)
    app.register_task(ClassBased())
    app.register_task(Calling())
    app.task(shared=False, name="mixed", base=Mixed)(plain)
    app.task(shared=False, name="context", base=ContextTask)(plain)
    app.task(shared=False, name="own_request", base=CancellableTask, Request=OwnRequest)(plain)
    app.task(shared=False, name="autoretry", autoretry_for=(Exception,), max_retries=3)(plain)
    app.task(shared=False, name="pydantic", pydantic=True)(with_model)
    app.task(shared=False, name="django", base=CancellableDjangoTask)(plain)
    app.finalize()
    app.tasks["replaced_at_run_time"].run = plain
    # Registered after everything else is done.
    app.task(shared=False, name="late", lazy=False)(plain)
    return app


app = make_app()
app.set_default()
