"""Celery's result is written: outcomes become final."""

from __future__ import annotations

import time

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import FINAL_STATES, State
from celery_canceltoken.store.answers import Ended, Settled
from tests.store.conftest import ALICE, BOB, KEPT, Lab


def revoked(lab: Lab) -> None:
    """FINISHING as REVOKED, by execution "one"."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, value="[1]")
    assert lab.fields["outcome"] == "REVOKED"


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        (Ending.RETURNED, "SUCCEEDED"),
        (Ending.RAISED, "FAILED"),
        (Ending.IGNORED, "IGNORED"),
        (Ending.REJECTED, "REJECTED"),
        (Ending.TERMINATED, "REVOKED"),
    ],
)
def test_a_decided_outcome_becomes_final(lab: Lab, ending: Ending, state: str) -> None:
    """The record ends in the state that was decided."""
    lab.finishing(ending)
    lab.settle("one")
    assert lab.state == state
    assert "outcome" not in lab.fields


@pytest.mark.parametrize(("kind", "state"), [("revoke", "REVOKED"), ("delete", "DELETED")])
def test_a_denied_task_becomes_final(lab: Lab, kind: str, state: str) -> None:
    """A task that never started ends as what it was asked to be."""
    lab.request(kind)
    lab.claim("one")
    lab.settle("one")
    fields = lab.fields
    assert (fields["state"], fields["answer"]) == (state, "effective")
    assert "denied" not in fields


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_what_celery_made_of_it_counts(lab: Lab, state: State) -> None:
    """Where Celery wrote another state than the decided one, the record follows Celery."""
    lab.finishing()
    lab.settle("one", instead=state)
    assert lab.state == state.value


def test_settling_twice_changes_nothing(lab: Lab) -> None:
    """A settlement whose answer was lost may be repeated."""
    revoked(lab)
    lab.settle("one")
    with lab.unchanged():
        lab.settle("one")


def test_settling_again_with_another_state_changes_nothing(lab: Lab) -> None:
    """A final state stays, whoever says something else afterwards."""
    revoked(lab)
    lab.settle("one")
    with lab.unchanged():
        lab.settle("one", instead=State.FAILED)


def test_only_an_end_is_settled(lab: Lab) -> None:
    """A body that still runs is not ended by a settlement that came too early."""
    lab.run("one")
    with lab.unchanged():
        lab.settle("one")


def test_a_waiting_retry_is_not_settled(lab: Lab) -> None:
    """The end of an execution that has retried is not the end of its task."""
    lab.enqueued(1)
    with lab.unchanged():
        lab.settle("one")


def test_another_executions_end_is_not_settled(lab: Lab) -> None:
    """Only who has ended the body settles it."""
    revoked(lab)
    with lab.unchanged():
        lab.settle("two", owner=BOB)


def test_settling_makes_no_record(lab: Lab) -> None:
    """Where the record has gone there is nothing to settle."""
    lab.settle("one")
    assert lab.fields == {}


def test_what_a_revoked_body_returned_is_kept(lab: Lab) -> None:
    """The value of a body that stopped is in the record, as Celery's result has none."""
    revoked(lab)
    lab.settle("one")
    assert lab.fields["value"] == "[1]"


def test_what_a_successful_body_returned_is_celerys(lab: Lab) -> None:
    """The record keeps no copy of a value that Celery's result holds."""
    lab.run("one")
    lab.finish("one", value="[1]")
    assert lab.fields["value"] == "[1]"
    lab.settle("one")
    assert "value" not in lab.fields


