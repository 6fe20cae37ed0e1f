"""What a handle says came of its order, whatever came of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.control.handle import Outcome, RequestHandle, RequestHandles
from celery_canceltoken.errors import CancelTokenError
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import State
from tests.store.conftest import KEPT, Lab
from tests.support import orders


def asked(lab: Lab, kind: str = "revoke", **words: object) -> RequestHandle:
    order = {"revoke": orders.revoke, "delete": orders.delete, "requeue": orders.requeue}[kind]
    handle = order(lab.store, lab.task_id, reason="why", actor="me", **words)
    assert handle.applied
    return handle


def nothing_yet(handle: RequestHandle) -> bool:
    try:
        handle.wait(0)
    except TimeoutError:
        return True
    return False


def stop(lab: Lab, cause: Cause) -> None:
    """The body heeds it."""
    lab.deliver()
    lab.finish("one", Ending.CANCELLED, cause=cause, observed=True)


@pytest.mark.parametrize(
    ("kind", "cause", "state"),
    [("revoke", Cause.REVOKED, State.REVOKED), ("delete", Cause.DELETED, State.DELETED)],
)
def test_an_order_that_was_heeded(lab: Lab, kind: str, cause: Cause, state: State) -> None:
    """Its outcome is the end of the task, once that is written."""
    lab.run("one", message=KEPT)
    handle = asked(lab, kind)
    assert nothing_yet(handle)
    stop(lab, cause)
    assert nothing_yet(handle)
    lab.settle()
    assert handle.wait(5) == Outcome(lab.task_id, state, cause, "why", "me")
    assert str(handle.wait(5)) == state.value


def test_an_order_that_came_too_late(lab: Lab) -> None:
    """The task ended in its own way."""
    lab.run("one")
    handle = asked(lab)
    lab.finish("one")
    lab.settle()
    outcome = handle.wait(5)
    assert (outcome.state, outcome.came_too_late) == (State.SUCCEEDED, True)
    assert str(outcome) == "SUCCEEDED: came too late"


def test_an_order_that_was_withdrawn(lab: Lab) -> None:
    """It had no effect, and its words are still told."""
    lab.run("one")
    handle = asked(lab)
    assert orders.withdraw(lab.store, lab.task_id, request_id=handle.request_id).applied
    outcome = handle.wait(5)
    assert (outcome.state, outcome.withdrawn, outcome.reason) == (State.PROCESSING, True, "why")
    assert str(outcome) == "PROCESSING: withdrawn"
    lab.finish("one")
    lab.settle()
    assert handle.wait(5) == outcome


def test_an_order_that_was_overruled(lab: Lab) -> None:
    """By one that wants more, whose own outcome follows."""
    lab.run("one")
    first, second = asked(lab), asked(lab, "delete")
    assert first.wait(5).overruled
    assert nothing_yet(second)
    assert str(first.wait(5)) == "PROCESSING: overruled"


def test_a_requeue_of_an_ended_task_is_done_at_once(lab: Lab) -> None:
    """The run that it found had ended already."""
    lab.final(Ending.RAISED, message=KEPT)
    outcome = asked(lab, "requeue").wait(5)
    assert (outcome.state, outcome.cause, outcome.completed) == (State.ENQUEUED, Cause.REQUEUED, False)


def test_a_requeue_of_a_running_task_is_done_when_the_run_ends(lab: Lab) -> None:
    """And says whether the work was done."""
    lab.run("one", message=KEPT)
    handle = asked(lab, "requeue")
    assert nothing_yet(handle)
    lab.finish("one", Ending.RETURNED)
    assert str(handle.wait(5)) == "ENQUEUED: the run had completed"


THEN: dict[str, Callable[[Lab], object]] = {
    "the next run": lambda lab: lab.run("two", generation=1, message=KEPT),
    "a revoke": lambda lab: lab.request("revoke", "later"),
    "a new life": lambda lab: lab.run("two", send="again", message=KEPT),
}


@pytest.mark.parametrize("then", THEN.values(), ids=THEN)
def test_an_outcome_does_not_change_by_what_comes_later(lab: Lab, then: Callable[[Lab], object]) -> None:
    """Whoever asks late is told what whoever asked early was told."""
    lab.final(Ending.RAISED, message=KEPT)
    handle = asked(lab, "requeue")
    before = handle.wait(5)
    then(lab)
    assert handle.wait(5) == before


def test_a_revoke_that_a_requeue_follows_keeps_its_outcome(lab: Lab) -> None:
    """Also where the requeue comes before the end is written."""
    lab.run("one", message=KEPT)
    revoked = asked(lab)
    stop(lab, Cause.REVOKED)
    requeued = asked(lab, "requeue")
    assert revoked.wait(5).state is State.REVOKED
    assert nothing_yet(requeued)
    lab.settle()
    assert requeued.wait(5).state is State.ENQUEUED


def test_an_order_of_an_unseen_id_waits_for_its_message(lab: Lab) -> None:
    """Nothing has come of it until a worker has."""
    handle = asked(lab)
    assert nothing_yet(handle)
    lab.claim("one")
    assert nothing_yet(handle)
    lab.settle()
    assert handle.wait(5).state is State.REVOKED


def test_an_order_whose_record_is_gone(lab: Lab) -> None:
    """What came of it is not known any more, and nobody waits for ever."""
    handle = asked(lab)
    lab.remove()
    outcome = handle.wait(5)
    assert (outcome.state, str(outcome)) == (None, "no record any more")


def test_an_order_whose_lines_are_gone(lab: Lab) -> None:
    """Twenty changes later it is as good as gone."""
    lab.final(Ending.RAISED, message=KEPT)
    handle = asked(lab, "requeue")
    for generation in range(1, 12):
        lab.run(f"run-{generation}", generation=generation)
        lab.finish(f"run-{generation}", Ending.RETRIED)
    assert handle.wait(5) == Outcome(lab.task_id, None, None, None, None)


def test_a_refused_order_waits_for_the_end(lab: Lab) -> None:
    """Somebody else's order, or the task itself, brings it."""
    lab.run("one")
    asked(lab)
    second = orders.revoke(lab.store, lab.task_id)
    assert not second
    assert nothing_yet(second)
    stop(lab, Cause.REVOKED)
    lab.settle()
    assert second.wait(5) == Outcome(lab.task_id, State.REVOKED, Cause.REVOKED, "why", "me")


