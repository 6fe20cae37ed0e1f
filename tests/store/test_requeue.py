"""Asking for a task to run again: in every state, and what the old execution may do from then on."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import FINAL_STATES, State
from celery_canceltoken.store.answers import (
    ClaimAnswer,
    ClaimVerdict,
    Delivery,
    DeliveryVerdict,
    Enqueued,
    RequestAnswer,
    Settled,
)
from tests.store.conftest import ALICE, BOB, KEPT, Lab

HOUR = 3_600_000_000


def later() -> int:
    """A moment an hour ahead, in microseconds."""
    return int(time.time()) * 1_000_000 + HOUR


def refused(why: str, previous: State | None = None, unkept: str = "") -> RequestAnswer:
    return RequestAnswer(False, why, previous, unkept)


def kept_in(state: State) -> Callable[[Lab], None]:
    def meet(lab: Lab) -> None:
        lab.finishing(message=KEPT)
        lab.settle(instead=state, keep="always")

    return meet


# In every state.


def test_an_unseen_id_cannot_be_requeued(lab: Lab) -> None:
    """Nothing is known of it, so there is nothing to send."""
    assert lab.request("requeue") == refused("unknown")
    assert lab.fields == {}


def test_an_id_of_which_only_something_was_asked_cannot_be_requeued(lab: Lab) -> None:
    """A withdrawn request alone is no task."""
    lab.request("revoke")
    lab.withdraw()
    with lab.unchanged():
        assert lab.request("requeue", "again") == refused("unknown")


@pytest.mark.parametrize("state", sorted(FINAL_STATES - {State.DELETED}))
def test_an_ended_task_goes_to_its_queue(lab: Lab, state: State) -> None:
    """From every final state that keeps its message: the next generation, waiting to be published."""
    kept_in(state)(lab)
    assert lab.request("requeue") == RequestAnswer(True, "", state, outbox=Enqueued(1))
    fields = lab.fields
    assert (fields["state"], fields["generation"], fields["outbox"]) == ("ENQUEUED", "1", "1")
    assert (fields["answer"], fields["message"]) == ("effective", KEPT)
    assert lab.in_outbox


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_an_ended_task_without_a_message_stays_ended(lab: Lab, state: State) -> None:
    """Without its message there is nothing to send, and nothing changes."""
    lab.finishing(unkept="too-large")
    lab.settle(instead=state)
    with lab.unchanged():
        assert lab.request("requeue") == refused("no-message", state, "too-large")
    assert not lab.in_outbox


def test_a_task_that_succeeded_has_no_message_by_default(lab: Lab) -> None:
    """What succeeded is not there to be run again, unless its message is always kept."""
    lab.final(message=KEPT)
    assert lab.request("requeue") == refused("no-message", State.SUCCEEDED)


def test_a_deleted_task_is_gone(lab: Lab) -> None:
    """Whatever is kept of others, nothing is of a deleted one."""
    lab.request("delete")
    lab.claim("one", message=KEPT)
    lab.settle(keep="always")
    assert lab.request("requeue", "again") == refused("no-message", State.DELETED)


def test_a_waiting_task_is_in_its_queue_already(lab: Lab) -> None:
    """What waits for a worker needs no second message."""
    lab.enqueued(1)
    with lab.unchanged():
        assert lab.request("requeue") == refused("queued", State.ENQUEUED)


def test_a_scheduled_task_is_in_its_queue_already(lab: Lab) -> None:
    """Nor does what waits for its time."""
    lab.enqueue(eta=str(later()))
    with lab.unchanged():
        assert lab.request("requeue") == refused("queued", State.SCHEDULED)


@pytest.mark.parametrize("message", ["", KEPT], ids=["unkept", "kept"])
def test_a_running_task_is_told(lab: Lab, message: str) -> None:
    """A living owner is asked to stop and send its own message back, kept in the record or not."""
    lab.run("one", message=message)
    assert lab.request("requeue") == RequestAnswer(True, "", State.PROCESSING)
    assert (lab.state, lab.fields["answer"]) == ("PROCESSING", "pending")
    assert lab.deliver().cancellation == Cancellation(Cause.REQUEUED, "customer left", "alice")
    assert not lab.in_outbox


def test_a_running_task_whose_message_came_unreadable_is_not_told(lab: Lab) -> None:
    """Where not even its worker has a message to send, the run is not stopped for nothing."""
    lab.run("one", unkept="unreadable")
    with lab.unchanged():
        assert lab.request("requeue") == refused("no-message", State.PROCESSING, "unreadable")


def test_a_lost_task_goes_to_its_queue(lab: Lab) -> None:
    """A running task whose owner has no lease is sent at once, and is nobody's."""
    lab.run("one", message=KEPT)
    lab.dies(ALICE)
    assert lab.request("requeue") == RequestAnswer(True, "", State.PROCESSING, outbox=Enqueued(1))
    fields = lab.fields
    assert (fields["state"], fields["answer"]) == ("ENQUEUED", "effective")
    assert {"execution", "owner"} & set(fields) == set()
    assert lab.in_outbox


