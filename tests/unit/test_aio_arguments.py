"""The functions for event loops are those for threads: same names, parameters, defaults, and refusals."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from celery_canceltoken import InvalidArgumentError, RequestHandle, RequestHandles, aio, api
from tests.support.proxy import ToxicProxy
from tests.support.workers import unique_name

BAD_CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "revoke: no id": ("revoke", ("",), {}),
    "revoke: not an id": ("revoke", (7,), {}),
    "revoke: reason": ("revoke", ("id",), {"reason": 3}),
    "revoke: actor": ("revoke", ("id",), {"actor": "x" * 2000}),
    "revoke: state": ("revoke", ("id",), {"from_state": "RUNNING"}),
    "revoke: flag": ("revoke", ("id",), {"must_exist": 1}),
    "revoke: store_down": ("revoke", ("id",), {"store_down": "ignore"}),
    "delete: reason": ("delete", ("id",), {"reason": b"no"}),
    "requeue: state": ("requeue", ("id",), {"from_state": []}),
    "reschedule: no time": ("reschedule", ("id",), {}),
    "reschedule: countdown": ("reschedule", ("id",), {"countdown": -1}),
    "withdraw: no id": ("withdraw", (None,), {}),
    "revoke_many: one id": ("revoke_many", ("id",), {}),
    "revoke_many: a bad id": ("revoke_many", (["id", ""],), {}),
    "revoke_workflow: no id": ("revoke_workflow", ("",), {}),
    "revoke_where: nothing": ("revoke_where", (), {}),
    "revoke_where: flag": ("revoke_where", (), {"name": "x", "dry_run": "yes"}),
    "revoke_where: until": ("revoke_where", (), {"where": bool, "until": timedelta(1)}),
    "get_record: no id": ("get_record", ("",), {}),
    "list_records: limit": ("list_records", (), {"limit": 0}),
    "list_records: cursor": ("list_records", (), {"cursor": "later"}),
}


@pytest.fixture
def unreachable() -> Iterator[ToxicProxy]:
    """A store that refuses everybody, and counts them."""
    with ToxicProxy(("127.0.0.1", 1)) as proxy:
        proxy.cut()
        yield proxy


@pytest.fixture
def app(unreachable: ToxicProxy) -> Celery:
    """An app on that store."""
    made = Celery(unique_name("app"), set_as_current=False)
    made.conf.canceltoken_redis_url = unreachable.url
    return made


def parameters_of(function: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]


def public_methods(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_there_is_a_counterpart_of_every_function() -> None:
    """Whatever a thread can ask, an event loop can; it has `close` besides."""
    assert {name for name in aio.__all__ if name[0].islower()} == {*api.__all__, "close"}


@pytest.mark.parametrize("name", api.__all__)
def test_parameters_are_the_same(name: str) -> None:
    """Name, order, kind and default of each parameter are those of the blocking function."""
    assert parameters_of(getattr(aio, name)) == parameters_of(getattr(api, name))


@pytest.mark.parametrize("name", aio.__all__)
def test_functions_are_coroutines(name: str) -> None:
    """Each function is an `async def`, as frameworks look for it."""
    function = getattr(aio, name)
    assert inspect.isclass(function) or inspect.iscoroutinefunction(function)


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [(RequestHandle, aio.AsyncRequestHandle), (RequestHandles, aio.AsyncRequestHandles)],
)
def test_handles_are_the_same(blocking: type, asynchronous: type) -> None:
    """A handle of an event loop has what the other one has, with the same parameters."""
    assert public_methods(asynchronous) == public_methods(blocking)
    assert parameters_of(asynchronous.wait) == parameters_of(blocking.wait)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "args", "kwargs"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_argument_is_refused_in_the_same_words(
    app: Celery, unreachable: ToxicProxy, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """The blocking function and its counterpart refuse the same with the same error, and ask nobody."""
    with pytest.raises(InvalidArgumentError) as blocking:
        getattr(api, name)(*args, **kwargs, app=app)
    with pytest.raises(InvalidArgumentError) as asynchronous:
        asyncio.run(getattr(aio, name)(*args, **kwargs, app=app))
    assert (asynchronous.value.argument, str(asynchronous.value)) == (
        blocking.value.argument,
        str(blocking.value),
    )
    assert unreachable.refused == 0


@pytest.mark.parametrize("timeout", [-1, "soon", True])
def test_a_bad_timeout_is_refused(app: Celery, unreachable: ToxicProxy, timeout: Any) -> None:
    """A handle's wait refuses what is no number of seconds, before it listens to anything."""

    async def wait() -> None:
        handle = await aio.revoke("id", store_down="broadcast", app=app)
        refused = unreachable.refused
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await handle.wait(timeout)
        assert unreachable.refused == refused

    app.control.revoke = lambda *_: None
    asyncio.run(wait())


def test_the_app_of_a_result_is_used(app: Celery, unreachable: ToxicProxy) -> None:
    """An AsyncResult says which app is meant, as for the blocking functions."""
    with pytest.raises(ConnectionError, match=str(unreachable.port)):
        asyncio.run(aio.get_record(AsyncResult("id", app=app)))
