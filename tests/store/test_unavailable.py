"""The store is away: each call says so in time, and nothing waits twice."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import CancelTokenError, StoreUnavailableError
from celery_canceltoken.outcome import Ending, rows
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store import AgentStore, ConnectionPlan
from celery_canceltoken.store.answers import Claim, ClaimVerdict, Ended, Finish, RequestOrder
from celery_canceltoken.store.breaker import Breaker
from tests.store.conftest import ALICE, Lab
from tests.support.orders import revoke
from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until

TIMEOUT = 0.1
SLACK = 1.0
"""Seconds that a busy machine may add."""

CLAIM = Claim("task-7", "one", ALICE, "celery@alice", "send", 0, False, "shop.export", True, False)
FINISH = Finish(CLAIM, 0, 1, rows(Ending.RETURNED, None, False, False))
ORDER = RequestOrder("task-7", "request", "revoke", Cancellation(Cause.REVOKED))

CALLS: dict[str, Callable[[AgentStore], Any]] = {
    "claim": lambda store: store.claim(CLAIM),
    "finish": lambda store: store.finish(FINISH),
    "is_alive": lambda store: store.is_alive(ALICE),
    "request": lambda store: store.request(ORDER),
    "get": lambda store: store.get("task-7"),
    "end_of": lambda store: store.end_of("task-7").__enter__(),
    "announce": lambda store: store.announce(ALICE),
    "beat": lambda store: store.beat(ALICE),
    "keep": lambda store: store.keep(ALICE, ["task-7"]),
    "retire": lambda store: store.retire(ALICE),
    "deliver": lambda store: store.deliver("task-7", "one"),
    "deliver_many": lambda store: store.deliver_many([("task-7", "one")]),
    "observe": lambda store: store.observe("task-7", "one"),
    "settle": lambda store: store.settle(ALICE, [Ended("one", "task-7")]),
    "adopt": lambda store: store.adopt("task-7", "one", ALICE, "alice.2"),
    "owners": lambda store: store.owners(),
    "dead": lambda store: store.dead([ALICE]),
    "owned_by": lambda store: store.owned_by(ALICE, 10),
    "not_owned": lambda store: store.not_owned(ALICE, "task-7"),
    "forget_owner": lambda store: store.forget_owner(ALICE),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Clock:
    """Tells the time that the test has set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def lost_valkey() -> Iterator[EmbeddedServer]:
    """A server that is gone."""
    with EmbeddedServer() as server:
        server.crash()
        yield server


@pytest.fixture(scope="module")
def frozen_valkey() -> Iterator[EmbeddedServer]:
    """A server that accepts connections and answers nothing."""
    with EmbeddedServer() as server:
        server.pause()
        yield server


@pytest.fixture
def make_store(settings: Settings) -> Iterator[Callable[..., AgentStore]]:
    """Makes stores of this test's prefix: patient ones, unless told otherwise."""
    stores: list[AgentStore] = []

    def make(url: str, *, timeout: float = 5.0, **options: Any) -> AgentStore:
        limited = dataclasses.replace(settings, store_timeout=timeout)
        stores.append(AgentStore(ConnectionPlan(url), limited, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


Make = Callable[..., AgentStore]


def answers(store: AgentStore) -> bool:
    try:
        store.owners()
    except StoreUnavailableError:
        return False
    return True


@EVERY_CALL
def test_a_server_that_is_gone_is_told(make_store: Make, lost_valkey: EmbeddedServer, call: Any) -> None:
    """Without a server every call is a typed error, at once."""
    store = make_store(lost_valkey.url, timeout=TIMEOUT)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=f"{lost_valkey.host}:{lost_valkey.port}"):
        call(store)
    assert time.monotonic() - began < TIMEOUT + SLACK


@EVERY_CALL
def test_a_server_that_is_silent_is_told(make_store: Make, frozen_valkey: EmbeddedServer, call: Any) -> None:
    """A server that does not answer costs one timeout, and then every call is a typed error."""
    store = make_store(frozen_valkey.url, timeout=TIMEOUT)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="did not answer"):
        call(store)
    assert time.monotonic() - began < TIMEOUT + SLACK


# Subscribing waits for nothing on a connection that is open: the read that follows does.
@pytest.mark.parametrize(
    "call",
    [call for name, call in CALLS.items() if name != "end_of"],
    ids=[name for name in CALLS if name != "end_of"],
)
def test_a_server_that_falls_silent_is_told(make_store: Make, valkey_proxy: ToxicProxy, call: Any) -> None:
    """The same on a connection that had worked before."""
    store = make_store(valkey_proxy.url, timeout=TIMEOUT)
    wait_until(lambda: answers(store), description="the store is connected")
    valkey_proxy.freeze("down")
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        call(store)
    assert time.monotonic() - began < TIMEOUT + SLACK


@EVERY_CALL
def test_a_server_that_is_back_answers_again(
    make_store: Make, lab: Lab, valkey_proxy: ToxicProxy, call: Any
) -> None:
    """After an outage the same store works as if nothing had been."""
    store = make_store(valkey_proxy.url)
    store.owners()
    valkey_proxy.cut()
    with pytest.raises(StoreUnavailableError):
        call(store)
    valkey_proxy.heal()
    call(store)


