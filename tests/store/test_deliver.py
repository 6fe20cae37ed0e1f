"""What is wanted of an execution? Only the answer to this trips a token."""

from __future__ import annotations

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.store.answers import Delivery, DeliveryVerdict
from tests.store.conftest import BOB, Lab

NONE = Delivery(DeliveryVerdict.NONE)
SUPERSEDED = Delivery(DeliveryVerdict.SUPERSEDED)
VANISHED = Delivery(DeliveryVerdict.VANISHED)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("revoke", Cause.REVOKED), ("delete", Cause.DELETED), ("requeue", Cause.REQUEUED)],
)
def test_a_pending_request_is_delivered(lab: Lab, kind: str, cause: Cause) -> None:
    """The owner of a task learns what was asked, in whose words, and by whom."""
    lab.run("one")
    lab.request(kind)
    wanted = Cancellation(cause, "customer left", "alice")
    assert lab.deliver("one") == Delivery(DeliveryVerdict.DELIVER, wanted)


def test_a_request_without_words_is_delivered(lab: Lab) -> None:
    """No reason is no reason, not an empty one."""
    lab.run("one")
    lab.request(reason=None, actor=None)
    assert lab.deliver("one").cancellation == Cancellation(Cause.REVOKED, None, None)


def test_a_delivery_is_marked_with_its_time(lab: Lab) -> None:
    """The ladder shows when the worker knew."""
    lab.run("one")
    lab.request()
    assert "delivered_at" not in lab.fields
    lab.deliver("one")
    assert lab.fields["delivered_at"] >= lab.fields["requested_at"]


def test_a_delivery_is_repeated_and_keeps_its_time(lab: Lab) -> None:
    """Inbox and check may both deliver; the first one's time stays."""
    lab.run("one")
    lab.request()
    first = lab.deliver("one")
    with lab.unchanged():
        assert lab.deliver("one") == first


def test_without_a_request_nothing_is_wanted(lab: Lab) -> None:
    """A running task of which nothing was asked goes on."""
    lab.run("one")
    with lab.unchanged():
        assert lab.deliver("one") == NONE


@pytest.mark.parametrize("settled", [False, True])
def test_of_a_body_that_has_ended_nothing_is_wanted(lab: Lab, settled: bool) -> None:
    """An answered request is not delivered after the end."""
    lab.run("one")
    lab.request()
    lab.finish("one")
    if settled:
        lab.settle("one")
    with lab.unchanged():
        assert lab.deliver("one") == NONE


def test_an_execution_that_was_taken_over_is_superseded(lab: Lab) -> None:
    """A body whose id another execution owns is to stop, whatever was asked of the other."""
    lab.run("one")
    lab.run("two", owner=BOB, generation=1)
    with lab.unchanged():
        assert lab.deliver("one") == SUPERSEDED
    lab.request()
    with lab.unchanged():
        assert lab.deliver("one") == SUPERSEDED
    assert lab.deliver("two").verdict is DeliveryVerdict.DELIVER


def test_a_recovered_execution_is_superseded(lab: Lab) -> None:
    """A body that runs on after its worker was taken for dead is to stop."""
    lab.run("one")
    lab.recover()
    assert lab.deliver("one") == SUPERSEDED


def test_a_lost_record_has_vanished(lab: Lab) -> None:
    """Data loss is told from being superseded, and nothing is written."""
    lab.run("one")
    lab.remove()
    with lab.unchanged():
        assert lab.deliver("one") == VANISHED


def test_a_lost_record_with_a_new_request_has_vanished(lab: Lab) -> None:
    """A request alone says nothing of who runs: the record is to be written again first."""
    lab.run("one")
    lab.remove()
    lab.request()
    with lab.unchanged():
        assert lab.deliver("one") == VANISHED


def test_a_carried_request_waits_for_the_next_execution(lab: Lab) -> None:
    """A request that an ending has left unanswered is no longer the ended execution's."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.REPLACED)
    with lab.unchanged():
        assert lab.deliver("one") == NONE
    assert lab.fields["answer"] == "pending"


def test_many_are_answered_as_each_would_be(lab: Lab) -> None:
    """One round trip asks for all executions of a worker, and answers in their order."""
    quiet, revoked, superseded, vanished, ended = (lab.other(f"task-{n}") for n in range(5))
    for one in (quiet, revoked, superseded, vanished, ended):
        one.run("one")
    revoked.request()
    superseded.run("two", owner=BOB, generation=1)
    vanished.remove()
    ended.finish("one")
    asked = [(one.task_id, "one") for one in (quiet, revoked, superseded, vanished, ended)]
    answers = lab.store.deliver_many(asked)
    assert [answer.verdict for answer in answers] == [
        DeliveryVerdict.NONE,
        DeliveryVerdict.DELIVER,
        DeliveryVerdict.SUPERSEDED,
        DeliveryVerdict.VANISHED,
        DeliveryVerdict.NONE,
    ]
    assert answers == [lab.store.deliver(*one) for one in asked]
    assert "delivered_at" in revoked.fields


def test_none_at_all_are_answered_with_none(lab: Lab) -> None:
    """An idle worker may ask as well."""
    assert lab.store.deliver_many([]) == []


def test_a_body_that_started_without_the_store_is_not_superseded_by_the_retry_it_is(lab: Lab) -> None:
    """Nobody owns an ENQUEUED id: its wanted copy, which runs already, is not to be stopped."""
    lab.enqueued(1)
    # The claim of "two" got StoreUnavailableError; its body runs, and the agent's check asks for it.
    assert lab.deliver("two") != SUPERSEDED


def test_a_body_that_started_without_the_store_is_not_superseded_by_an_earlier_life(lab: Lab) -> None:
    """Nobody owns an ended id: its new life, which runs already, is not to be stopped."""
    lab.final()
    assert lab.deliver("two") != SUPERSEDED
