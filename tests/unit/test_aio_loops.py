"""Connections and event loops: how many there are, whose they are, and what becomes of them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_canceltoken import StoreUnavailableError, aio, get_record, revoke
from celery_canceltoken.configuration import settings_of
from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer, sentinel_for
from tests.support.waiting import wait_until
from tests.support.workers import close_client, unique_name

TIMEOUT = 0.2
SLACK = 1.0
"""Seconds that a busy machine may add."""
CONNECTIONS = 8
CROWD = 200

AppFactory = Callable[..., Celery]

CALLS: dict[str, Callable[[Celery], Coroutine[Any, Any, Any]]] = {
    "revoke": lambda app: aio.revoke("id", app=app),
    "delete": lambda app: aio.delete("id", app=app),
    "requeue": lambda app: aio.requeue("id", app=app),
    "reschedule": lambda app: aio.reschedule("id", countdown=1, app=app),
    "withdraw": lambda app: aio.withdraw("id", app=app),
    "revoke_many": lambda app: aio.revoke_many(["id", "other"], app=app),
    "revoke_workflow": lambda app: aio.revoke_workflow("id", app=app),
    "revoke_where": lambda app: aio.revoke_where(name="shop.export", app=app),
    "get_record": lambda app: aio.get_record("id", app=app),
    "list_records": lambda app: aio.list_records(app=app),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def make_app(valkey: EmbeddedServer) -> Iterator[AppFactory]:
    """Makes apps whose records are this test's own."""
    apps = []
    prefix = unique_name("prefix")

    def make(url: str = valkey.url, **configuration: Any) -> Celery:
        app = Celery(unique_name("app"), broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(canceltoken_redis_url=url, canceltoken_prefix=prefix, **configuration)
        apps.append(app)
        return app

    yield make
    for app in apps:
        close_client(app)
    with Redis.from_url(valkey.url) as client:
        for key in client.scan_iter(f"{prefix}:*", count=1000):
            client.delete(key)


@pytest.fixture
def app(make_app: AppFactory, valkey_proxy: ToxicProxy) -> Celery:
    """An app whose connections to the store are counted."""
    return make_app(valkey_proxy.url, canceltoken_store_timeout=5.0)


@pytest.fixture
def impatient_app(make_app: AppFactory, valkey_proxy: ToxicProxy) -> Celery:
    """The same for outages."""
    return make_app(valkey_proxy.url, canceltoken_store_timeout=TIMEOUT)


@pytest.fixture
def complaints() -> Iterator[list[warnings.WarningMessage]]:
    """What was left unclosed, as far as the collector has come by the end of the block."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def channel_of(app: Celery, task_id: str) -> str:
    return f"{settings_of(app).prefix}:stopped:{task_id}"


async def read_crowd(app: Celery, size: int = CROWD) -> list[Any]:
    reads = [aio.get_record(f"id-{number}", app=app) for number in range(size)]
    return await asyncio.gather(*reads, return_exceptions=True)


def test_a_crowd_keeps_to_the_number_of_connections(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """Any number of calls at once share a few connections, and none of them fails."""
    assert asyncio.run(read_crowd(app)) == [None] * CROWD
    assert valkey_proxy.accepted <= CONNECTIONS


def test_a_crowd_is_answered_each_by_its_own_answer(app: Celery) -> None:
    """Answers are not mixed up between calls at the same time."""

    async def ask() -> list[str]:
        handles = await asyncio.gather(*(aio.revoke(f"id-{n}", reason=str(n), app=app) for n in range(CROWD)))
        records = await asyncio.gather(*(handle.record() for handle in handles))
        return [record.reason for record in records if record is not None and record.reason is not None]

    assert asyncio.run(ask()) == [str(number) for number in range(CROWD)]


def test_an_order_about_many_tasks_takes_one_connection(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """`revoke_many` of hundreds sends them together, and answers in the order of the ids."""
    ids = [f"id-{number}" for number in range(CROWD)]
    handles = asyncio.run(aio.revoke_many(ids, app=app))
    assert [handle.task_id for handle in handles.applied] == ids
    assert valkey_proxy.accepted == 1


def test_one_order_is_one_command(make_app: AppFactory, private_valkey: EmbeddedServer) -> None:
    """Once the server knows the script, a revoke is a single round trip."""
    app = make_app(private_valkey.url)

    async def revoke_watched() -> list[str]:
        await aio.revoke("warm-up", app=app)
        with Redis.from_url(private_valkey.url) as client, client.monitor() as monitor:
            await aio.revoke("id", app=app)
            await aio.get_record("the end", app=app)
            seen = []
            for command in monitor.listen():
                if "the end" in command["command"]:
                    return seen
                if command["client_type"] != "lua":
                    seen.append(command["command"].partition(" ")[0])
        return seen

    assert asyncio.run(revoke_watched()) == ["EVALSHA"]


def test_close_gives_all_connections_back(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """After `close` no connection is open, while the loop goes on."""

    async def use_and_close() -> None:
        await read_crowd(app)
        assert valkey_proxy.open_connections > 0
        await aio.close(app=app)
        await asyncio.to_thread(
            wait_until, lambda: not valkey_proxy.open_connections, description="all connections are closed"
        )

    asyncio.run(use_and_close())


def test_a_call_after_close_opens_a_new_connection(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """`close` ends nothing but connections."""

    async def use_close_and_use() -> None:
        await aio.get_record("id", app=app)
        await aio.close(app=app)
        assert await aio.get_record("id", app=app) is None

    asyncio.run(use_close_and_use())
    assert valkey_proxy.accepted == 2


def test_close_of_what_was_never_used_does_nothing(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """`close` may be called in any case, and twice."""

    async def close_twice() -> None:
        await aio.close(app=app)
        await aio.close(app=app)

    asyncio.run(close_twice())
    assert valkey_proxy.accepted == 0


def test_close_leaves_other_apps_alone(make_app: AppFactory, app: Celery, valkey_proxy: ToxicProxy) -> None:
    """`close` is about one app: another one's calls in the same loop keep their connections."""
    other = make_app(valkey_proxy.url)

    async def close_one() -> None:
        await aio.get_record("id", app=app)
        await aio.get_record("id", app=other)
        await aio.close(app=app)
        await aio.get_record("id", app=other)

    asyncio.run(close_one())
    assert valkey_proxy.accepted == 2


def test_loops_may_follow_each_other(app: Celery) -> None:
    """Each `asyncio.run` has connections of its own; nothing of an ended loop is in the way."""
    for number in range(3):
        handle = asyncio.run(aio.revoke("id", reason=str(number), app=app))
        assert handle.applied is (number == 0)


def test_the_end_of_a_loop_closes_its_connections(
    app: Celery, valkey_proxy: ToxicProxy, complaints: list[warnings.WarningMessage]
) -> None:
    """`asyncio.run` without `aio.close` leaves no connection open, and nobody complains."""
    for _ in range(3):
        asyncio.run(read_crowd(app, 20))
    wait_until(lambda: not valkey_proxy.open_connections, description="all connections are closed")
    gc.collect()
    assert [str(one.message) for one in complaints] == []


def test_nothing_keeps_an_ended_loop(app: Celery) -> None:
    """A loop that has ended is garbage: a program that makes many of them does not grow."""

    class Ending(asyncio.SelectorEventLoop):
        collected = 0

        def __del__(self) -> None:
            Ending.collected += 1
            super().__del__()

    for _ in range(3):
        loop = Ending()
        try:
            loop.run_until_complete(read_crowd(app, 20))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
        del loop
    gc.collect()
    assert Ending.collected == 3


# redis-py says that it was left unclosed, and some releases of it that the loop is closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_without_ceremony_is_forgotten(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """Even where nothing was shut down, the next loop's first call lets the last one's connections go."""
    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(read_crowd(app, 20))
        loop.close()
        del loop
    asyncio.run(aio.get_record("id", app=app))
    gc.collect()
    wait_until(lambda: not valkey_proxy.open_connections, description="all connections are closed")


def test_loops_in_two_threads_do_not_meet(app: Celery) -> None:
    """Two loops at once, each in its thread, ask and are answered independently."""
    both, answers = threading.Barrier(2), []

    async def ask(name: str) -> None:
        await asyncio.to_thread(both.wait)
        answers.extend([(name, await read_crowd(app, 50)) for _ in range(5)])

    threads = [threading.Thread(target=lambda name=name: asyncio.run(ask(name))) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in answers) == ["a"] * 5 + ["b"] * 5
    assert all(answer == [None] * 50 for _, answer in answers)


def test_a_handle_may_be_used_in_another_loop(app: Celery) -> None:
    """A handle holds no connection: whichever loop runs reads its record."""
    handle = asyncio.run(aio.revoke("id", reason="enough", app=app))
    record = asyncio.run(handle.record())
    assert record is not None
    assert record.reason == "enough"


@EVERY_CALL
def test_a_store_that_is_gone_is_told(impatient_app: Celery, valkey_proxy: ToxicProxy, call: Any) -> None:
    """Without a server each function raises the typed error, at once."""
    valkey_proxy.cut()
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=f"{valkey_proxy.host}:{valkey_proxy.port}"):
        asyncio.run(call(impatient_app))
    assert time.monotonic() - began < TIMEOUT + SLACK


