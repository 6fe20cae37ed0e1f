"""An agent's inbox: what wakes it, and what happens to wake-ups that nobody reads at once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.outcome import Ending
from celery_canceltoken.settings import Settings
from celery_canceltoken.store import AgentStore, ConnectionPlan
from celery_canceltoken.store.answers import InboxEntry
from celery_canceltoken.store.inbox_stream import INBOX_LENGTH, InboxStream
from tests.store.conftest import ALICE, BOB, Lab
from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until

PATIENCE = 10.0


@pytest.fixture
def inbox(store: AgentStore) -> Iterator[InboxStream]:
    """An inbox of ALICE's that has been read once: it is there, and empty."""
    inbox = store.inbox_of(ALICE)
    assert inbox.read() == []
    yield inbox
    inbox.close()


def told(entries: list[InboxEntry]) -> list[tuple[str, str]]:
    return [(entry.task_id, entry.execution_id) for entry in entries]


def ask(lab: Lab, task_id: str, execution: str = "one", owner: str = ALICE) -> None:
    """Have a task of the owner's run, and ask it to stop."""
    task = lab.other(task_id)
    task.run(execution, owner=owner)
    assert task.request().applied


def reading(inbox: InboxStream) -> tuple[threading.Thread, list[object]]:
    """Read once on a thread of its own; the list gets what came of it."""
    seen: list[object] = []

    def read() -> None:
        try:
            seen.append(inbox.read())
        except Exception as error:
            seen.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, seen


def blocked(redis: Redis) -> int:
    return int(redis.info("clients")["blocked_clients"])


def test_a_request_wakes_the_owner(lab: Lab, inbox: InboxStream) -> None:
    """Asking something of a running task tells its agent where to look."""
    ask(lab, "task-7")
    assert told(inbox.read()) == [("task-7", "one")]


def test_wake_ups_come_in_order_and_once(lab: Lab, inbox: InboxStream) -> None:
    """What has been read is not read again, and nothing is passed over."""
    for number in range(3):
        ask(lab, f"task-{number}")
    assert told(inbox.read()) == [("task-0", "one"), ("task-1", "one"), ("task-2", "one")]
    ask(lab, "task-3", "two")
    assert told(inbox.read()) == [("task-3", "two")]


def test_a_waiting_reader_is_woken(lab: Lab, inbox: InboxStream) -> None:
    """A read that has found nothing ends with the first wake-up."""
    before = blocked(lab.redis)
    thread, seen = reading(inbox)
    wait_until(lambda: blocked(lab.redis) > before, description="the reader waits")
    ask(lab, "task-7")
    thread.join(PATIENCE)
    assert [told(entries) for entries in seen if isinstance(entries, list)] == [[("task-7", "one")]]


def test_incarnations_share_an_inbox(lab: Lab, inbox: InboxStream) -> None:
    """An agent that came back after a lapsed lease hears on the same stream."""
    ask(lab, "task-7", owner="alice.2")
    assert told(inbox.read()) == [("task-7", "one")]


def test_agents_do_not_hear_each_others(lab: Lab, inbox: InboxStream) -> None:
    """A wake-up goes to the owner of the task alone."""
    bobs = lab.store.inbox_of(BOB)
    bobs.read()
    ask(lab, "task-1", owner=BOB)
    ask(lab, "task-2", owner=ALICE)
    assert told(inbox.read()) == [("task-2", "one")]
    assert told(bobs.read()) == [("task-1", "one")]
    bobs.close()


def test_a_client_makes_no_inbox(lab: Lab) -> None:
    """A request to an agent without an inbox is applied, and leaves no stream behind."""
    ask(lab, "task-7")
    assert not lab.redis.exists(lab.store.keys.inbox(ALICE))


@pytest.mark.parametrize("place", ["unseen", "waiting", "ended"])
def test_where_nobody_runs_nobody_is_woken(lab: Lab, inbox: InboxStream, place: str) -> None:
    """A task that does not run has no body to be told."""
    if place == "waiting":
        lab.enqueued(1)
    elif place == "ended":
        lab.finishing(Ending.RETURNED)
    lab.request()
    assert lab.redis.xlen(lab.store.keys.inbox(ALICE)) == 1