def test_a_lost_task_without_a_message_cannot_be_requeued(lab: Lab) -> None:
    """The message is with the dead worker, or with the broker; not here."""
    lab.run("one", unkept="setting")
    lab.dies(ALICE)
    with lab.unchanged():
        assert lab.request("requeue") == refused("no-message", State.PROCESSING, "setting")


def test_a_body_that_has_ended_is_requeued_by_its_settlement(lab: Lab) -> None:
    """While the result is being written a requeue is kept, and the end becomes another beginning."""
    lab.finishing(Ending.RAISED, message=KEPT)
    assert lab.request("requeue") == RequestAnswer(True, "", State.FINISHING)
    assert (lab.state, lab.fields["answer"]) == ("FINISHING", "pending")
    assert lab.settle() is Settled.SENT_AGAIN
    fields = lab.fields
    assert (fields["state"], fields["outbox"], fields["answer"]) == ("ENQUEUED", "1", "effective")
    assert lab.in_outbox
    assert lab.task_id not in lab.owned(ALICE)


def test_a_body_that_has_ended_and_keeps_no_message_is_not_requeued(lab: Lab) -> None:
    """The worker has let go of its own copy by then."""
    lab.finishing(unkept="setting")
    with lab.unchanged():
        assert lab.request("requeue") == refused("no-message", State.FINISHING, "setting")


def test_a_settlement_that_sends_again_is_repeated(lab: Lab) -> None:
    """Settling twice sends once."""
    lab.finishing(message=KEPT)
    lab.request("requeue")
    lab.settle()
    with lab.unchanged():
        assert lab.settle() is Settled.NOT_OURS


@pytest.mark.parametrize(("ending", "completed"), [(Ending.RETURNED, True), (Ending.RAISED, False)])
def test_a_requeue_between_end_and_settlement_says_whether_the_work_was_done(
    lab: Lab, ending: Ending, completed: bool
) -> None:
    """A run that had succeeded is told from one that had failed."""
    lab.finishing(ending, message=KEPT)
    lab.request("requeue")
    lab.settle()
    assert lab.record.history[-1].completed is completed


@pytest.mark.parametrize(("observed", "completed"), [(True, False), (False, True)])
def test_a_run_that_returns_unaware_has_completed(lab: Lab, observed: bool, completed: bool) -> None:
    """Whoever asked for another run learns whether the one before had done its work."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    lab.finish("one", observed=observed)
    assert (lab.state, lab.record.history[-1].completed) == ("ENQUEUED", completed)


def test_the_next_run_does_not_look_completed(lab: Lab) -> None:
    """What was said of one run is not said of the next."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    lab.finish("one")
    lab.run("two", generation=1)
    assert lab.record.history[-1].completed is False


