"""The owner is dead: somebody else completes what it left."""

from __future__ import annotations

from typing import Any

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import ClaimVerdict, Recovery
from tests.store.conftest import ALICE, BOB, Lab

WANTED = Cancellation(Cause.REVOKED, "customer left", "alice")


def recovered(state: State, value: str = "", cancellation: Cancellation | None = None) -> Recovery:
    return Recovery("task-7", "recovery", state, value, cancellation)


def test_a_lost_task_fails(lab: Lab) -> None:
    """A task that was acknowledged before it ran, and whose worker is gone, ends FAILED with the reason."""
    lab.run("one")
    assert lab.recover() == recovered(State.FAILED)
    record = lab.store.get(lab.task_id)
    assert record is not None
    assert (record.state, lab.fields["outcome"]) == (State.FINISHING, "FAILED")
    assert (record.owner, record.worker, record.execution_id) == (BOB, f"celery@{BOB}", "recovery")
    assert record.error == "the worker was lost while it ran the task"
    assert record.stopped_at is not None


@pytest.mark.parametrize(
    ("kind", "cause", "state"),
    [("revoke", Cause.REVOKED, State.REVOKED), ("delete", Cause.DELETED, State.DELETED)],
)
@pytest.mark.parametrize("late_ack", [False, True])
def test_a_lost_task_that_was_to_stop_has_stopped(
    lab: Lab, kind: str, cause: Cause, state: State, late_ack: bool
) -> None:
    """A request that the dead worker could not heed takes effect all the same."""
    lab.run("one", late_ack=late_ack)
    lab.request(kind)
    assert lab.recover() == recovered(state, cancellation=Cancellation(cause, "customer left", "alice"))
    assert (lab.fields["outcome"], lab.fields["answer"]) == (state.value, "effective")
    assert "error" not in lab.fields


def test_a_lost_task_that_was_to_be_requeued_is_told_that_it_failed(lab: Lab) -> None:
    """A request that recovery does not meet is answered, not forgotten."""
    lab.run("one")
    lab.request("requeue")
    recovery = lab.recover()
    assert recovery is not None
    assert recovery.state is State.FAILED
    assert lab.fields["answer"] == "too-late"


def test_a_lost_task_whose_message_comes_back_is_left_to_it(lab: Lab) -> None:
    """A late-acknowledged message is redelivered: the copy takes over, and nobody ends it before."""
    lab.run("one", late_ack=True)
    with lab.unchanged():
        assert lab.recover() is None
    assert lab.owned(BOB) == set()


@pytest.mark.parametrize(
    ("ending", "value", "state"),
    [
        (Ending.RETURNED, "[1]", State.SUCCEEDED),
        (Ending.RETURNED, "null", State.SUCCEEDED),
        (Ending.RAISED, "", State.FAILED),
    ],
)
@pytest.mark.parametrize("late_ack", [False, True])
def test_a_decided_end_is_completed(
    lab: Lab, ending: Ending, value: str, state: State, late_ack: bool
) -> None:
    """An outcome that was decided before the worker died is what the task becomes."""
    lab.run("one", late_ack=late_ack)
    lab.finish("one", ending, value=value)
    before = lab.fields
    assert lab.recover() == recovered(state, value)
    moved = {"execution": "recovery", "owner": BOB, "worker": f"celery@{BOB}"}
    assert lab.fields == {**before, **moved}


def test_a_denied_task_is_completed(lab: Lab) -> None:
    """A worker that died right after it had refused a task leaves it to be ended."""
    lab.request()
    lab.claim("one")
    assert lab.recover() == recovered(State.REVOKED, cancellation=WANTED)


def test_a_stopped_task_is_completed_with_its_reason(lab: Lab) -> None:
    """Whoever writes Celery's result knows in whose words the task was stopped."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, value="[1]")
    assert lab.recover() == recovered(State.REVOKED, "[1]", WANTED)


def test_a_recovered_task_is_settled_by_who_recovered_it(lab: Lab) -> None:
    """Recovery and settlement lead to a final record that stands in no index of the living."""
    lab.run("one")
    lab.recover()
    assert lab.owned(BOB) == {lab.task_id}
    lab.settle("recovery", owner=BOB)
    assert lab.state == "FAILED"
    assert lab.owned(BOB) == set()


def test_the_dead_do_not_settle(lab: Lab) -> None:
    """A worker that was only slow does not end what another completes."""
    lab.finishing()
    lab.recover()
    with lab.unchanged():
        lab.settle("one")


@pytest.mark.parametrize("ending", [None, Ending.RETURNED])
def test_of_two_recoveries_one_succeeds(lab: Lab, ending: Ending | None) -> None:
    """Two janitors that have seen the same owner dead do not both complete its work."""
    lab.run("one")
    if ending is not None:
        lab.finish("one", ending)
    record = lab.store.get(lab.task_id)
    assert record is not None
    assert lab.store.recover(record, owner=BOB, worker="w", recovery_id="recovery") is not None
    with lab.unchanged():
        assert lab.store.recover(record, owner="carol.1", worker="w", recovery_id="other") is None


@pytest.mark.parametrize(
    "since",
    [
        {"execution": "two"},
        {"owner": "alice.2"},
        {"owner": BOB},
    ],
    ids=str,
)
def test_what_has_changed_hands_is_left(lab: Lab, since: dict[str, str]) -> None:
    """Execution and owner must both still be the ones that were seen to be dead."""
    lab.run("one")
    record = lab.store.get(lab.task_id)
    assert record is not None
    lab.set(**since)
    with lab.unchanged():
        assert lab.store.recover(record, owner="carol.1", worker="w", recovery_id="recovery") is None


@pytest.mark.parametrize("ending", [Ending.RETURNED, Ending.RETRIED])
def test_what_is_over_is_left(lab: Lab, ending: Ending) -> None:
    """A settled task, and one that waits for its retry, are nobody's to recover."""
    lab.run("one")
    lab.finish("one", ending)
    lab.settle("one")
    with lab.unchanged():
        assert lab.recover() is None
    assert lab.owned(BOB) == set()