def test_after_a_withdrawal_the_end_of_the_task_is_waited_for(lab: Lab) -> None:
    """It has no other effect to wait for; and the end has no cause."""
    lab.run("one")
    asked(lab)
    withdrawal = orders.withdraw(lab.store, lab.task_id)
    assert nothing_yet(withdrawal)
    lab.finish("one")
    lab.settle()
    assert withdrawal.wait(5) == Outcome(lab.task_id, State.SUCCEEDED, None, None, None)


def test_of_an_unknown_task_there_is_nothing_to_wait_for(lab: Lab) -> None:
    """A refused order of an id that nobody knows is an error to wait for, not a wait without end."""
    handle = orders.revoke(lab.store, lab.task_id, must_exist=True)
    with pytest.raises(CancelTokenError, match="nothing to wait for: task task-7 is not known"):
        handle.wait(5)


@pytest.mark.parametrize(
    ("meet", "order", "refusal"),
    [
        (lambda _: None, orders.requeue, "nothing is known of this id"),
        (lambda lab: lab.final(), orders.revoke, "the task has ended"),
        (lambda lab: lab.finishing(), orders.revoke, "the task's body has ended"),
        (lambda lab: lab.enqueue(), orders.requeue, "the task is in its queue"),
        (lambda lab: lab.run("one"), orders.withdraw, "nothing is asked of the task that could be taken"),
        (lambda lab: lab.final(), orders.requeue, "no message of the task is kept: the task has succeeded"),
        *(
            (lambda lab, why=why: lab.final(Ending.RAISED, unkept=why), orders.requeue, words)
            for why, words in {
                "setting": "canceltoken_keep_message",
                "too-large": "larger than canceltoken_message_limit",
                "not-json": "a header of it cannot be kept as JSON",
                "unreadable": "a form that cannot be sent again",
            }.items()
        ),
    ],
)
def test_a_refusal_says_why(
    lab: Lab, meet: Callable[[Lab], object], order: Callable[..., RequestHandle], refusal: str
) -> None:
    """In words, of which none is the store's own."""
    meet(lab)
    handle = order(lab.store, lab.task_id)
    assert not handle
    assert handle.refusal is not None
    assert refusal in handle.refusal


def test_a_body_that_has_been_told_refuses_a_withdrawal_in_words(lab: Lab) -> None:
    """The token has tripped."""
    lab.run("one")
    asked(lab)
    lab.deliver()
    assert orders.withdraw(lab.store, lab.task_id).refusal == "the body has been told already"


def test_many_handles(lab: Lab) -> None:
    """True if any was applied; the outcomes are those of the applied, by id."""
    ended, unseen = lab.other("ended"), lab.other("unseen")
    ended.final()
    handles = RequestHandles(orders.revoke(lab.store, one.task_id) for one in (ended, unseen))
    assert handles
    assert ([one.task_id for one in handles.applied], [one.task_id for one in handles.refused]) == (
        ["unseen"],
        ["ended"],
    )
    unseen.claim("one")
    unseen.settle()
    assert {name: outcome.state for name, outcome in handles.wait(5).items()} == {"unseen": State.REVOKED}
    assert (len(handles), handles[0].task_id, [one.task_id for one in handles[1:]]) == (
        2,
        "ended",
        ["unseen"],
    )
    assert not RequestHandles([])
    assert repr(handles) == "<RequestHandles: 1 of 2 applied>"