def test_a_running_task_goes_back_when_it_ends(lab: Lab) -> None:
    """The worker is told what to publish, and it waits in the outbox until that is done."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    answer = lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    assert answer.outbox == Enqueued(1)
    assert (lab.state, lab.fields["generation"], lab.fields["answer"]) == ("ENQUEUED", "1", "effective")
    assert lab.in_outbox


def test_a_requeued_task_shows_nothing_of_its_former_end(lab: Lab) -> None:
    """Value, error and outcome are those of a run that does not count any more."""
    lab.run("one", message=KEPT)
    lab.request("revoke")
    lab.finish("one", Ending.RAISED, cause=Cause.REVOKED, observed=True, value="[1]", error="ValueError()")
    lab.settle()
    lab.request("requeue", "again")
    assert {"value", "error", "outcome", "row", "denied"} & set(lab.fields) == set()


def test_a_task_whose_deletion_is_being_written_is_gone(lab: Lab) -> None:
    """What was deleted is not brought back by a requeue that comes just before its message is removed."""
    lab.run("one", message=KEPT)
    lab.request("delete", "first")
    lab.finish("one", Ending.CANCELLED, cause=Cause.DELETED, observed=True)
    with lab.unchanged():
        assert lab.request("requeue", "second") == refused("no-message", State.FINISHING)


# Twice.


def test_the_same_requeue_gets_the_same_answer(lab: Lab) -> None:
    """A client whose answer was lost is told again what to publish."""
    lab.final(Ending.RAISED, message=KEPT)
    first = lab.request("requeue")
    with lab.unchanged():
        assert lab.request("requeue") == first


def test_a_revoke_of_what_waits_to_be_sent_gets_the_same_answer(lab: Lab) -> None:
    """Who asked it to stop is not told to send it, the second time no more than the first."""
    lab.requeued()
    first = lab.request("revoke", "second")
    assert first == RequestAnswer(True, "", State.ENQUEUED)
    with lab.unchanged():
        assert lab.request("revoke", "second") == first


def test_a_second_requeue_of_an_ended_task_is_refused(lab: Lab) -> None:
    """Asked twice it happens once."""
    lab.requeued()
    with lab.unchanged():
        assert lab.request("requeue", "second") == refused("queued", State.ENQUEUED)


def test_a_second_requeue_of_a_running_task_is_refused(lab: Lab) -> None:
    """The first one's words stay."""
    lab.run("one")
    lab.request("requeue", "first")
    with lab.unchanged():
        assert lab.request("requeue", "second") == refused("already", State.PROCESSING)


def test_a_task_may_be_requeued_again_after_its_next_run(lab: Lab) -> None:
    """Each run may be followed by another, as the next generation."""
    lab.requeued()
    lab.run("two", generation=1, message=KEPT)
    lab.finish("two", Ending.RAISED)
    lab.settle("two")
    assert lab.request("requeue", "second") == RequestAnswer(True, "", State.FAILED, outbox=Enqueued(2))


# At a time.


def test_an_ended_task_is_scheduled(lab: Lab) -> None:
    """With a time an ended task waits for it."""
    lab.final(Ending.RAISED, message=KEPT)
    at = later()
    assert lab.request("requeue", wanted_eta=at).outbox == Enqueued(1, at)
    assert (lab.state, lab.fields["eta"]) == ("SCHEDULED", str(at))
    assert "wanted_eta" not in lab.fields


def test_a_running_task_is_scheduled_when_it_ends(lab: Lab) -> None:
    """The worker learns the time with the rest."""
    lab.run("one")
    at = later()
    lab.request("requeue", wanted_eta=at)
    answer = lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    assert answer.outbox == Enqueued(1, at)
    assert lab.state == "SCHEDULED"


def test_a_finish_that_schedules_is_repeated(lab: Lab) -> None:
    """A lost answer is told again with its time."""
    lab.run("one")
    lab.request("requeue", wanted_eta=later())
    first = lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    with lab.unchanged():
        assert lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True) == first


def test_a_body_that_has_ended_is_scheduled_by_its_settlement(lab: Lab) -> None:
    """The time is kept until then."""
    lab.finishing(message=KEPT)
    at = later()
    lab.request("requeue", wanted_eta=at)
    lab.settle()
    assert (lab.state, lab.fields["eta"]) == ("SCHEDULED", str(at))


def test_a_lost_task_is_scheduled(lab: Lab) -> None:
    """Without a worker it is scheduled at once."""
    lab.run("one", message=KEPT)
    lab.dies(ALICE)
    at = later()
    assert lab.request("requeue", wanted_eta=at).outbox == Enqueued(1, at)


@pytest.mark.parametrize("eta", [None, str(later() + HOUR)], ids=["enqueued", "scheduled"])
def test_a_waiting_task_is_moved_to_a_time(lab: Lab, eta: str | None) -> None:
    """What waits in its queue, or for a time, waits for the new one; and its old message is stale."""
    lab.enqueue(eta=eta)
    at = later()
    assert lab.request("requeue", wanted_eta=at).outbox == Enqueued(1, at)
    assert (lab.state, lab.fields["eta"]) == ("SCHEDULED", str(at))
    with lab.unchanged():
        assert lab.claim("old").why == "stale"