def test_the_error_is_an_error_of_connection(make_store: Make, lost_valkey: EmbeddedServer) -> None:
    """Whoever catches ConnectionError, or this package's errors, catches this."""
    for kind in (ConnectionError, CancelTokenError):
        with pytest.raises(kind):
            make_store(lost_valkey.url).owners()


def test_a_revoke_is_never_applied_by_a_store_that_is_away(
    make_store: Make, frozen_valkey: EmbeddedServer
) -> None:
    """A client that cannot reach the store gets an error, not a handle."""
    with pytest.raises(StoreUnavailableError):
        revoke(make_store(frozen_valkey.url, timeout=TIMEOUT), "task-7")


def test_a_lost_answer_may_be_asked_for_again(make_store: Make, lab: Lab, valkey_proxy: ToxicProxy) -> None:
    """What was done although its answer was lost is told by the same call later, and not done twice."""
    store = make_store(valkey_proxy.url)
    store.owners()
    valkey_proxy.lose_replies_to(b"EVALSHA")
    with pytest.raises(StoreUnavailableError):
        store.claim(CLAIM)
    assert (lab.state, lab.fields["attempt"]) == ("PROCESSING", "1")
    # One more try over a new connection, and no third.
    assert valkey_proxy.accepted <= 2
    valkey_proxy.heal()
    with lab.unchanged():
        answer = store.claim(CLAIM)
    assert (answer.verdict, answer.attempt) == (ClaimVerdict.RUN, 1)


def test_a_connection_that_was_reset_costs_no_error(
    make_store: Make, lab: Lab, valkey_proxy: ToxicProxy
) -> None:
    """An idle connection that the network has dropped is replaced without a word."""
    store = make_store(valkey_proxy.url)
    store.owners()
    valkey_proxy.reset_connections()
    wait_until(lambda: not valkey_proxy.open_connections, description="the connection is gone")
    assert store.claim(CLAIM).verdict is ClaimVerdict.RUN


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(lab: Lab) -> None:
    """A restart or a flush of the scripts goes unnoticed."""
    lab.run("one")
    lab.redis.script_flush()
    lab.request()
    lab.redis.script_flush()
    assert lab.deliver("one").cancellation is not None


def test_a_server_without_memory_is_an_outage(make_store: Make, private_valkey: EmbeddedServer) -> None:
    """A server that answers but keeps nothing is as good as away, and says why."""
    store = make_store(private_valkey.url)
    with Redis(port=private_valkey.port) as admin:
        admin.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailableError, match=r"refused: .*not allowed"):
            store.announce(ALICE)
        admin.config_set("maxmemory", "0")
        store.announce(ALICE)
        assert store.is_alive(ALICE)


def test_a_replica_is_an_outage(
    make_store: Make, private_valkey: EmbeddedServer, lost_valkey: EmbeddedServer
) -> None:
    """A server that may not write is as good as away."""
    store = make_store(private_valkey.url)
    store.claim(CLAIM)
    with Redis(port=private_valkey.port) as admin:
        admin.replicaof(lost_valkey.host, lost_valkey.port)
        with pytest.raises(StoreUnavailableError, match="refused"):
            store.request(ORDER)


def test_a_wrong_password_is_an_outage(make_store: Make, private_valkey: EmbeddedServer) -> None:
    """A server that does not let us in is a typed error without the password in it."""
    with Redis(port=private_valkey.port) as admin:
        admin.config_set("requirepass", "right")
    url = f"redis://:hunter2@{private_valkey.host}:{private_valkey.port}/0"
    with pytest.raises(StoreUnavailableError) as told:
        make_store(url).owners()
    assert "hunter2" not in str(told.value)


# The breaker.


def test_many_threads_wait_no_longer_than_one(make_store: Make, frozen_valkey: EmbeddedServer) -> None:
    """However many ask a silent server at once, each of them gives up within about the timeout."""
    store = make_store(frozen_valkey.url, timeout=0.5, connections=8)
    start = threading.Barrier(8)
    waits: list[float] = []

    def ask() -> None:
        start.wait(10)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.claim(CLAIM)
        waits.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(waits) == 8
    assert max(waits) < 0.5 + SLACK


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def guarded(make_store: Make, private_valkey: EmbeddedServer, clock: Clock) -> AgentStore:
    """A store with a breaker of 2 s, on a server of its own."""
    return make_store(private_valkey.url, timeout=0.5, breaker=Breaker(2.0, clock))


def refused_untried(store: AgentStore) -> bool:
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as told:
        store.claim(CLAIM)
    untried = "not tried again yet" in str(told.value)
    assert not untried or time.monotonic() - began < 0.4
    return untried


def test_only_the_first_call_waits(guarded: AgentStore, private_valkey: EmbeddedServer) -> None:
    """Once a call has found the store silent, the next ones fail without trying."""
    private_valkey.pause()
    assert [refused_untried(guarded) for _ in range(4)] == [False, True, True, True]
    private_valkey.resume()