@EVERY_CALL
def test_a_store_that_is_silent_is_told(impatient_app: Celery, valkey_proxy: ToxicProxy, call: Any) -> None:
    """A server that does not answer costs each function one timeout."""
    valkey_proxy.freeze("down")
    began = time.monotonic()
    with pytest.raises(
        StoreUnavailableError, match=f"{valkey_proxy.host}:{valkey_proxy.port} did not answer"
    ):
        asyncio.run(call(impatient_app))
    assert time.monotonic() - began < TIMEOUT + SLACK


@pytest.mark.parametrize("fault", ["cut", "freeze"])
def test_a_wait_ends_with_its_store(impatient_app: Celery, valkey_proxy: ToxicProxy, fault: str) -> None:
    """Whoever waits is told that the store is gone, and does not wait for ever."""

    async def wait() -> None:
        handle = await aio.revoke("id", app=impatient_app)
        waiting = asyncio.ensure_future(handle.wait(30))
        await asyncio.to_thread(wait_until, subscribed, description="somebody listens")
        getattr(valkey_proxy, fault)()
        with pytest.raises(StoreUnavailableError):
            await waiting

    def subscribed() -> bool:
        with Redis.from_url(valkey_url) as client:
            ((_, listeners),) = client.pubsub_numsub(channel_of(impatient_app, "id"))
            return bool(listeners)

    valkey_url = "redis://{}:{}".format(*valkey_proxy._upstream)
    asyncio.run(asyncio.wait_for(wait(), 10))