def test_a_waiting_task_without_a_message_is_not_moved(lab: Lab) -> None:
    """What only the broker has cannot be given another time."""
    lab.enqueue(message="", unkept="too-large")
    with lab.unchanged():
        assert lab.request("requeue", wanted_eta=later()) == refused(
            "no-message", State.ENQUEUED, "too-large"
        )


def test_a_scheduled_task_may_be_moved_again(lab: Lab) -> None:
    """Each move is a generation of its own, and the last one counts."""
    lab.enqueue()
    lab.request("requeue", "first", wanted_eta=later())
    at = later() + HOUR
    assert lab.request("requeue", "second", wanted_eta=at).outbox == Enqueued(2, at)
    assert lab.claim("first", generation=1).why == "stale"
    lab.run("second", generation=2)


def test_a_moved_task_that_runs_waits_for_nothing(lab: Lab) -> None:
    """Once claimed it has no time and no message to be sent."""
    lab.enqueue()
    lab.request("requeue", wanted_eta=later())
    lab.run("one", generation=1)
    assert {"eta", "outbox", "wanted_eta"} & set(lab.fields) == set()


def test_a_retry_that_comes_before_the_wanted_time_says_so(lab: Lab) -> None:
    """A copy that runs now is not what was asked by a reschedule, and the answer admits it."""
    lab.run("one")
    lab.request("requeue", wanted_eta=later())
    lab.run("two", owner=BOB, generation=1)
    assert lab.history[-2:] == ["PROCESSING request:too-late", "PROCESSING"]


def test_a_body_that_retries_instead_of_going_to_a_time_says_so(lab: Lab) -> None:
    """Celery's retry is out already: what was asked for another time came too late."""
    lab.run("one")
    lab.request("requeue", wanted_eta=later())
    lab.finish("one", Ending.RETRIED, cause=Cause.REQUEUED, observed=True)
    assert lab.fields["answer"] == "too-late"


# What the old execution may do afterwards: nothing.

TAKEN: dict[str, Callable[[Lab], None]] = {}


def taken(meet: Callable[[Lab], None]) -> Callable[[Lab], None]:
    TAKEN[meet.__name__] = meet
    return meet


@taken
def lost_and_requeued(lab: Lab) -> None:
    lab.run("one", message=KEPT)
    lab.dies(ALICE)
    assert lab.request("requeue").applied
    lab.lives(ALICE)


@taken
def lost_requeued_and_run(lab: Lab) -> None:
    lost_and_requeued(lab)
    lab.run("two", owner=BOB, generation=1)


@taken
def lost_requeued_and_ended(lab: Lab) -> None:
    lost_requeued_and_run(lab)
    lab.finish("two")
    lab.settle("two", owner=BOB)


AFTERWARDS = pytest.mark.parametrize("meet", TAKEN.values(), ids=TAKEN)


@AFTERWARDS
def test_the_old_execution_finishes_nothing(lab: Lab, meet: Callable[[Lab], None]) -> None:
    """However it ends, it is not asked any more."""
    meet(lab)
    with lab.unchanged():
        assert not lab.finish("one", Ending.RETURNED, value="[1]").recorded


@AFTERWARDS
def test_the_old_execution_is_told_nothing_but_that(lab: Lab, meet: Callable[[Lab], None]) -> None:
    """What is asked of the next run is not delivered to the one before."""
    meet(lab)
    lab.request("revoke", "later")
    with lab.unchanged():
        assert lab.deliver("one").verdict in (DeliveryVerdict.SUPERSEDED, DeliveryVerdict.VANISHED)


@AFTERWARDS
def test_the_old_execution_does_not_write_itself_again(lab: Lab, meet: Callable[[Lab], None]) -> None:
    """A body that believes its record lost does not get it back."""
    meet(lab)
    with lab.unchanged():
        answer = lab.claim("one", running_attempt=1)
    assert answer.verdict in (ClaimVerdict.SKIP, ClaimVerdict.OWNED)


@AFTERWARDS
def test_the_old_owner_adopts_nothing(lab: Lab, meet: Callable[[Lab], None]) -> None:
    """An agent that comes back learns that the body is not its own any more."""
    meet(lab)
    with lab.unchanged():
        assert not lab.adopt("one")


