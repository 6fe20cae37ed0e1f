"""Taking back what was asked of a task, as long as nobody has heeded it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import FINAL_STATES, State
from celery_canceltoken.store.answers import ClaimVerdict, DeliveryVerdict, RequestAnswer
from tests.store.conftest import BOB, KEPT, Lab

KINDS = pytest.mark.parametrize("kind", ["requeue", "revoke", "delete"])


def applied(state: State | None, kind: str = "revoke") -> RequestAnswer:
    return RequestAnswer(True, "", state, withdrawn_kind=kind)


def refused(why: str, state: State | None = None) -> RequestAnswer:
    return RequestAnswer(False, why, state)


# In every state.


def test_of_an_unseen_id_there_is_nothing_to_take_back(lab: Lab) -> None:
    """Nothing was asked, and nothing is written."""
    assert lab.withdraw() == refused("nothing")
    assert lab.fields == {}


@pytest.mark.parametrize("kind", ["revoke", "delete"])
def test_what_waits_for_an_unseen_id_is_taken_back(lab: Lab, kind: str) -> None:
    """The message that comes after all runs."""
    lab.request(kind)
    assert lab.withdraw() == applied(None, kind)
    lab.run("one")
    assert lab.deliver().verdict is DeliveryVerdict.NONE


def test_what_waits_for_a_retry_is_taken_back(lab: Lab) -> None:
    """The next execution runs as if nothing had been asked."""
    lab.enqueued(1)
    lab.request()
    assert lab.withdraw() == applied(State.ENQUEUED)
    lab.run("two", generation=1)


def test_what_waits_for_a_scheduled_task_is_taken_back(lab: Lab) -> None:
    """So does one that waits for its time."""
    lab.enqueue(eta="9000000000000000")
    lab.request()
    assert lab.withdraw() == applied(State.SCHEDULED)
    lab.run("one")


@KINDS
def test_what_a_running_body_does_not_know_yet_is_taken_back(lab: Lab, kind: str) -> None:
    """Its worker is told nothing, and its end is an ordinary one."""
    lab.run("one", message=KEPT)
    lab.request(kind)
    assert lab.withdraw() == applied(State.PROCESSING, kind)
    assert lab.deliver().verdict is DeliveryVerdict.NONE
    lab.finish("one")
    lab.settle()
    assert lab.state == "SUCCEEDED"


@KINDS
def test_what_the_body_has_been_told_stays(lab: Lab, kind: str) -> None:
    """A token that has tripped does not untrip."""
    lab.run("one")
    lab.request(kind)
    lab.deliver()
    with lab.unchanged():
        assert lab.withdraw() == refused("delivered", State.PROCESSING)


def test_a_running_task_of_which_nothing_is_asked(lab: Lab) -> None:
    """There is nothing to take back."""
    lab.run("one")
    with lab.unchanged():
        assert lab.withdraw() == refused("nothing", State.PROCESSING)


def test_what_a_finish_has_answered_stays(lab: Lab) -> None:
    """A request that was heeded, though its end is not final yet, cannot be taken back."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)
    with lab.unchanged():
        assert lab.withdraw() == refused("finishing", State.FINISHING)


def test_what_a_claim_has_answered_stays(lab: Lab) -> None:
    """A task that was denied has been stopped."""
    lab.request()
    assert lab.claim("one").verdict is ClaimVerdict.DENIED
    with lab.unchanged():
        assert lab.withdraw() == refused("finishing", State.FINISHING)


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_of_an_ended_task_nothing_is_taken_back(lab: Lab, state: State) -> None:
    """What has ended has heeded, or come too late for, all that was asked."""
    lab.run("one")
    lab.request()
    lab.finish("one")
    lab.settle(instead=state)
    with lab.unchanged():
        assert lab.withdraw() == refused("final", state)


def test_a_requeue_that_was_done_at_once_is_not_taken_back(lab: Lab) -> None:
    """Its message may be out already."""
    lab.requeued()
    with lab.unchanged():
        assert lab.withdraw() == refused("nothing", State.ENQUEUED)


# Races: whoever comes first.


@pytest.mark.parametrize(
    "heed",
    [
        lambda lab: lab.deliver(),
        lambda lab: lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True),
        lambda lab: lab.finish("one", Ending.RETURNED),
        lambda lab: lab.recover(),
        lambda lab: lab.claim("two", owner=BOB, generation=1),
    ],
    ids=["deliver", "finish-stopped", "finish-returned", "recover", "claim"],
)
def test_whoever_heeds_first_wins(lab: Lab, heed: Callable[[Lab], object]) -> None:
    """Between a request and its effect there is one step after which it cannot be taken back."""
    lab.run("one")
    lab.request()
    heed(lab)
    assert not lab.withdraw().applied
    assert lab.fields["answer"] != "withdrawn"


