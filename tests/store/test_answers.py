"""An order that was applied is answered, whatever is asked of the task after it."""

from __future__ import annotations

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.record import Change
from celery_canceltoken.states import State
from tests.store.conftest import ALICE, Lab


def answers_to(lab: Lab, request_id: str) -> list[Change]:
    """What the history says became of a request."""
    record = lab.store.get(lab.task_id)
    assert record is not None
    return [one for one in record.history if one.request_id == request_id and one.answer != "pending"]


@pytest.mark.parametrize(
    ("ending", "answer", "state"),
    [
        (Ending.CANCELLED, "effective", State.REVOKED),
        (Ending.RETURNED, "too-late", State.SUCCEEDED),
        (Ending.RAISED, "too-late", State.FAILED),
    ],
)
def test_a_requeue_in_between_does_not_swallow_the_answer(
    lab: Lab, ending: Ending, answer: str, state: State
) -> None:
    """A requeue that comes between the end of a body and its settlement leaves the revoke its answer."""
    lab.run("one")
    lab.set(message="{}")
    lab.request("revoke", "first", reason="first")
    lab.finish("one", ending, cause=Cause.REVOKED, observed=ending is Ending.CANCELLED)
    assert lab.request("requeue", "second").applied
    (change,) = answers_to(lab, "first")
    assert (change.answer, change.state, change.reason) == (answer, state, "first")
    lab.settle("one")
    assert [one.answer for one in answers_to(lab, "second")] == ["effective"]
    assert lab.state == "ENQUEUED"


def test_what_overrules_an_order_that_the_body_heard_is_not_withdrawn(lab: Lab) -> None:
    """A body that was told to stop cannot be told otherwise: what has overruled that order stands."""
    lab.store.announce(ALICE)
    lab.run("one")
    lab.request("requeue", "first")
    assert lab.deliver("one").cancellation is not None
    assert lab.request("revoke", "second").applied
    assert lab.withdraw("second").why == "delivered"
    lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    lab.settle("one")
    assert [one.answer for one in answers_to(lab, "first")] == ["overruled"]
    assert [one.answer for one in answers_to(lab, "second")] == ["effective"]
    assert lab.state == "REVOKED"


def test_what_overrules_an_order_that_nobody_heard_is_withdrawn(lab: Lab) -> None:
    """Where the body was not told of the order that was overruled, it runs on."""
    lab.store.announce(ALICE)
    lab.run("one")
    lab.request("requeue", "first")
    lab.request("revoke", "second")
    assert lab.withdraw("second").applied
    lab.finish("one")
    lab.settle("one")
    assert lab.state == "SUCCEEDED"


def test_only_the_order_that_sent_it_back_says_that_the_run_had_completed(lab: Lab) -> None:
    """A later order about the task that waits now has nothing to do with the run before it."""
    lab.store.announce(ALICE)
    lab.run("one")
    lab.request("requeue", "first")
    lab.finish("one", Ending.RETURNED)
    lab.request("revoke", "second")
    assert lab.withdraw("second").applied
    assert [one.completed for one in answers_to(lab, "first")] == [True]
    assert [one.completed for one in answers_to(lab, "second")] == [False]