def test_a_revoked_body_that_returned_nothing_leaves_no_value(lab: Lab) -> None:
    """None is what a body returns that returns nothing: not worth a field."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, value="null")
    lab.settle("one")
    assert lab.state == "REVOKED"
    assert "value" not in lab.fields


def test_many_are_settled_at_once(lab: Lab) -> None:
    """One command makes the ends of many tasks final, each to its own state."""
    labs = [lab.other(f"task-{number}") for number in range(50)]
    for number, one in enumerate(labs):
        one.finishing(Ending.RETURNED if number % 2 else Ending.RAISED)
    lab.store.settle(ALICE, [Ended("one", one.task_id) for one in labs])
    assert [one.state for one in labs] == ["FAILED", "SUCCEEDED"] * 25
    assert lab.owned(ALICE) == set()


def test_a_batch_may_hold_anything(lab: Lab) -> None:
    """What cannot be settled does not keep the rest of its batch from it."""
    running, waiting, ended, missing, mine = (lab.other(f"task-{number}") for number in range(5))
    running.run("one")
    waiting.enqueued(1)
    ended.final()
    revoked(mine)
    before = [one.fields for one in (running, waiting, ended, missing)]
    batch = [Ended("one", one.task_id) for one in (running, waiting, ended, missing, mine)]
    lab.store.settle(ALICE, batch)
    assert [one.fields for one in (running, waiting, ended, missing)] == before
    assert mine.state == "REVOKED"


def test_each_of_a_batch_has_its_own_instead(lab: Lab) -> None:
    """A state that Celery wrote for one task is not given to the next."""
    one, other = lab.other("one"), lab.other("other")
    one.finishing()
    other.finishing()
    lab.store.settle(ALICE, [Ended("one", "one", State.FAILED), Ended("one", "other")])
    assert (one.state, other.state) == ("FAILED", "SUCCEEDED")


def test_an_empty_batch_is_harmless(lab: Lab) -> None:
    """Nothing ended, nothing settled."""
    lab.store.settle(ALICE, [])


# Who waits for the end.


def heard(lab: Lab) -> list[str]:
    """What a listener to the end of the task hears of a settlement."""
    return lab.heard_of(lambda: lab.settle("one"))


def test_the_end_of_a_revoked_task_is_announced(lab: Lab) -> None:
    """Whoever waits for a task of which something was asked hears of its end, with the answer."""
    revoked(lab)
    assert heard(lab) == ["effective"]


def test_an_end_that_did_not_heed_is_announced(lab: Lab) -> None:
    """Who had asked in vain hears that it came too late."""
    lab.run("one")
    lab.request()
    lab.finish("one")
    assert heard(lab) == ["too-late"]


def test_an_ordinary_end_is_not_announced(lab: Lab) -> None:
    """An ordinary task costs no announcement that nobody waits for."""
    lab.finishing()
    assert heard(lab) == []


def test_an_end_is_announced_once(lab: Lab) -> None:
    """A settlement that is repeated is not announced again."""
    revoked(lab)
    lab.settle("one")
    assert heard(lab) == []


def test_a_waiter_is_woken(lab: Lab) -> None:
    """Who has subscribed before the end hears of it at once."""
    revoked(lab)
    with lab.store.end_of(lab.task_id) as end:
        end.wait(10.0)  # The server confirms the subscription, which ends a first wait for no other reason.
        lab.settle("one")
        began = time.monotonic()
        end.wait(10.0)
        assert time.monotonic() - began < 5.0


def test_a_waiter_waits_no_longer_than_it_may(lab: Lab) -> None:
    """Without an end a wait is over when its time is."""
    with lab.store.end_of(lab.task_id) as end:
        end.wait(10.0)
        began = time.monotonic()
        end.wait(0.05)
        assert 0.04 <= time.monotonic() - began < 5.0


# The index of what an agent owns.


def test_a_settled_task_leaves_the_index(lab: Lab) -> None:
    """What has ended is nothing to look after when its agent is dead."""
    lab.finishing()
    assert lab.owned(ALICE) == {lab.task_id}
    lab.settle("one")
    assert lab.owned(ALICE) == set()


def test_a_retried_task_leaves_the_index_of_its_former_owner(lab: Lab) -> None:
    """A waiting id is nobody's."""
    lab.enqueued(1)
    lab.settle("one")
    assert lab.owned(ALICE) == set()


def test_a_task_that_was_taken_over_leaves_the_index_of_its_former_owner(lab: Lab) -> None:
    """Each agent's index holds what is its own."""
    lab.run("one")
    lab.run("two", owner=BOB, generation=1)
    lab.settle("one", owner=ALICE)
    assert (lab.owned(ALICE), lab.owned(BOB)) == (set(), {lab.task_id})