def test_a_refused_request_wakes_nobody(lab: Lab, inbox: InboxStream) -> None:
    """What changes nothing is not announced."""
    ask(lab, "task-7")
    inbox.read()
    assert not lab.other("task-7").request("revoke", "second").applied
    assert lab.redis.xlen(lab.store.keys.inbox(ALICE)) == 2


def test_a_repeated_request_wakes_once(lab: Lab, inbox: InboxStream) -> None:
    """A request whose answer was lost is not announced twice."""
    ask(lab, "task-7")
    assert lab.other("task-7").request().applied
    assert lab.redis.xlen(lab.store.keys.inbox(ALICE)) == 2


def test_a_higher_request_wakes_again(lab: Lab, inbox: InboxStream) -> None:
    """More than was asked before is announced as well."""
    ask(lab, "task-7")
    inbox.read()
    lab.other("task-7").request("delete", "second")
    assert told(inbox.read()) == [("task-7", "one")]


@pytest.mark.parametrize("owner", ["", "nodot", "alice.", ".1", "alice.x"])
def test_an_owner_of_no_known_form_wakes_nobody(lab: Lab, owner: str) -> None:
    """A request to a strange owner is applied all the same."""
    lab.run("one")
    lab.set(owner=owner) if owner else lab.remove("owner")
    assert lab.request().applied
    assert [key for key in lab.redis.keys(f"{lab.store.keys.prefix}*") if ":inbox:" in key] == []


def test_an_incarnation_is_a_number(lab: Lab, inbox: InboxStream) -> None:
    """What follows the last dot of an owner has to be one, or it is no agent's."""
    lab.run("one")
    lab.set(owner="alice.x")
    assert lab.request().applied
    assert lab.redis.xlen(lab.store.keys.inbox(ALICE)) == 1


def test_an_idle_read_ends_by_itself(lab: Lab, valkey: EmbeddedServer, settings: Settings) -> None:
    """Without a wake-up a read comes back empty after two heartbeats, so that its thread can look around."""
    short = dataclasses.replace(settings, heartbeat_interval=0.05)
    store = AgentStore(ConnectionPlan(valkey.url), short)
    inbox = store.inbox_of(ALICE)
    inbox.read()
    began = time.monotonic()
    assert inbox.read() == []
    assert 0.09 <= time.monotonic() - began < PATIENCE
    inbox.close()
    store.close()


def test_what_was_left_between_two_reads_is_read(lab: Lab, inbox: InboxStream) -> None:
    """The stream keeps what arrives while its agent is busy."""
    ask(lab, "task-1")
    ask(lab, "task-2")
    assert told(inbox.read()) == [("task-1", "one"), ("task-2", "one")]


def test_a_stream_that_was_there_before_is_read_from_its_start(lab: Lab) -> None:
    """A reader that comes late misses nothing."""
    inbox = lab.store.inbox_of(ALICE)
    inbox.read()
    inbox.close()
    ask(lab, "task-7")
    late = lab.store.inbox_of(ALICE)
    assert told(late.read()) == [("task-7", "one")]
    late.close()


def test_what_arrives_while_the_connection_is_lost_is_read_afterwards(
    lab: Lab, valkey_proxy: ToxicProxy, impatient_settings: Settings
) -> None:
    """Wake-ups outlive the connection of their reader."""
    store = AgentStore(ConnectionPlan(valkey_proxy.url), impatient_settings)
    inbox = store.inbox_of(ALICE)
    inbox.read()
    ask(lab, "task-1")
    assert told(inbox.read()) == [("task-1", "one")]
    valkey_proxy.cut()
    with pytest.raises(StoreUnavailableError):
        inbox.read()
    ask(lab, "task-2")
    valkey_proxy.heal()
    assert told(inbox.read()) == [("task-2", "one")]
    inbox.close()
    store.close()


