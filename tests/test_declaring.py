"""Ways to declare a cancellable task and to call it without a worker."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import pytest
from celery import Celery

from celery_canceltoken import (
    CancellableTask,
    CancellationSource,
    CancellationToken,
    TaskCancelled,
    current_token,
)
from celery_canceltoken.errors import CancelTokenError


@pytest.fixture
def app() -> Celery:
    """An app that has no server at all."""
    return Celery(
        "declaring", broker="redis://127.0.0.1:1/0", backend="redis://127.0.0.1:1/0", set_as_current=False
    )


def first(token: CancellationToken, rows: int) -> Any:
    return rows, token


def middle(rows: int, token: CancellationToken, columns: int = 2) -> Any:
    return rows, token


def last(rows: int, token: CancellationToken) -> Any:
    return rows, token


def keyword_only(rows: int, *, token: CancellationToken) -> Any:
    return rows, token


def with_default(rows: int, token: CancellationToken = CancellationToken.none) -> Any:
    return rows, token


def optional(rows: int, token: Optional[CancellationToken] = None) -> Any:  # noqa: UP045 - what is tested
    return rows, token


def or_none(rows: int, token: CancellationToken | None = None) -> Any:
    return rows, token


def annotated(rows: int, token: Annotated[CancellationToken, "from the worker"]) -> Any:
    return rows, token


DECLARATIONS = [first, middle, last, keyword_only, with_default, optional, or_none, annotated]


@pytest.mark.parametrize("function", DECLARATIONS, ids=lambda one: one.__name__)
class TestEveryDeclaration:
    """Wherever the parameter stands."""

    def test_direct_call_gets_none(self, app: Celery, function: Any) -> None:
        """Called directly, the task gets `CancellationToken.none`."""
        task = app.task(base=CancellableTask)(function)
        assert task(3) == (3, CancellationToken.none)
        assert task(rows=3) == (3, CancellationToken.none)

    def test_apply_gets_a_live_token(self, app: Celery, function: Any) -> None:
        """`apply()` gives a live token, and needs no store."""
        task = app.task(base=CancellableTask)(function)
        rows, token = task.apply((3,)).get()
        assert rows == 3
        assert token.can_be_cancelled
        assert not token.cancel_requested

    def test_arguments_are_checked_without_it(self, app: Celery, function: Any) -> None:
        """Callers see the signature without the token."""
        task = app.task(base=CancellableTask)(function)
        with pytest.raises(TypeError):
            task.delay()
        with pytest.raises(TypeError):
            task.delay(1, 2, 3, 4)

    def test_placeholder_is_discarded(self, app: Celery, function: Any) -> None:
        """What a caller passes for the token is discarded, wherever it is passed."""
        task = app.task(base=CancellableTask)(function)
        for result in (
            task.apply((3, CancellationToken.none)),
            task.apply((3,), {"token": CancellationToken.none}),
        ):
            assert result.get()[1].can_be_cancelled


def test_task_cls_of_the_app() -> None:
    """An app whose `task_cls` it is makes all its tasks cancellable."""
    app = Celery("whole", task_cls="celery_canceltoken:CancellableTask", set_as_current=False)
    task = app.task(last)
    assert isinstance(task, CancellableTask)
    assert task(1) == (1, CancellationToken.none)


def test_always_eager(app: Celery) -> None:
    """With `task_always_eager` a task runs at once with a live token, and needs no Redis."""
    app.conf.task_always_eager = True
    task = app.task(base=CancellableTask)(or_none)

    @app.task(base=CancellableTask)
    def outer(token: CancellationToken) -> Any:
        return token.can_be_cancelled, current_token() is token

    assert outer.delay(CancellationToken.none).get() == (True, True)
    assert task.delay(1).get()[1].can_be_cancelled


def test_direct_call_with_a_token_of_the_callers(app: Celery) -> None:
    """A direct call may bring its own token: that is how a body is tested without a worker."""
    source = CancellationSource()
    source.cancel(reason="test")

    @app.task(base=CancellableTask)
    def body(token: CancellationToken) -> None:
        token.raise_if_cancelled()

    with pytest.raises(TaskCancelled, match="test"):
        body(source.token)


def test_direct_call_from_within_a_body_gets_none(app: Celery) -> None:
    """A task that a body calls directly is no task of its own: it gets `none`."""

    @app.task(base=CancellableTask)
    def inner(token: CancellationToken) -> bool:
        return token.can_be_cancelled

    @app.task(base=CancellableTask)
    def outer(depth: int, token: CancellationToken) -> Any:
        return token.can_be_cancelled, inner(), outer(depth - 1) if depth else None

    assert outer.apply((1,)).get() == (True, False, (False, False, None))


def test_eager_body_keeps_its_request(app: Celery) -> None:
    """The request of an eager run, id and children included, is the one the body sees."""

    @app.task(base=CancellableTask, bind=True)
    def body(self: Any, token: CancellationToken) -> Any:
        return self.request.id, self.request.is_eager

    result = body.apply(task_id="mine")
    assert result.get() == ("mine", True)


def test_two_tokens_are_refused(app: Celery) -> None:
    """Two token parameters are a TypeError at decoration."""

    def two(token: CancellationToken, other: CancellationToken) -> None:
        """Never runs."""

    with pytest.raises(TypeError, match="2 CancellationToken parameters"):
        app.task(base=CancellableTask, lazy=False)(two)


def test_decorator_that_hides_the_token_is_told(app: Celery) -> None:
    """A decorator without `functools.wraps` around a body with a token is warned of, with the remedy."""

    def careless(function: Any) -> Any:
        def inner(*args: Any) -> Any:
            return function(*args)

        return inner

    def wants_one(rows: int, token: CancellationToken) -> None:
        """Never gets one."""

    with pytest.warns(RuntimeWarning, match=r"wants_one.*functools\.wraps"):
        app.task(base=CancellableTask, name="careless", lazy=False)(careless(wants_one))


def test_run_replaced_at_run_time_gets_its_token(app: Celery) -> None:
    """A body that takes the place of another gets the token it asks for."""

    def original(rows: int) -> None:
        raise AssertionError("this one is not to run any more")

    task = app.task(base=CancellableTask, name="replaced", lazy=False)(original)
    task.run = last
    rows, token = task.apply((3,)).get()
    assert rows == 3
    assert token.can_be_cancelled


def test_stray_cancellation_fails_an_eager_task(app: Celery) -> None:
    """TaskCancelled that nobody asked for is an ordinary failure of an eager task as well."""

    @app.task(base=CancellableTask)
    def body() -> None:
        raise TaskCancelled

    result = body.apply()
    assert result.state == "FAILURE"
    with pytest.raises(CancelTokenError, match="nobody had asked"):
        result.get()


def test_current_token_is_none_outside(app: Celery) -> None:
    """Outside a task, and after one, `current_token()` is `none`."""
    app.task(base=CancellableTask)(last).apply((1,)).get()
    assert current_token() is CancellationToken.none


def test_users_call_is_kept(app: Celery) -> None:
    """A `__call__` of the user's runs around the body, whether it goes on by `run` or by `super()`."""
    calls = []

    class ByRun(CancellableTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("run")
            return self.run(*args, **kwargs)

    class BySuper(CancellableTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("super")
            return super().__call__(*args, **kwargs)

    for base in (ByRun, BySuper):
        task = app.task(base=base, name=base.__name__)(last)
        rows, token = task.apply((3,)).get()
        assert rows == 3
        assert token.can_be_cancelled
        assert task(3) == (3, CancellationToken.none)
    assert calls == ["run", "run", "super", "super"]


def test_plain_signature_has_no_placeholder(app: Celery) -> None:
    """A placeholder in a signature stays behind."""
    task = app.task(base=CancellableTask)(last)
    assert task.s(1, CancellationToken.none).args == (1,)
    assert task.signature((1,), {"token": CancellationToken.none}).kwargs == {}
