"""Messages that are to go back to their queue, until the broker has them."""

from __future__ import annotations

import time

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.store.answers import Enqueued
from tests.store.conftest import KEPT, Lab


def let_it_wait(lab: Lab, *others: Lab) -> None:
    """As if each had waited for a minute."""
    for one in (lab, *others):
        score = lab.redis.zscore(lab.store.keys.outbox, one.task_id)
        assert score is not None
        lab.redis.zadd(lab.store.keys.outbox, {one.task_id: score - 60_000_000})


def test_what_was_published_waits_no_more(lab: Lab) -> None:
    """Neither the record nor the outbox says so."""
    lab.requeued()
    assert lab.published(1)
    assert "outbox" not in lab.fields
    assert not lab.in_outbox
    assert lab.state == "ENQUEUED"


def test_it_is_said_once(lab: Lab) -> None:
    """The same again changes nothing."""
    lab.requeued()
    lab.published(1)
    with lab.unchanged():
        assert not lab.published(1)


@pytest.mark.parametrize("generation", [0, 2, -1])
def test_another_generation_goes_on_waiting(lab: Lab, generation: int) -> None:
    """Who has published an older message does not speak for the newer."""
    lab.requeued()
    with lab.unchanged():
        assert not lab.published(generation)
    assert lab.in_outbox


def test_the_word_of_a_slow_publisher_comes_too_late(lab: Lab) -> None:
    """After the id was moved again, the first message being out is no reason not to send the second."""
    lab.enqueue()
    lab.request("requeue", "first", wanted_eta=9_000_000_000_000_000)
    lab.request("requeue", "second", wanted_eta=9_100_000_000_000_000)
    assert not lab.published(1)
    assert lab.fields["outbox"] == "2"
    assert lab.in_outbox


def test_the_outbox_is_tidied_by_whoever_finds_nothing_to_send(lab: Lab) -> None:
    """A task that was claimed in the meantime leaves the outbox, whatever its generation."""
    lab.requeued()
    lab.run("two", generation=1)
    assert not lab.published(-1)
    assert not lab.in_outbox
    assert lab.state == "PROCESSING"


def test_a_record_that_is_gone_leaves_the_outbox(lab: Lab) -> None:
    """There is nothing to send of it."""
    lab.requeued()
    lab.remove()
    assert not lab.published(1)
    assert not lab.in_outbox
    assert lab.fields == {}


def test_a_message_that_has_just_come_is_its_senders(lab: Lab) -> None:
    """For some seconds nobody else takes it for forgotten."""
    lab.requeued()
    assert lab.store.in_outbox(10) == []


def test_a_message_that_has_waited_is_anybodys(lab: Lab) -> None:
    """And whoever was told of it has it to itself for some seconds."""
    lab.requeued()
    let_it_wait(lab)
    assert lab.store.in_outbox(10) == [lab.task_id]
    assert lab.store.in_outbox(10) == []
    assert lab.in_outbox


def test_patience_is_a_matter_of_seconds(lab: Lab) -> None:
    """What was forgotten is found soon."""
    lab.requeued()
    score = float(lab.redis.time()[0] - 4) * 1_000_000
    lab.redis.zadd(lab.store.keys.outbox, {lab.task_id: score})
    assert lab.store.in_outbox(10) == [lab.task_id]


def test_the_oldest_come_first_and_no_more_than_asked_for(lab: Lab) -> None:
    """A janitor takes a bite at a time."""
    labs = [lab.other(f"task-{number}") for number in range(5)]
    for one in labs:
        one.requeued()
    let_it_wait(*labs)
    assert lab.store.in_outbox(2) == ["task-0", "task-1"]
    assert lab.store.in_outbox(10) == ["task-2", "task-3", "task-4"]


def test_an_empty_outbox_has_nothing(lab: Lab) -> None:
    """And asking it makes no key."""
    assert lab.store.in_outbox(10) == []
    assert lab.redis.exists(lab.store.keys.outbox) == 0


def test_what_waits_is_told_with_its_message(lab: Lab) -> None:
    """Generation, time and message: all that is needed to send it."""
    lab.final(Ending.RAISED, message=KEPT)
    lab.request("requeue", wanted_eta=9_000_000_000_000_000)
    assert lab.store.outbox_of(lab.task_id) == (Enqueued(1, 9_000_000_000_000_000), KEPT)


def test_where_nothing_waits_nothing_is_told(lab: Lab) -> None:
    """A task that runs, or that nobody knows, has nothing in the outbox."""
    assert lab.store.outbox_of(lab.task_id) == (None, None)
    lab.run("one", message=KEPT)
    assert lab.store.outbox_of(lab.task_id) == (None, KEPT)


def test_what_its_worker_is_to_send_waits_as_well(lab: Lab) -> None:
    """If the worker dies between the end of the body and the broker, the message is not lost."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    let_it_wait(lab)
    assert lab.store.in_outbox(10) == [lab.task_id]
    assert lab.store.outbox_of(lab.task_id) == (Enqueued(1), KEPT)


def test_a_retry_waits_for_nobody(lab: Lab) -> None:
    """Celery has published it already."""
    lab.run("one", message=KEPT)
    lab.finish("one", Ending.RETRIED)
    assert "outbox" not in lab.fields
    assert not lab.in_outbox


def test_a_copy_that_ran_without_the_store_is_waited_for_no_more(lab: Lab) -> None:
    """What nobody could say at its start its end says: the message was out, and has run."""
    lab.requeued()
    lab.start_without_the_store("two", generation=1)
    assert lab.finish("two", unclaimed=True).recorded
    assert {"outbox", "eta"} & set(lab.fields) == set()


def test_waiting_is_measured_by_the_servers_clock(lab: Lab) -> None:
    """The time at which a message began to wait is the store's."""
    before = lab.redis.time()
    lab.requeued()
    score = lab.redis.zscore(lab.store.keys.outbox, lab.task_id)
    assert score is not None
    assert before[0] * 1_000_000 + before[1] <= score
    assert abs(score / 1_000_000 - time.time()) < 3600


def test_what_came_by_another_broker_is_left_to_its_own_agents(lab: Lab) -> None:
    """Apps with brokers of their own may share a store: none sends, or holds up, what is another's."""
    lab.final(Ending.RAISED, message=KEPT, broker="theirs")
    assert lab.request("requeue", "requeue").applied
    let_it_wait(lab)
    assert lab.store.in_outbox(10, "ours") == []
    assert lab.store.in_outbox(10, "theirs") == [lab.task_id]


def test_many_of_another_broker_hide_none_of_ours(lab: Lab) -> None:
    """Those that are passed over do not count as found."""
    others = [lab.other(f"other-{number}") for number in range(5)]
    for one in others:
        one.final(Ending.RAISED, message=KEPT, broker="theirs")
        one.request("requeue", "requeue")
    lab.final(Ending.RAISED, message=KEPT, broker="ours")
    lab.request("requeue", "requeue")
    let_it_wait(lab, *others)
    assert lab.store.in_outbox(1, "ours") == [lab.task_id]