def test_after_the_pause_one_call_tries(
    guarded: AgentStore, private_valkey: EmbeddedServer, clock: Clock
) -> None:
    """While the store stays away, one call for each pause pays for a try."""
    private_valkey.crash()
    assert [refused_untried(guarded) for _ in range(2)] == [False, True]
    clock.now += 2.0
    assert [refused_untried(guarded) for _ in range(2)] == [False, True]


def test_a_store_that_is_back_is_used_after_the_pause(
    guarded: AgentStore, private_valkey: EmbeddedServer, clock: Clock
) -> None:
    """The first try that is answered lets all others through again."""
    private_valkey.pause()
    assert not refused_untried(guarded)
    private_valkey.resume()
    assert refused_untried(guarded)
    clock.now += 2.0
    assert guarded.claim(CLAIM).verdict is ClaimVerdict.RUN
    assert guarded.request(ORDER).applied


def test_a_refusal_of_the_servers_opens_no_breaker(
    guarded: AgentStore, private_valkey: EmbeddedServer
) -> None:
    """A server that answers, be it with an error, is worth asking again."""
    with Redis(port=private_valkey.port) as admin:
        admin.config_set("maxmemory", "1")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="not allowed"):
                guarded.announce(ALICE)


def test_a_damaged_record_opens_no_breaker(guarded: AgentStore, private_valkey: EmbeddedServer) -> None:
    """One task's damage is not an outage for the others."""
    with Redis(port=private_valkey.port) as admin:
        admin.set(guarded.keys.record("broken"), "not a hash", px=60_000)
    with pytest.raises(CancelTokenError):
        guarded.get("broken")
    assert guarded.claim(CLAIM).verdict is ClaimVerdict.RUN


# Many threads.


def test_a_crowd_is_served_by_a_slow_server(make_store: Make, lab: Lab, valkey_proxy: ToxicProxy) -> None:
    """To wait for one's turn is no outage, though all together it takes longer than the timeout."""
    store = make_store(valkey_proxy.url, timeout=0.4, connections=4)
    valkey_proxy.delay(0.05)
    start = threading.Barrier(32)
    seen: list[object] = []

    def ask(number: int) -> None:
        start.wait(10)
        try:
            seen.append(store.get(f"task-{number}"))
        except StoreUnavailableError as error:
            seen.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [None] * 32


def test_a_wait_leaves_no_connection_behind(make_store: Make, lab: Lab, valkey_proxy: ToxicProxy) -> None:
    """Who has waited for an end gives its connection back to the server."""
    store = make_store(valkey_proxy.url)
    store.owners()
    before = valkey_proxy.open_connections
    for _ in range(3):
        with store.end_of("task-7") as end:
            end.wait(0.01)
    wait_until(lambda: valkey_proxy.open_connections == before, description="the connections are closed")


def test_a_crowd_waits_no_longer_than_one(make_store: Make, frozen_valkey: EmbeddedServer) -> None:
    """With a breaker, those who wait for their turn at a silent server are told as soon as the first are."""
    store = make_store(frozen_valkey.url, timeout=0.5, connections=4, breaker=Breaker(2.0))
    start = threading.Barrier(40)
    waits: list[float] = []

    def ask() -> None:
        start.wait(10)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.claim(CLAIM)
        waits.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(waits) == 40
    assert max(waits) < 0.5 + SLACK


def test_threads_share_a_few_connections(make_store: Make, lab: Lab, valkey_proxy: ToxicProxy) -> None:
    """Forty threads get their answers over the four connections that the store may open."""
    store = make_store(valkey_proxy.url, connections=4)
    start = threading.Barrier(40)
    verdicts: list[ClaimVerdict] = []

    def run(number: int) -> None:
        start.wait(10)
        name = f"task-{number}"
        verdicts.append(store.claim(dataclasses.replace(CLAIM, task_id=name, execution_id=name)).verdict)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert verdicts == [ClaimVerdict.RUN] * 40
    assert valkey_proxy.accepted <= 4


def test_many_may_wait_at_once(make_store: Make, lab: Lab) -> None:
    """As many threads as there are connections wait for ends, and each still reads its record."""
    handles = []
    for number in range(8):
        task = lab.other(f"task-{number}")
        task.run("one")
        handles.append(revoke(lab.store, task.task_id))
        task.finish("one")
        task.settle("one")
    store = make_store(_url(lab), timeout=0.5, connections=8)
    start = threading.Barrier(8)
    seen: list[object] = []

    def wait(task_id: str) -> None:
        try:
            with store.end_of(task_id):
                start.wait(10)
                record = store.get(task_id)
                seen.append(record and record.state)
        except StoreUnavailableError as error:
            seen.append(error)

    threads = [threading.Thread(target=wait, args=(handle.task_id,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [State.SUCCEEDED] * 8


def _url(lab: Lab) -> str:
    options = lab.redis.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/{options['db']}"