@pytest.mark.parametrize(
    ("go_on", "state"),
    [
        (lambda lab: lab.deliver(), "PROCESSING"),
        (lambda lab: lab.finish("one", Ending.RETURNED), "FINISHING"),
        (lambda lab: lab.recover(), "FINISHING"),
        (lambda lab: lab.run("two", owner=BOB, generation=1), "PROCESSING"),
    ],
    ids=["deliver", "finish", "recover", "claim"],
)
def test_what_was_withdrawn_first_is_not_heeded(lab: Lab, go_on: Callable[[Lab], object], state: str) -> None:
    """After a withdrawal nobody acts on the request any more."""
    lab.run("one")
    lab.request()
    assert lab.withdraw().applied
    go_on(lab)
    assert lab.state == state
    assert lab.fields.get("outcome") != "REVOKED"
    assert [line for line in lab.history if "request:" in line][1] == "PROCESSING request:withdrawn"


# Which request, and whose state.


def test_a_request_is_taken_back_by_its_id(lab: Lab) -> None:
    """Who holds the handle of what is pending takes that back."""
    lab.run("one")
    lab.request("revoke", "mine")
    assert lab.withdraw(request_id="mine").applied


def test_somebody_elses_request_is_not_taken_back(lab: Lab) -> None:
    """With another request's id nothing changes."""
    lab.run("one")
    lab.request("revoke", "theirs")
    with lab.unchanged():
        assert lab.withdraw(request_id="mine") == refused("nothing", State.PROCESSING)


def test_an_overruled_request_is_not_taken_back(lab: Lab) -> None:
    """What another request has replaced has its answer already, and the other one stays."""
    lab.run("one")
    lab.request("revoke", "first")
    lab.request("delete", "second")
    assert not lab.withdraw(request_id="first").applied
    assert lab.deliver().verdict is DeliveryVerdict.DELIVER


def test_a_withdrawal_is_refused_in_another_state(lab: Lab) -> None:
    """`from_state` counts here as well."""
    lab.run("one")
    lab.request()
    with lab.unchanged():
        assert lab.withdraw(from_states=[State.ENQUEUED]) == refused("state", State.PROCESSING)
    assert lab.withdraw(from_states=[State.PROCESSING]).applied


# Twice.


def test_the_same_withdrawal_gets_the_same_answer(lab: Lab) -> None:
    """A withdrawal whose answer was lost may be repeated."""
    lab.run("one")
    lab.request("delete")
    first = lab.withdraw()
    with lab.unchanged():
        assert lab.withdraw() == first


def test_a_second_withdrawal_has_nothing_to_take_back(lab: Lab) -> None:
    """Another one finds that it was done."""
    lab.run("one")
    lab.request()
    lab.withdraw("first")
    with lab.unchanged():
        assert lab.withdraw("second") == refused("nothing", State.PROCESSING)


def test_a_repeated_withdrawal_does_not_take_back_what_was_asked_since(lab: Lab) -> None:
    """It concerns the request that it was made for."""
    lab.run("one")
    lab.request("revoke", "first")
    lab.withdraw("withdrawal")
    lab.request("revoke", "second")
    with lab.unchanged():
        lab.withdraw("withdrawal")


def test_a_withdrawn_task_may_be_asked_again(lab: Lab) -> None:
    """Of a task of which nothing is wanted any more, something else may be."""
    lab.run("one")
    lab.request("delete", "first")
    lab.withdraw()
    assert lab.request("revoke", "second").applied
    assert lab.deliver().verdict is DeliveryVerdict.DELIVER


# What is left of it.


def test_a_withdrawal_is_in_the_history(lab: Lab) -> None:
    """Asked and taken back: two lines."""
    lab.run("one")
    lab.request()
    lab.withdraw()
    assert lab.history == ["PROCESSING", "PROCESSING request:pending", "PROCESSING request:withdrawn"]


def test_what_was_withdrawn_explains_no_end(lab: Lab) -> None:
    """A task that ends by itself afterwards shows no cause, and nobody's words."""
    lab.run("one")
    lab.request()
    lab.withdraw()
    answer = lab.finish("one", Ending.TERMINATED)
    lab.settle()
    record = lab.record
    assert answer.cancellation is None
    assert (record.state, record.cause, record.reason, record.actor) == (State.REVOKED, None, None, None)


def test_a_withdrawn_reschedule_takes_its_time_along(lab: Lab) -> None:
    """The time that was wanted does not reach a later requeue."""
    lab.run("one", message=KEPT)
    lab.request("requeue", "first", wanted_eta=9_000_000_000_000_000)
    lab.withdraw()
    lab.request("requeue", "second")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    assert lab.state == "ENQUEUED"


def test_a_withdrawn_record_is_readable(lab: Lab) -> None:
    """What is left says which request it was."""
    lab.request()
    lab.withdraw()
    record = lab.record
    assert (record.state, record.request_id, record.answer) == (None, "request", "withdrawn")
