"""Orders as steps: what is done outside of them, and what happens where that goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult, GroupResult

from celery_canceltoken.app_side import ids_of
from celery_canceltoken.control.steps import Ask, Broadcast, EndResult, ForgetResult, Publish, Steps, perform
from celery_canceltoken.errors import RecordUnreadableError, StoreUnavailableError
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store.agent_store import AgentStore
from celery_canceltoken.store.answers import Claim, Ended, Enqueued
from celery_canceltoken.store.connect import ConnectionPlan
from tests.support import orders
from tests.support.orders import MESSAGE, WrittenDown
from tests.support.servers import EmbeddedServer
from tests.support.workers import unique_name


@pytest.fixture
def store(valkey: EmbeddedServer) -> Iterator[AgentStore]:
    """A store of this test's own."""
    store = AgentStore(ConnectionPlan(valkey.url), Settings(prefix=unique_name("steps"), store_timeout=5.0))
    yield store
    store.close()


@pytest.fixture
def no_store() -> Iterator[AgentStore]:
    """A store whose server is not there."""
    store = AgentStore(ConnectionPlan("redis://127.0.0.1:1/0"), Settings(store_timeout=0.2))
    yield store
    store.close()


def failed(store: AgentStore) -> None:
    """The task has run, has failed, and its message is kept."""
    claim = Claim("id", "one", "alice.1", "celery@alice", "send", 0, False, "shop.export", True, False)
    store.claim(claim, message=MESSAGE.to_json())
    record = store.get("id")
    assert record is not None
    store.recover(record, owner="bob.1", worker="celery@bob", recovery_id="recovery")
    store.settle("bob.1", [Ended("recovery", "id")])


# perform.


def test_steps_are_taken_in_order(store: AgentStore) -> None:
    """Each by whom it concerns, and each is given its answer."""

    def steps() -> Steps[Any]:
        seen = [(yield Ask([store.calls.read("id"), store.calls.message("id")]))]
        seen.append((yield Publish("id", MESSAGE, Enqueued(1))))
        seen.append((yield EndResult("id", None, "why")))
        seen.append((yield ForgetResult("id", "shop.export")))
        seen.append((yield Broadcast(["id", "other"])))
        return seen

    celery = WrittenDown()
    assert perform(steps(), store, celery) == [[None, None], None, None, None, None]
    assert celery.done == [
        ("publish", MESSAGE, Enqueued(1)),
        ("end_result", "id", None, "why"),
        ("forget_result", "id", "shop.export"),
        ("broadcast", "id", "other"),
    ]


def test_nothing_to_do_is_done(store: AgentStore) -> None:
    """Steps may come to their answer by themselves."""

    def steps() -> Steps[str]:
        return "done"
        yield

    assert perform(steps(), store, WrittenDown()) == "done"


def test_what_goes_wrong_is_raised_where_the_step_was_taken(store: AgentStore) -> None:
    """So an order can go on with something else."""

    def steps() -> Steps[str]:
        try:
            yield ForgetResult("id", None)
        except RuntimeError as error:
            yield Broadcast([str(error)])
        return "went on"

    celery = WrittenDown(forget_result=RuntimeError("backend"))
    assert perform(steps(), store, celery) == "went on"
    assert celery.done == [("broadcast", "backend")]


@pytest.mark.parametrize("step", [Publish("id", MESSAGE, Enqueued(1)), ForgetResult("id", None)], ids=repr)
def test_what_an_order_does_not_mend_is_raised(store: AgentStore, step: Any) -> None:
    """As it was."""

    def steps() -> Steps[None]:
        yield step

    celery = WrittenDown(publish=OSError("broker"), forget_result=OSError("backend"))
    with pytest.raises(OSError, match=r"broker|backend"):
        perform(steps(), store, celery)


def test_a_store_that_is_away_is_raised_into_the_step(no_store: AgentStore) -> None:
    """Typed, as from the store itself."""

    def steps() -> Steps[str]:
        try:
            yield Ask([no_store.calls.read("id")])
        except StoreUnavailableError:
            return "without the store"
        return "?"

    assert perform(steps(), no_store, WrittenDown()) == "without the store"


# Orders that meet trouble.


def test_a_revoke_without_a_store_may_be_broadcast(no_store: AgentStore) -> None:
    """Celery's own revoke is sent instead, and the handle says so."""
    celery = WrittenDown()
    handle = orders.revoke(no_store, "id", store_down="broadcast", celery=celery)
    assert (handle.applied, handle.broadcast) == (False, True)
    assert celery.done == [("broadcast", "id")]


def test_a_revoke_without_a_store_is_an_error_otherwise(no_store: AgentStore) -> None:
    """Nobody is told anything."""
    celery = WrittenDown()
    with pytest.raises(StoreUnavailableError):
        orders.revoke(no_store, "id", celery=celery)
    assert celery.done == []