@AFTERWARDS
def test_the_old_execution_settles_nothing(lab: Lab, meet: Callable[[Lab], None]) -> None:
    """Its end is not the task's."""
    meet(lab)
    with lab.unchanged():
        assert lab.settle("one") is Settled.NOT_OURS


@AFTERWARDS
def test_the_old_execution_observes_nothing(lab: Lab, meet: Callable[[Lab], None]) -> None:
    """What it sees is its own affair."""
    meet(lab)
    with lab.unchanged():
        lab.observe("one")


def test_the_old_execution_that_claims_again_may_carry_it_out(lab: Lab) -> None:
    """A copy whose outbox is not sent yet is as good as the message that waits."""
    lost_and_requeued(lab)
    assert lab.claim("one") == ClaimAnswer(ClaimVerdict.RUN, attempt=2, generation=1)
    assert "outbox" not in lab.fields


def test_the_old_message_is_stale_once_the_new_one_is_sent(lab: Lab) -> None:
    """After `published` the copy of the lower generation is not wanted."""
    lost_and_requeued(lab)
    lab.published(1)
    with lab.unchanged():
        assert lab.claim("two", owner=BOB) == ClaimAnswer(ClaimVerdict.SKIP, why="stale")
        assert lab.claim("one") == ClaimAnswer(ClaimVerdict.SKIP, why="stale")


def test_a_janitor_that_saw_the_owner_dead_recovers_nothing(lab: Lab) -> None:
    """What was sent again at once is not completed as lost."""
    lab.run("one", message=KEPT)
    record = lab.record
    lab.dies(ALICE)
    lab.request("requeue")
    with lab.unchanged():
        assert lab.store.recover(record, owner=BOB, worker="w", recovery_id="r") is None


# Stale copies.


def waiting(lab: Lab) -> None:
    """ENQUEUED as generation 1, published."""
    lab.requeued()
    lab.published(1)


def waiting_in_outbox(lab: Lab) -> None:
    """The same, not published yet."""
    lab.requeued()


def waiting_for_a_time(lab: Lab) -> None:
    """SCHEDULED as generation 1, published."""
    waiting_for_a_time_in_outbox(lab)
    lab.published(1)


def waiting_for_a_time_in_outbox(lab: Lab) -> None:
    """The same, not published yet."""
    lab.final(Ending.RAISED, message=KEPT)
    assert lab.request("requeue", wanted_eta=later()).applied


def waiting_for_a_time_with_the_worker(lab: Lab) -> None:
    """The same, and the message is not kept: only the worker that stopped it has it."""
    lab.run("one")
    lab.request("requeue", wanted_eta=later())
    lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)


