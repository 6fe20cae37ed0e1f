"""Asking something of a task: when it is stored, and when it is refused and nothing changes."""

from __future__ import annotations

import itertools

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import FINAL_STATES, State
from celery_canceltoken.store.answers import RequestAnswer
from tests.store.conftest import Lab

RANK = ("requeue", "revoke", "delete")


def applied(previous: State | None = None) -> RequestAnswer:
    return RequestAnswer(True, "", previous)


def refused(why: str, previous: State | None = None) -> RequestAnswer:
    return RequestAnswer(False, why, previous)


def test_an_unseen_id_keeps_its_request(lab: Lab) -> None:
    """What is asked of an id that no worker has seen waits for its message."""
    assert lab.request() == applied()
    fields = lab.fields
    assert fields.pop("requested_at")
    assert fields.pop("h0")
    assert fields == {
        "v": "1",
        "changes": "1",
        "request": "request",
        "kind": "revoke",
        "cause": "REVOKED",
        "reason": "customer left",
        "actor": "alice",
        "answer": "pending",
    }


def test_an_unseen_id_that_must_exist_is_refused(lab: Lab) -> None:
    """With `must_exist` nothing is written for an unknown id."""
    assert lab.request(must_exist=True) == refused("unknown")
    assert lab.fields == {}


def test_a_request_alone_does_not_make_an_id_exist(lab: Lab) -> None:
    """An id that somebody has only asked something of is still unknown."""
    lab.request()
    with lab.unchanged():
        assert not lab.request("delete", "second", must_exist=True).applied


def test_a_running_task_keeps_its_request(lab: Lab) -> None:
    """What is asked of a running task is stored, and the answer says that it runs."""
    lab.run("one")
    assert lab.request(must_exist=True) == applied(State.PROCESSING)
    fields = lab.fields
    assert (fields["state"], fields["answer"], fields["previous"]) == ("PROCESSING", "pending", "PROCESSING")


def test_a_waiting_retry_keeps_its_request(lab: Lab) -> None:
    """What is asked between two executions of an id is stored for the next."""
    lab.enqueued(1)
    answer = lab.request()
    assert (answer.applied, answer.previous) == (True, State.ENQUEUED)
    assert lab.fields["answer"] == "pending"


@pytest.mark.parametrize("kind", ["revoke", "delete"])
def test_a_body_that_has_ended_is_left_alone(lab: Lab, kind: str) -> None:
    """Once the outcome is decided a request changes nothing."""
    lab.finishing()
    with lab.unchanged():
        assert lab.request(kind) == refused("finishing", State.FINISHING)


@pytest.mark.parametrize("kind", ["revoke", "delete"])
@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_a_task_that_has_ended_is_left_alone(lab: Lab, kind: str, state: State) -> None:
    """In every final state a request changes nothing."""
    lab.finishing()
    lab.settle(instead=state)
    with lab.unchanged():
        assert lab.request(kind) == refused("final", state)


@pytest.mark.parametrize(("earlier", "later"), list(itertools.product(RANK, repeat=2)))
def test_only_more_than_was_asked_is_applied(lab: Lab, earlier: str, later: str) -> None:
    """Delete outranks revoke, and revoke requeue; an equal or lower request leaves the first one's words."""
    lab.run("one")
    lab.request(earlier, "first", reason="first")
    before = lab.fields
    answer = lab.request(later, "second", reason="second")
    if RANK.index(later) > RANK.index(earlier):
        assert answer.applied
        assert (lab.fields["request"], lab.fields["kind"], lab.fields["reason"]) == (
            "second",
            later,
            "second",
        )
    else:
        assert answer == refused("already", State.PROCESSING)
        assert lab.fields == before


def test_a_higher_request_is_delivered_afresh(lab: Lab) -> None:
    """The ladder's times are those of the request that counts; a body that was told to stop has been told."""
    lab.run("one")
    lab.request("revoke", "first")
    lab.deliver("one")
    lab.observe("one")
    lab.request("delete", "second")
    assert lab.fields["delivered_at"] == lab.fields["requested_at"]
    assert "observed_at" not in lab.fields
    cancellation = lab.deliver("one").cancellation
    assert cancellation is not None
    assert cancellation.cause is Cause.DELETED