def test_a_waiting_reader_survives_the_loss_of_its_connection(
    lab: Lab, valkey_proxy: ToxicProxy, impatient_settings: Settings
) -> None:
    """A connection that is reset under a waiting read costs no wake-up."""
    store = AgentStore(ConnectionPlan(valkey_proxy.url), impatient_settings)
    inbox = store.inbox_of(ALICE)
    inbox.read()
    before = blocked(lab.redis)
    thread, seen = reading(inbox)
    wait_until(lambda: blocked(lab.redis) > before, description="the reader waits")
    valkey_proxy.reset_connections()
    ask(lab, "task-7")
    thread.join(PATIENCE)
    # It may have connected again by itself, or have left that to its caller.
    if isinstance(seen[0], StoreUnavailableError):
        seen.append(inbox.read())
    (entries,) = [one for one in seen if isinstance(one, list)]
    assert told(entries) == [("task-7", "one")]
    inbox.close()
    store.close()


def test_a_server_that_came_back_empty_is_given_a_new_stream(
    private_valkey: EmbeddedServer, impatient_settings: Settings
) -> None:
    """After data loss the agent is heard of again as soon as it reads."""
    store = AgentStore(ConnectionPlan(private_valkey.url), impatient_settings)
    with Redis(port=private_valkey.port, decode_responses=True) as redis:
        lab = Lab(store, redis)
        inbox = store.inbox_of(ALICE)
        inbox.read()
        private_valkey.crash()
        with pytest.raises(StoreUnavailableError):
            inbox.read()
        inbox.lost()
        private_valkey.restart()
        assert inbox.read() == []
        ask(lab, "task-7")
        assert told(inbox.read()) == [("task-7", "one")]
        assert redis.pttl(store.keys.inbox(ALICE)) > 0
        inbox.close()
        store.close()


def test_a_stream_that_was_evicted_is_made_again(
    valkey: EmbeddedServer, lab: Lab, settings: Settings
) -> None:
    """Data loss that no connection tells of is noticed after an idle read."""
    short = dataclasses.replace(settings, heartbeat_interval=0.05)
    store = AgentStore(ConnectionPlan(valkey.url), short)
    inbox = store.inbox_of(ALICE)
    inbox.read()
    lab.redis.delete(store.keys.inbox(ALICE))
    assert inbox.read() == []
    inbox.read()
    ask(lab, "task-7")
    assert told(inbox.read()) == [("task-7", "one")]
    inbox.close()
    store.close()


def test_a_wake_ends_a_waiting_read(lab: Lab, inbox: InboxStream) -> None:
    """Whoever stops the agent does not wait for the end of its read."""
    before = blocked(lab.redis)
    thread, _ = reading(inbox)
    wait_until(lambda: blocked(lab.redis) > before, description="the reader waits")
    lab.store.wake(ALICE)
    thread.join(5.0)
    assert not thread.is_alive()


def test_an_inbox_does_not_grow_for_ever(lab: Lab, inbox: InboxStream) -> None:
    """An agent that does not read keeps about as many wake-ups as the check can make up for."""
    key = lab.store.keys.inbox(ALICE)
    with lab.redis.pipeline(transaction=False) as pipeline:
        for _ in range(3 * INBOX_LENGTH):
            pipeline.xadd(key, {"task": "earlier", "execution": "one"})
        pipeline.execute()
    ask(lab, "task-7")
    assert lab.redis.xlen(key) < 2 * INBOX_LENGTH
    ((_, newest),) = lab.redis.xrevrange(key, count=1)
    assert newest == {"task": "task-7", "execution": "one"}


def test_what_is_no_wake_up_is_passed_over(lab: Lab, inbox: InboxStream) -> None:
    """An entry of another kind does no harm, and those behind it are read."""
    key = lab.store.keys.inbox(ALICE)
    lab.redis.xadd(key, {"weather": "fine"})
    lab.redis.xadd(key, {"task": "task-7"})
    lab.redis.xadd(key, {"execution": "one"})
    assert told(inbox.read()) == [("", "one")]