@pytest.mark.parametrize(
    ("meet", "generation", "runs"),
    [
        (waiting, 0, False),
        (waiting, 1, True),
        (waiting, 2, True),
        (waiting_in_outbox, 0, True),
        (waiting_in_outbox, 1, True),
        (waiting_in_outbox, 2, True),
        (waiting_for_a_time, 0, False),
        (waiting_for_a_time, 1, True),
        (waiting_for_a_time_in_outbox, 0, False),
        (waiting_for_a_time_in_outbox, 1, True),
        (waiting_for_a_time_with_the_worker, 0, True),
        (waiting_for_a_time_with_the_worker, 1, True),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_each_copy_of_a_waiting_task(
    lab: Lab, meet: Callable[[Lab], None], generation: int, runs: bool
) -> None:
    """An older copy runs only in place of one that was not sent, and not before its time if that is known."""
    meet(lab)
    answer = lab.claim("two", owner=BOB, generation=generation)
    if runs:
        assert answer == ClaimAnswer(ClaimVerdict.RUN, attempt=2, generation=max(1, generation))
        assert "outbox" not in lab.fields
    else:
        assert answer == ClaimAnswer(ClaimVerdict.SKIP, why="stale")


def test_a_new_send_of_a_requeued_id_has_a_new_life(lab: Lab) -> None:
    """Sent again on purpose, the id's copies that wait are of the old life."""
    lab.requeued()
    assert lab.claim("two", send="again") == ClaimAnswer(ClaimVerdict.RUN, attempt=1, generation=0)
    assert "outbox" not in lab.fields


# Rank.


def test_a_revoke_overrules_a_requeue(lab: Lab) -> None:
    """Who wants less than another is told so."""
    lab.run("one")
    lab.request("requeue", "first")
    lab.request("revoke", "second")
    assert lab.history == [
        "PROCESSING",
        "PROCESSING first:pending",
        "PROCESSING first:overruled",
        "PROCESSING second:pending",
    ]


def test_a_delete_overrules_a_revoke_that_overruled_a_requeue(lab: Lab) -> None:
    """Each that was overruled has its own answer."""
    lab.run("one")
    for kind in ("requeue", "revoke", "delete"):
        assert lab.request(kind, kind).applied
    lab.finish("one", Ending.CANCELLED, cause=Cause.DELETED, observed=True)
    lab.settle()
    assert [line for line in lab.history if not line.endswith("pending")] == [
        "PROCESSING",
        "PROCESSING requeue:overruled",
        "PROCESSING revoke:overruled",
        "DELETED delete:effective",
    ]


def test_an_overruled_requeue_takes_its_time_along(lab: Lab) -> None:
    """The time that was wanted of another request does not reach the next requeue."""
    lab.run("one", message=KEPT)
    lab.request("requeue", "first", wanted_eta=later())
    lab.request("revoke", "second")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)
    lab.settle()
    assert lab.request("requeue", "third").outbox == Enqueued(1)
    assert lab.state == "ENQUEUED"


@pytest.mark.parametrize("kind", ["revoke", "delete"])
def test_a_requeue_does_not_follow_a_revoke(lab: Lab, kind: str) -> None:
    """While more is wanted of a task, a requeue of it is refused."""
    lab.run("one", message=KEPT)
    lab.request(kind, "first")
    with lab.unchanged():
        assert lab.request("requeue", "second") == refused("already", State.PROCESSING)


def test_a_requeue_of_an_end_that_is_being_written_is_as_good_as_done(lab: Lab) -> None:
    """It cannot be withdrawn: what the task ends as would be told in its words."""
    lab.finishing(message=KEPT)
    lab.request("requeue")
    with lab.unchanged():
        assert lab.withdraw() == RequestAnswer(False, "finishing", State.FINISHING)


# A janitor.


def test_a_lost_task_that_was_to_be_requeued_is_sent_again(lab: Lab) -> None:
    """What the dead worker was to send back is sent from the record."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    lab.dies(ALICE)
    assert lab.recover() is None
    fields = lab.fields
    assert (fields["state"], fields["outbox"], fields["answer"]) == ("ENQUEUED", "1", "effective")
    assert {"execution", "owner"} & set(fields) == set()
    assert lab.in_outbox


def test_a_lost_task_that_is_sent_again_was_not_run_by_the_janitor(lab: Lab) -> None:
    """The record goes on naming the worker that ran it."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    lab.recover()
    assert lab.record.worker == "celery@alice"
    assert not lab.listed("worker", f"celery@{BOB}")


def test_a_lost_task_that_was_to_be_requeued_at_a_time_is_scheduled(lab: Lab) -> None:
    """Its time is not forgotten."""
    lab.run("one", message=KEPT)
    at = later()
    lab.request("requeue", wanted_eta=at)
    lab.recover()
    assert (lab.state, lab.fields["eta"]) == ("SCHEDULED", str(at))


def test_a_redelivered_message_meets_a_requeue_whose_message_is_not_kept(lab: Lab) -> None:
    """The broker's copy takes over, which is what was wanted."""
    lab.run("one", late_ack=True)
    lab.request("requeue")
    assert lab.recover() is None
    lab.run("two", owner=BOB, redelivered=True, take_over_from=("one", ALICE))
    assert lab.history[-2:] == ["PROCESSING request:effective", "PROCESSING"]


def test_an_end_with_a_pending_requeue_that_its_worker_did_not_settle(lab: Lab) -> None:
    """Whoever completes the end sends the task again."""
    lab.finishing(message=KEPT)
    lab.request("requeue")
    assert lab.recover() is not None
    assert lab.settle("recovery", owner=BOB) is Settled.SENT_AGAIN
    assert lab.state == "ENQUEUED"


def test_nothing_is_delivered_of_a_requeue_that_was_done(lab: Lab) -> None:
    """What was answered at once is not told to the next run."""
    lab.requeued()
    lab.run("two", generation=1)
    assert lab.deliver("two") == Delivery(DeliveryVerdict.NONE)
    assert "request" not in lab.fields
