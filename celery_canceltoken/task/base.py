"""The task base class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from celery import Task
from celery.exceptions import Ignore
from celery.utils.functional import head_from_fun
from celery.utils.imports import symbol_by_name

from celery_canceltoken import hooks
from celery_canceltoken.cause import Cause
from celery_canceltoken.task import celery_revoke, placeholder, tracking
from celery_canceltoken.task.endings import RaisedAfterCancel, Replaced
from celery_canceltoken.task.execution import open_execution, perform
from celery_canceltoken.task.injection import (
    TokenParameter,
    find_token_parameter,
    holds_token,
    warn_of_hidden_token_parameter,
    with_token,
    without_tokens,
)
from celery_canceltoken.task.policies import check_policies
from celery_canceltoken.task.stamp import Stamp
from celery_canceltoken.token import CancellationToken

__all__ = ["CancellableTask"]

_MADE_HERE = "_canceltoken_wrapped"

hooks.install()
celery_revoke.install()
placeholder.install()
tracking.install()


class CancellableTask(Task):  # type: ignore[type-arg]
    """Base of tasks that can be told to stop while they run.

    Use it as `@app.task(base=CancellableTask)`, or for all tasks of an app with
    `Celery(task_cls="celery_canceltoken:CancellableTask")`. A parameter annotated as
    `CancellationToken`, anywhere in the signature, gets the token of the run; callers leave it
    out or pass `CancellationToken.none`, and whatever they pass is discarded (Hangfire does the
    same). Called directly the task gets `CancellationToken.none`, or the token it was called
    with; eager and with `apply()` a live token of its own, and no store.

    Raises TypeError at decoration where a function has two token parameters.
    """

    abstract = True
    Request = "celery_canceltoken.task.request:CancellableRequest"

    token_parameter: ClassVar[TokenParameter | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put our layers around the body, and around any `__call__` of the user's."""
        super().__init_subclass__(**kwargs)
        check_policies(cls)
        if "run" in vars(cls):
            cls._wrap_run(vars(cls)["run"])
        dump = vars(cls).get("_dump_pydantic_arguments")
        if dump is not None and cls.token_parameter is not None:
            dump_around_token = _dumping_around_token(dump.__func__, cls.token_parameter)
            setattr(cls, "_dump_pydantic_arguments", staticmethod(dump_around_token))  # noqa: B010
        call = cls.__call__
        if not hasattr(call, _MADE_HERE):
            cls.__call__ = _as_run(call)  # type: ignore[method-assign]

    @classmethod
    def _wrap_run(cls, run: Any) -> None:
        bound = not isinstance(run, staticmethod)
        function: Callable[..., Any] = run if bound else run.__func__
        if hasattr(function, _MADE_HERE):
            return
        parameter = find_token_parameter(function)
        warn_of_hidden_token_parameter(function, parameter)
        body = _as_body(function, parameter, (lambda args: args[0]) if bound else (lambda _: cls))
        cls.token_parameter = parameter
        cls.run = body if bound else staticmethod(body)  # type: ignore[method-assign]
        if "__header__" in vars(cls) and parameter is not None:
            # What checks the arguments of a call, and counts those of an errback.
            setattr(cls, "__header__", staticmethod(head_from_fun(body, bound=bound)))  # noqa: B010

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body: as the execution of the message being traced, or as a direct call."""
        return perform(self, lambda: self._enter(args, kwargs))

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not hasattr(self.run, _MADE_HERE):
            # Replaced since the class was made, on the class or on the task.
            run = self.run
            setattr(self, "run", _as_body(run, find_token_parameter(run), lambda _: self))  # noqa: B010
        execution = open_execution()
        if execution is not None and execution.request is self.request_stack.top and not execution.entered:
            # Celery's own __call__ would push a second request over the traced one, and the body would lose
            # its id and its children.
            return self.run(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def apply_async(  # type: ignore[override]
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        """Send the task, as Celery's `apply_async`. Only `canceltoken_track_enqueued` adds I/O."""
        if holds_token(args, kwargs):
            args, kwargs = without_tokens(args, kwargs)
        options["headers"] = _stamped(options.get("headers"), task_id)
        with tracking.publishing_for(self, options):
            return super().apply_async(args, kwargs, task_id=task_id, **options)

    def signature(self, args: Any = None, *starargs: Any, **starkwargs: Any) -> Any:
        """Make a signature, as Celery's, without placeholders in it."""
        kwargs = starargs[0] if starargs else starkwargs.get("kwargs")
        if holds_token(args, kwargs):
            args, kwargs = without_tokens(args, kwargs)
            starargs = (kwargs, *starargs[1:])
            starkwargs.pop("kwargs", None)
        return super().signature(args, *starargs, **starkwargs)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Retry, as Celery's; but a task that was told to stop stops, and nothing is sent.

        Raises TaskCancelled where the task was revoked, deleted or requeued.
        """
        execution = open_execution()
        if execution is not None and execution.cause in (Cause.REVOKED, Cause.DELETED, Cause.REQUEUED):
            execution.source.token.raise_if_cancelled()
        return super().retry(*args, **kwargs)

    def on_cancelled(self, cause: Cause, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook for tasks to override: a run ended as it was told to, or never started for that.

        Called where the body runs (or would have), after the outcome is decided, and before the result
        is written or the message goes back: what is cleaned up here is clean before the next run. What
        it raises is logged and changes nothing. Celery's `on_failure` is not called for a cancellation.
        """

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """Prepare for a worker's messages, with a request class of the user's combined with ours."""
        # Imported here: it is the worker's, and app code has no use for it.
        from celery_canceltoken.task.request import CancellableRequest

        wanted = symbol_by_name(self.Request)
        if not issubclass(wanted, CancellableRequest):
            type(self).Request = type(wanted.__name__, (CancellableRequest, wanted), {})  # type: ignore[assignment]
        return super().start_strategy(app, consumer, **kwargs)

    def replace(self, sig: Any) -> Any:
        """Replace the task by *sig* under the same id, as Celery's."""
        execution = open_execution()
        if execution is not None:
            last = _last_task_of(sig)
            if last is not None:
                headers = {**(last.options.get("headers") or {}), **_continuation(execution).headers()}
                last.set(headers=headers)
        try:
            return super().replace(sig)
        except Ignore as error:
            raise Replaced(*error.args) from error