@pytest.mark.parametrize("accepted", [(State.PROCESSING,), (State.ENQUEUED, State.PROCESSING)])
def test_a_state_that_is_accepted(lab: Lab, accepted: tuple[State, ...]) -> None:
    """With `from_state` a request is applied where the task is in one of those states."""
    lab.run("one")
    assert lab.request(from_states=accepted).applied


@pytest.mark.parametrize(
    "accepted", [(State.ENQUEUED,), (State.FINISHING, State.FAILED), tuple(FINAL_STATES)]
)
def test_a_state_that_is_not_accepted(lab: Lab, accepted: tuple[State, ...]) -> None:
    """In any other state the request is refused and nothing changes."""
    lab.run("one")
    with lab.unchanged():
        assert lab.request(from_states=accepted) == refused("state", State.PROCESSING)


def test_an_unseen_id_is_in_no_state(lab: Lab) -> None:
    """An id without a record is in none of the states that may be accepted."""
    assert lab.request(from_states=tuple(State)) == refused("state")
    assert lab.fields == {}


def test_an_accepted_state_does_not_revive_the_dead(lab: Lab) -> None:
    """Accepting a final state does not make a request apply to it."""
    lab.final()
    with lab.unchanged():
        assert lab.request(from_states=(State.SUCCEEDED,)) == refused("final", State.SUCCEEDED)


@pytest.mark.parametrize("seen", [False, True])
def test_the_same_request_gets_the_same_answer(lab: Lab, seen: bool) -> None:
    """A request whose answer was lost may be made again: it is the same one, not a second."""
    if seen:
        lab.run("one")
    first = lab.request()
    with lab.unchanged():
        assert lab.request() == first


def test_the_same_request_keeps_its_answer_while_it_travels(lab: Lab) -> None:
    """However far a request has come, asking again with its id says what was said at first."""
    lab.run("one")
    first = lab.request()
    for step in (
        lambda: lab.deliver("one"),
        lambda: lab.observe("one"),
        lambda: lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True),
        lambda: lab.settle("one"),
    ):
        step()
        with lab.unchanged():
            assert lab.request() == first


def test_a_refusal_is_repeated(lab: Lab) -> None:
    """A refused request is refused again."""
    lab.run("one")
    lab.request("revoke", "first")
    first = lab.request("revoke", "second")
    with lab.unchanged():
        assert lab.request("revoke", "second") == first


def test_reason_and_actor_may_be_left_out(lab: Lab) -> None:
    """A request without words is a request."""
    lab.request(reason=None, actor=None)
    assert "reason" not in lab.fields
    assert "actor" not in lab.fields


def test_a_higher_request_without_words_takes_the_earlier_ones_away(lab: Lab) -> None:
    """Nobody is quoted with words that belong to another request."""
    lab.run("one")
    lab.request("revoke", "first", reason="first", actor="alice")
    lab.request("delete", "second", reason=None, actor=None)
    assert "reason" not in lab.fields
    assert "actor" not in lab.fields


@pytest.mark.parametrize(
    "text", ["'; redis.call('FLUSHALL') --", "\x00\r\n$5\r\n", "客户走了 🚪", "%d %s", '{"a": 1}']
)
def test_words_are_data(lab: Lab, text: str) -> None:
    """Whatever stands in a reason comes back as it was."""
    lab.run("one")
    lab.request(reason=text, actor=text)
    cancellation = lab.deliver("one").cancellation
    assert cancellation is not None
    assert (cancellation.reason, cancellation.actor) == (text, text)


def test_an_answered_request_may_be_followed_by_another(lab: Lab) -> None:
    """After a task was started again, what was asked of its former life is no obstacle."""
    lab.run("one")
    lab.request("delete", "first")
    lab.finish("one", Ending.CANCELLED, cause=Cause.DELETED, observed=True)
    lab.settle("one")
    lab.run("two", send="again")
    assert lab.request("revoke", "second").applied


def test_times_are_the_servers(lab: Lab) -> None:
    """The time of a request is read from the store's clock."""
    before = lab.redis.time()
    lab.request()
    after = lab.redis.time()
    requested = int(lab.fields["requested_at"])
    assert before[0] * 1_000_000 + before[1] <= requested <= after[0] * 1_000_000 + after[1]