def test_a_store_that_is_back_answers_again(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """After an outage the same loop's calls work as if nothing had been."""

    async def through_an_outage() -> None:
        await aio.get_record("id", app=app)
        valkey_proxy.cut()
        with pytest.raises(StoreUnavailableError):
            await aio.get_record("id", app=app)
        valkey_proxy.heal()
        assert await read_crowd(app) == [None] * CROWD

    asyncio.run(through_an_outage())


def test_a_connection_that_was_reset_costs_no_error(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """An idle connection that the network has dropped is replaced without a word."""

    async def around_a_reset() -> None:
        await read_crowd(app)
        valkey_proxy.reset_connections()
        assert await read_crowd(app) == [None] * CROWD

    asyncio.run(around_a_reset())


@pytest.mark.parametrize("what", ["calls", "waits"])
def test_a_crowd_at_a_silent_store_is_told_together(
    impatient_app: Celery, valkey_proxy: ToxicProxy, what: str
) -> None:
    """However many wait for their turn, an outage costs them one timeout, not one after the other."""

    async def wait() -> list[Any]:
        waits = [handle.wait(30) for _ in range(CROWD)]
        return await asyncio.gather(*waits, return_exceptions=True)

    handle = asyncio.run(aio.revoke("id", app=impatient_app))
    valkey_proxy.freeze("down")
    began = time.monotonic()
    answers = asyncio.run(read_crowd(impatient_app) if what == "calls" else wait())
    assert {type(answer) for answer in answers} == {StoreUnavailableError}
    # One after the other it would be 25 timeouts.
    assert time.monotonic() - began < 5 * TIMEOUT + SLACK


def test_a_cancelled_call_confuses_no_other(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """The answer to a call that was given up is given to nobody else."""

    async def ask(number: int) -> str | None:
        record = await aio.get_record(f"id-{number}", app=app)
        return None if record is None else record.reason

    async def cancel_and_ask() -> list[str | None]:
        for number in range(CONNECTIONS):
            await aio.revoke(f"id-{number}", reason=str(number), app=app)
        valkey_proxy.delay(0.05)
        given_up = [asyncio.ensure_future(ask(number)) for number in range(CONNECTIONS)]
        await asyncio.sleep(0.02)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        valkey_proxy.heal()
        return await asyncio.gather(*(ask(number) for number in reversed(range(CONNECTIONS))))

    assert asyncio.run(cancel_and_ask()) == [str(number) for number in reversed(range(CONNECTIONS))]


def test_a_cancelled_wait_leaves_nothing(
    app: Celery, valkey: EmbeddedServer, valkey_proxy: ToxicProxy
) -> None:
    """Cancelling a wait closes its connection, ends its subscription, and leaves the order as it was."""

    def listeners() -> int:
        with Redis.from_url(valkey.url) as client:
            return int(client.pubsub_numsub(channel_of(app, "id"))[0][1])

    async def cancel_a_wait() -> None:
        handle = await aio.revoke("id", reason="enough", app=app)
        before, record = valkey_proxy.open_connections, await handle.record()
        waiting = asyncio.ensure_future(handle.wait())
        await asyncio.to_thread(wait_until, listeners, description="somebody listens")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(
            wait_until,
            lambda: not listeners() and valkey_proxy.open_connections <= before,
            description="the wait's connection is closed",
        )
        assert await handle.record() == record

    asyncio.run(cancel_a_wait())


def test_a_wait_is_cancelled_at_any_moment(app: Celery) -> None:
    """No moment of a wait swallows its cancellation: not while it connects, subscribes, reads or listens."""

    async def cancel_often() -> int:
        handle, ignored = await aio.revoke("id", app=app), 0
        for number in range(100):
            waiting = asyncio.ensure_future(handle.wait())
            # Steps of the loop, not seconds: each number comes to another moment.
            for _ in range(number):
                await asyncio.sleep(0)
            waiting.cancel()
            _, alive = await asyncio.wait([waiting], timeout=5)
            ignored += len(alive)
            waiting.cancel()
        return ignored

    assert asyncio.run(cancel_often()) == 0


def test_a_wait_that_times_out_leaves_nothing(app: Celery, valkey_proxy: ToxicProxy) -> None:
    """A wait that ends without an outcome says so, and closes its connection."""

    async def time_out() -> None:
        handle = await aio.revoke("id", app=app)
        with pytest.raises(TimeoutError, match="id: nothing has come of it within 0 s"):
            await handle.wait(0)
        await asyncio.to_thread(
            wait_until,
            lambda: valkey_proxy.open_connections == 1,
            description="the wait's connection is closed",
        )

    asyncio.run(time_out())


def test_a_crowd_of_waits_is_no_outage(make_app: AppFactory) -> None:
    """Any number of waits may begin at once: that each of them connects takes no one's store timeout."""
    app = make_app(canceltoken_store_timeout=0.5)

    async def wait() -> set[type]:
        handle = await aio.revoke("id", app=app)
        waits = [handle.wait(0) for _ in range(CROWD // 2)]
        return {type(answer) for answer in await asyncio.gather(*waits, return_exceptions=True)}

    assert asyncio.run(wait()) == {TimeoutError}


def test_a_wait_for_nothing_is_refused_as_to_threads(app: Celery, make_app: AppFactory) -> None:
    """Where there is nothing to wait for both kinds of handle say so in the same words."""
    blocking = revoke("id", must_exist=True, app=make_app())
    with pytest.raises(Exception, match="nothing to wait for") as told:
        blocking.wait(1)

    async def wait() -> None:
        await (await aio.revoke("id", must_exist=True, app=app)).wait(1)

    with pytest.raises(type(told.value), match=str(told.value)):
        asyncio.run(wait())


def test_celerys_part_is_done_in_a_thread(make_app: AppFactory, valkey_proxy: ToxicProxy) -> None:
    """What goes through Celery, which blocks, does not run in the loop's thread."""
    app = make_app(valkey_proxy.url, canceltoken_store_timeout=TIMEOUT)
    valkey_proxy.cut()
    asked = []
    app.control.revoke = lambda ids: asked.append((ids, threading.get_ident()))
    handle = asyncio.run(aio.revoke("id", store_down="broadcast", app=app))
    assert (handle.applied, handle.broadcast) == (False, True)
    ((ids, thread),) = asked
    assert ids == ["id"]
    assert thread != threading.get_ident()


def test_a_socket_file_reaches_the_store(make_app: AppFactory, valkey: EmbeddedServer) -> None:
    """A `unix://` URL serves loops as it serves threads."""
    by_file, by_port = make_app(valkey.unix_url), make_app()
    asyncio.run(aio.revoke("id", reason="by file", app=by_file))
    record = get_record("id", app=by_port)
    assert record is not None
    assert record.reason == "by file"


@pytest.fixture
def behind_a_sentinel(make_app: AppFactory, valkey: EmbeddedServer) -> Iterator[tuple[Celery, ToxicProxy]]:
    """An app that finds its store by a sentinel, and what counts the connections to that."""
    with (
        sentinel_for(valkey, name="shop") as sentinel,
        ToxicProxy((sentinel.host, sentinel.port)) as proxy,
    ):
        url = f"sentinel://{proxy.host}:{proxy.port}/0?master_name=shop"
        yield make_app(url, canceltoken_store_timeout=TIMEOUT), proxy


def test_a_sentinel_shows_the_way(behind_a_sentinel: tuple[Celery, ToxicProxy], make_app: AppFactory) -> None:
    """A `sentinel://` URL serves loops as it serves threads, crowds as well."""
    app, _ = behind_a_sentinel
    assert asyncio.run(read_crowd(app)) == [None] * CROWD
    asyncio.run(aio.revoke("id", reason="by sentinel", app=app))
    record = get_record("id", app=make_app())
    assert record is not None
    assert record.reason == "by sentinel"


def test_close_leaves_no_connection_to_a_sentinel(behind_a_sentinel: tuple[Celery, ToxicProxy]) -> None:
    """`close`, and the end of each wait, give back the connections to the sentinels, too."""
    app, proxy = behind_a_sentinel

    async def wait_and_close() -> None:
        handle = await aio.revoke("id", app=app)
        with pytest.raises(TimeoutError):
            await handle.wait(0)
        await aio.close(app=app)
        await asyncio.to_thread(
            wait_until, lambda: not proxy.open_connections, description="all connections are closed"
        )

    asyncio.run(wait_and_close())
    assert proxy.accepted > 0


def test_a_sentinel_that_is_silent_is_told(behind_a_sentinel: tuple[Celery, ToxicProxy]) -> None:
    """A sentinel that does not answer is an outage of the store."""
    app, proxy = behind_a_sentinel
    proxy.freeze("down")
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        asyncio.run(aio.get_record("id", app=app))
    assert time.monotonic() - began < 3 * TIMEOUT + SLACK