def test_a_record_that_is_gone_is_left(lab: Lab) -> None:
    """Recovery writes no record where there is none."""
    lab.run("one")
    record = lab.store.get(lab.task_id)
    lab.remove()
    assert record is not None
    assert lab.store.recover(record, owner=BOB, worker="w", recovery_id="recovery") is None
    assert lab.fields == {}


def test_a_task_that_was_recovered_may_be_recovered_again(lab: Lab) -> None:
    """The janitor may die as well; another one completes its work."""
    lab.run("one")
    lab.recover(by=BOB)
    again: Any = lab.recover(by="carol.1", recovery="second")
    assert (again.state, again.execution_id) == (State.FAILED, "second")


def test_a_copy_of_a_recovered_message_does_not_run(lab: Lab) -> None:
    """What was given up for lost is not run when its message turns up."""
    lab.run("one")
    lab.recover()
    assert lab.claim("two", redelivered=True).verdict is ClaimVerdict.SKIP
    lab.settle("recovery", owner=BOB)
    assert lab.claim("two", redelivered=True).verdict is ClaimVerdict.SKIP


@pytest.mark.parametrize("ending", [None, Ending.RETURNED])
def test_the_same_recovery_gets_the_same_answer(lab: Lab, ending: Ending | None) -> None:
    """A recovery whose answer was lost may be repeated, and is still this janitor's to complete."""
    lab.run("one")
    if ending is not None:
        lab.finish("one", ending)
    record = lab.store.get(lab.task_id)
    assert record is not None
    first = lab.store.recover(record, owner=BOB, worker="w", recovery_id="recovery")
    assert lab.store.recover(record, owner=BOB, worker="w", recovery_id="recovery") == first


# The lists a janitor goes by.


def test_owners_are_listed_and_their_leases_told(lab: Lab) -> None:
    """Who was announced is known, and who of them holds no lease is dead."""
    lab.store.announce(ALICE)
    lab.store.announce(BOB)
    lab.store.retire(BOB)
    assert sorted(lab.store.owners()) == [ALICE, BOB]
    assert lab.store.dead([ALICE, BOB]) == [BOB]
    assert lab.store.is_alive(ALICE)
    assert not lab.store.is_alive(BOB)


def test_nobody_asked_after_is_dead(lab: Lab) -> None:
    """An agent that is alone has no others to look after."""
    assert lab.store.dead([]) == []


def test_what_a_dead_owner_left_is_listed_within_a_limit(lab: Lab) -> None:
    """A janitor takes a bite at a time."""
    for number in range(5):
        lab.other(f"task-{number}").run("one")
    everything = {f"task-{number}" for number in range(5)}
    assert set(lab.store.owned_by(ALICE, 100)) == everything
    some = lab.store.owned_by(ALICE, 2)
    assert len(set(some)) == 2
    assert set(some) <= everything


def test_an_id_is_taken_off_an_index(lab: Lab) -> None:
    """What is not an agent's any more is not looked at again."""
    lab.run("one")
    lab.store.not_owned(ALICE, lab.task_id)
    assert lab.store.owned_by(ALICE, 100) == []


def test_a_dead_owner_with_nothing_left_is_forgotten(lab: Lab) -> None:
    """The list of owners does not grow for ever."""
    lab.store.announce(ALICE)
    lab.store.announce(BOB)
    lab.store.forget_owner(ALICE)
    assert lab.store.owners() == [BOB]


def test_incarnations_of_an_agent_share_their_index(lab: Lab) -> None:
    """What an agent ran before its lease lapsed is found under its later incarnation."""
    lab.run("one", owner="alice.1")
    assert lab.store.owned_by("alice.2", 100) == [lab.task_id]
    assert lab.store.owned_by(BOB, 100) == []


def test_a_lapsed_lease_is_not_renewed(lab: Lab) -> None:
    """A heartbeat that comes too late is told so, and does not paper over the gap."""
    lab.store.announce(ALICE)
    assert lab.store.beat(ALICE)
    lab.redis.delete(lab.store.keys.lease(ALICE))
    assert not lab.store.beat(ALICE)
    assert not lab.store.is_alive(ALICE)


@pytest.mark.parametrize(("broker", "is_recovered"), [("theirs", True), ("ours", False), (None, True)])
def test_what_came_by_another_broker_is_recovered_by_its_own_agents(
    lab: Lab, broker: str | None, is_recovered: bool
) -> None:
    """Its result is in that app's backend, and its message goes to that app's broker."""
    lab.run("one", broker="theirs")
    record = lab.store.get(lab.task_id)
    assert record is not None
    answer = lab.store.recover(record, owner=BOB, worker="bob", recovery_id="recovery", broker=broker)
    assert (answer is not None) is is_recovered