def test_a_requeue_is_published_and_said_to_be(store: AgentStore) -> None:
    """Celery's former result is forgotten first, so that the next one can be written."""
    failed(store)
    celery = WrittenDown()
    assert orders.requeue(store, "id", celery=celery)
    assert celery.done == [("forget_result", "id", "shop.export"), ("publish", MESSAGE, Enqueued(1))]
    assert store.outbox_of("id")[0] is None


@pytest.mark.parametrize("step", ["publish", "forget_result"])
def test_a_requeue_that_the_broker_did_not_take_waits_in_the_outbox(store: AgentStore, step: str) -> None:
    """It is applied all the same: a worker sends it later."""
    failed(store)
    assert orders.requeue(store, "id", celery=WrittenDown(**{step: OSError("away")}))
    assert store.outbox_of("id")[0] == Enqueued(1)


def test_a_deletion_ends_the_result_at_once(store: AgentStore) -> None:
    """In the words of whoever deleted it, by the backend of its task."""
    celery = WrittenDown()
    store.claim(Claim("id", "one", "alice.1", "w", "send", 0, False, "shop.export", True, False))
    assert orders.delete(store, "id", reason="gone", celery=celery)
    assert orders.delete(store, "unseen", celery=celery)
    assert celery.done == [
        ("end_result", "id", "shop.export", "gone"),
        ("end_result", "unseen", None, "deleted"),
    ]


def test_a_deletion_that_is_refused_ends_nothing(store: AgentStore) -> None:
    """The result of a task that has ended is left as it is."""
    failed(store)
    celery = WrittenDown()
    handle = orders.delete(store, "id", celery=celery)
    assert (handle.applied, handle.previous) == (False, State.FAILED)
    assert celery.done == []


def test_a_deletion_whose_result_cannot_be_written_is_applied(store: AgentStore) -> None:
    """The worker writes it as well."""
    assert orders.delete(store, "id", celery=WrittenDown(end_result=OSError("backend")))


@pytest.mark.parametrize(("kind", "done"), [("delete", [("forget_result", "id", None)]), ("revoke", [])])
def test_a_withdrawn_deletion_takes_its_result_along(store: AgentStore, kind: str, done: list[Any]) -> None:
    """Only a delete had written one."""
    getattr(orders, kind)(store, "id")
    celery = WrittenDown()
    assert orders.withdraw(store, "id", celery=celery)
    assert celery.done == done


def test_an_unreadable_record_is_an_error(store: AgentStore, valkey: EmbeddedServer) -> None:
    """Nothing of Celery's is touched."""
    store._client.hset(store.keys.record("id"), mapping={"v": "2"})
    celery = WrittenDown()
    for order in (orders.revoke, orders.delete, orders.requeue, orders.withdraw):
        with pytest.raises(RecordUnreadableError):
            order(store, "id", celery=celery)
    assert celery.done == []


# Which tasks a result knows of.


@pytest.fixture
def app() -> Celery:
    """An app of no store."""
    return Celery("shop", set_as_current=False, broker="memory://", backend="cache+memory://")


def test_the_ids_of_a_result(app: Celery) -> None:
    """One result is one task."""
    assert ids_of(app.AsyncResult("a"), with_parents=False) == ["a"]


def test_the_ids_of_a_group(app: Celery) -> None:
    """Its members in order, those of groups within it as well, each once; a group has no id of a task."""
    a, b, c = map(app.AsyncResult, "abc")
    inner = GroupResult("inner", [b, c], app=app)
    assert ids_of(GroupResult("outer", [a, inner, b], app=app), with_parents=False) == ["a", "b", "c"]


def test_what_led_to_a_result_is_known_with_it(app: Celery) -> None:
    """A chain's result is that of its last task; its parents are the tasks before."""
    first = app.AsyncResult("first")
    middle = AsyncResult("middle", parent=first, app=app)
    last = AsyncResult("last", parent=middle, app=app)
    assert set(ids_of(last, with_parents=True)) == {"first", "middle", "last"}
    assert ids_of(last, with_parents=False) == ["last"]


def test_what_led_to_a_group_is_known_with_it(app: Celery) -> None:
    """A chord's header is the parent of its body."""
    first = app.AsyncResult("first")
    header = GroupResult("header", [app.AsyncResult("a"), app.AsyncResult("b")], parent=first, app=app)
    body = AsyncResult("body", parent=header, app=app)
    assert set(ids_of(body, with_parents=True)) == {"first", "a", "b", "body"}


def test_results_in_a_circle_end(app: Celery) -> None:
    """Whatever somebody has put together."""
    a, b = app.AsyncResult("a"), app.AsyncResult("b")
    a.parent, b.parent = b, a
    assert set(ids_of(a, with_parents=True)) == {"a", "b"}


@pytest.mark.parametrize("nothing", [None, "id", 7, []], ids=repr)
def test_what_is_no_result_has_no_ids(nothing: Any) -> None:
    """Nor is it an error: the checks have the words for it."""
    assert ids_of(nothing, with_parents=True) == []


def test_an_empty_group_has_no_ids(app: Celery) -> None:
    """Nothing to ask of nobody."""
    assert ids_of(GroupResult("group", [], app=app), with_parents=True) == []
