"""The calls of app code, made by an event loop: the same scripts and parsing as in `redis_store`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

import redis

from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.settings import Settings
from celery_canceltoken.store.calls import Call, Calls
from celery_canceltoken.store.connect import ConnectionPlan
from celery_canceltoken.store.scripts import SCRIPTS, script_arguments, script_source

__all__ = ["AsyncEndSubscription", "AsyncStore"]

T = TypeVar("T")

_CONNECTIONS = 8
_BATCH = 500


class AsyncStore:
    """The records of one prefix, for one event loop; every task of that loop may use it.

    Raises StoreUnavailableError where the server does not answer within `canceltoken_store_timeout`.
    """

    def __init__(self, plan: ConnectionPlan, settings: Settings) -> None:
        self._plan = plan
        self._timeout = settings.store_timeout
        self.calls = Calls(settings)
        # As many calls at a time as there are connections: to wait for a turn is no outage. But when one
        # turns out to be, all who wait are told at once, or a crowd would wait one timeout after the other.
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._failed_in_a_row = 0
        self._client: Any = plan.async_client(timeout=settings.store_timeout, connections=_CONNECTIONS)
        self._scripts: dict[str, Any] = {
            name: self._client.register_script(script_source(name)) for name in SCRIPTS
        }

    async def close(self) -> None:
        """Close all connections. The next call opens new ones."""
        await _close(self._client)

    async def ask(self, call: Call[T]) -> T:
        """Make one call. Raises what the call's own parser raises, too."""
        (answer,) = await self.ask_many([call])
        return answer

    async def ask_many(self, calls: Sequence[Call[T]]) -> list[T]:
        """Make many calls in few round trips. They are independent of each other."""
        answers: list[T] = []
        for start in range(0, len(calls), _BATCH):
            batch = calls[start : start + _BATCH]
            results = await self._in_turn(lambda batch=batch: self._make_together(batch))  # type: ignore[misc]
            answers += [call.parse(result) for call, result in zip(batch, results, strict=True)]
        return answers

    def end_of(self, task_id: str) -> AsyncEndSubscription:
        """Listen for the end of a task. Subscribe first, then read the record: nothing is missed."""
        plan, timeout = self._plan, self._timeout
        return AsyncEndSubscription(
            lambda: plan.async_client(timeout=timeout, connections=1),
            self.calls.keys.stopped(task_id),
            self._in_turn,
            timeout,
        )

    async def _in_turn(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        waits = self._turns.locked()
        async with self._turns:
            if waits and self._failed_in_a_row >= _CONNECTIONS:
                raise StoreUnavailableError(
                    f"the store at {_where(self._client)} did not answer those who were before this call"
                )
            try:
                answer = await _heeding_cancellation(make())
            except StoreUnavailableError as error:
                refused = isinstance(error.__cause__, redis.ResponseError)
                self._failed_in_a_row = 0 if refused else self._failed_in_a_row + 1
                raise
            self._failed_in_a_row = 0
            return answer

    async def _make_together(self, calls: Sequence[Call[Any]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        with _Errors(self._client):
            if len(calls) == 1 and calls[0].is_script:
                # A pipeline would ask for the script first, in a round trip of its own.
                (call,) = calls
                arguments = script_arguments(call.arguments, call.blob)
                return [await self._scripts[call.name](keys=call.keys, args=arguments)]
            for call in calls:
                if call.is_script:
                    arguments = script_arguments(call.arguments, call.blob)
                    await self._scripts[call.name](keys=call.keys, args=arguments, client=pipeline)
                else:
                    pipeline.execute_command(call.name, *call.keys, *call.arguments)
            results = list(await pipeline.execute(raise_on_error=False))
            for result in results:
                if isinstance(result, Exception) and not str(result).startswith("WRONGTYPE"):
                    raise result
        return results


class AsyncEndSubscription:
    """Hears the announcement of one end, on a connection of its own; an asynchronous context manager."""

    def __init__(
        self,
        make_client: Callable[[], Any],
        channel: str,
        in_turn: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]],
        timeout: float,
    ) -> None:
        self._make_client = make_client
        self._channel = channel
        self._in_turn = in_turn
        self._timeout = timeout
        self._client: Any = None

    async def __aenter__(self) -> AsyncEndSubscription:
        try:
            # In turn with the calls: a crowd that connects all at once would be its own outage.
            await self._in_turn(self._subscribe)
        except BaseException:
            await self._close()
            raise
        return self

    async def _subscribe(self) -> None:
        self._client = self._make_client()
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        with _Errors(self._client):
            await self._pubsub.subscribe(self._channel)
            # The record is read on another connection: not before the server has confirmed this.
            await self._pubsub.get_message(timeout=self._timeout)

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def wait(self, timeout: float) -> None:
        """Return when the end was announced, or after *timeout* seconds, or for no reason at all."""
        with _Errors(self._client):
            await _heeding_cancellation(self._pubsub.get_message(timeout=timeout))

    async def _close(self) -> None:
        if self._client is not None:
            await self._pubsub.aclose()
            await _close(self._client)


class _Errors:
    """Says what went wrong with the server in this package's words."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError)):
            raise StoreUnavailableError(
                f"the store at {_where(self._client)} did not answer: {error}"
            ) from error
        if isinstance(error, redis.ResponseError):
            raise StoreUnavailableError(f"the store at {_where(self._client)} refused: {error}") from error


async def _heeding_cancellation(steps: Coroutine[Any, Any, T]) -> T:
    """Await *steps*, and be cancelled when told to be.

    Before Python 3.12 `asyncio.wait_for`, by which redis-py sends, takes no notice of a cancellation that
    comes when it is done. Here that befalls a task of its own, whose end is near in any case.
    """
    task = asyncio.ensure_future(steps)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            # So that asyncio does not complain that nobody has looked.
            task.exception()
        raise
    return task.result()


async def _close(client: Any) -> None:
    await client.aclose()
    # redis-py leaves the connections to the sentinels to the collector.
    sentinel = getattr(client.connection_pool, "sentinel_manager", None)
    for one in getattr(sentinel, "sentinels", ()):
        await one.aclose()


def _where(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', '?')}:{options.get('port', '?')}")