def test_a_running_successor_of_the_same_owner_stays_in_the_index(lab: Lab) -> None:
    """The end of a retried execution does not hide its successor on the same worker."""
    lab.run("one")
    lab.run("two", generation=1)
    lab.finish("one", Ending.RETRIED)
    lab.settle("one")
    assert lab.owned(ALICE) == {lab.task_id}


def test_an_ended_successor_of_the_same_owner_stays_in_the_index(lab: Lab) -> None:
    """Until its own end is settled, a successor is found if the worker dies now."""
    lab.run("one")
    lab.run("two", generation=1)
    lab.finish("one", Ending.RETRIED)
    lab.finish("two")
    lab.settle("one")
    assert lab.state == "FINISHING"
    assert lab.owned(ALICE) == {lab.task_id}


def test_a_successor_under_an_earlier_incarnation_stays_in_the_index(lab: Lab) -> None:
    """While an agent adopts what it runs, its index loses nothing of it."""
    lab.run("one")
    lab.run("two", generation=1)
    lab.finish("one", Ending.RETRIED)
    lab.settle("one", owner="alice.2")
    assert lab.owned(ALICE) == {lab.task_id}


# What becomes of the message.


@pytest.mark.parametrize(
    ("state", "keep", "kept"),
    [
        (State.SUCCEEDED, "until_success", False),
        (State.SUCCEEDED, "always", True),
        (State.SUCCEEDED, "never", False),
        (State.FAILED, "until_success", True),
        (State.FAILED, "always", True),
        (State.REVOKED, "until_success", True),
        (State.IGNORED, "until_success", True),
        (State.REJECTED, "until_success", True),
        (State.DELETED, "until_success", False),
        (State.DELETED, "always", False),
    ],
)
def test_the_message_is_kept_as_its_policy_says(lab: Lab, state: State, keep: str, kept: bool) -> None:
    """Until success, or always; and of what was deleted never."""
    lab.finishing(message=KEPT)
    lab.settle(instead=state, keep=keep)
    assert lab.fields.get("message") == (KEPT if kept else None)


def test_of_a_deleted_task_nothing_is_left(lab: Lab) -> None:
    """Neither its message, nor what it returned, nor what it raised."""
    lab.run("one", message=KEPT)
    lab.request("delete")
    lab.finish("one", Ending.RAISED, cause=Cause.DELETED, observed=True, value="[1]", error="ValueError()")
    lab.settle(keep="always")
    assert lab.state == "DELETED"
    assert {"message", "value", "error"} & set(lab.fields) == set()


def test_each_of_a_batch_has_its_own_policy(lab: Lab) -> None:
    """One task's message is not kept for the sake of another's."""
    one, other = lab.other("one"), lab.other("other")
    one.finishing(message=KEPT)
    other.finishing(message=KEPT)
    batch = [Ended("one", "one", keep="always"), Ended("one", "other")]
    assert lab.store.settle(ALICE, batch) == [Settled.FINAL] * 2
    assert ("message" in one.fields, "message" in other.fields) == (True, False)


def test_each_of_a_batch_is_told_what_it_became(lab: Lab) -> None:
    """In the order of the batch."""
    ended, requeued, running = (lab.other(f"task-{number}") for number in range(3))
    ended.finishing()
    requeued.finishing(message=KEPT)
    requeued.request("requeue")
    running.run("one")
    batch = [Ended("one", one.task_id) for one in (requeued, running, ended)]
    assert lab.store.settle(ALICE, batch) == [Settled.SENT_AGAIN, Settled.NOT_OURS, Settled.FINAL]


def test_a_failure_after_all_has_not_completed(lab: Lab) -> None:
    """A requeue is not told that the work was done where Celery could not write its result."""
    lab.finishing(message=KEPT)
    lab.request("requeue")
    lab.settle(instead=State.FAILED)
    assert lab.record.history[-1].completed is False


def test_a_requeue_is_announced_when_it_is_done(lab: Lab) -> None:
    """Whoever waits for it hears of it with its settlement."""
    lab.finishing(message=KEPT)
    lab.request("requeue")
    assert heard(lab) == ["effective"]