def _as_run(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `__call__` of the user's, so that the claim comes before it and the end after it."""

    @functools.wraps(call)
    def as_run(self: CancellableTask, *args: Any, **kwargs: Any) -> Any:
        return perform(self, lambda: call(self, *args, **kwargs))

    setattr(as_run, _MADE_HERE, True)
    return as_run


setattr(CancellableTask.__call__, _MADE_HERE, True)


def _as_body(
    function: Callable[..., Any],
    parameter: TokenParameter | None,
    task_of: Callable[[tuple[Any, ...]], Any],
) -> Callable[..., Any]:
    """Wrap the function of a task; *task_of* finds the task, or its class, given the arguments."""

    @functools.wraps(function)
    def body(*args: Any, **kwargs: Any) -> Any:
        stack = task_of(args).request_stack
        execution = open_execution()
        if execution is None or stack is None or execution.request is not stack.top:
            if parameter is not None and not holds_token(args, kwargs):
                args, kwargs = with_token(parameter, CancellationToken.none, args, kwargs)
            return function(*args, **kwargs)
        execution.entered = True
        if parameter is not None:
            args, kwargs = with_token(parameter, execution.source.token, args, kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            # Celery's autoretry is the next layer out, and takes no cancellation for an answer.
            if execution.source.observed and execution.cause is Cause.REVOKED:
                raise RaisedAfterCancel(error) from error
            raise

    setattr(body, _MADE_HERE, True)
    body.__signature__ = (  # type: ignore[attr-defined]
        parameter.callers_signature if parameter is not None else inspect.signature(function)
    )
    return body


def _dumping_around_token(
    dump: Callable[[Any, Any], tuple[Any, Any]], parameter: TokenParameter
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Have Celery's `pydantic=True` bind a call's arguments as the body gets them: with a token."""

    def dump_without_token(args: Any, kwargs: Any) -> tuple[Any, Any]:
        bound = isinstance(dump, functools.partial) and dump.keywords.get("bound", False)
        place = replace(parameter, position=parameter.position - 1) if bound else parameter
        complete = with_token(place, CancellationToken.none, tuple(args or ()), dict(kwargs or {}))
        return without_tokens(*dump(*complete))

    return dump_without_token


def _continuation(execution: Any) -> Stamp:
    return Stamp(execution.stamp.send, execution.generation + 1)


def _stamped(given: Any, task_id: str | None) -> dict[str, Any]:
    execution = open_execution()
    headers: dict[str, Any] = dict(given or {})
    if execution is not None and task_id is not None and execution.request.id == task_id:
        # The same id sent from within its own body: a retry, or what replaces it.
        headers.update(_continuation(execution).headers())
    elif not Stamp.of(headers).send:
        headers.update(Stamp.fresh().headers())
    return headers


def _last_task_of(sig: Any) -> Any:
    """The signature that will run under the id of the whole; None where Celery makes it up later."""
    while True:
        tasks = getattr(sig, "tasks", None)
        if getattr(sig, "body", None) is not None:
            sig = sig.body
        elif tasks and sig.subtask_type == "chain":
            sig = tasks[-1]
        elif tasks is not None:
            return None
        else:
            return sig
