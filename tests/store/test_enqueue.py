"""Publishers that track what they send: a record before any worker has seen the message."""

from __future__ import annotations

from typing import Any

import pytest

from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import ClaimAnswer, ClaimVerdict, Enqueued
from tests.store.conftest import BOB, KEPT, Lab

AT = 9_000_000_000_000_000


def test_a_published_task_waits(lab: Lab) -> None:
    """Its name, queue, workflow and message are known from the start."""
    assert lab.enqueue(queue="reports", root="root", takes_token="1")
    record = lab.record
    assert (record.state, record.name, record.queue, record.root_id) == (
        State.ENQUEUED,
        "shop.export",
        "reports",
        "root",
    )
    assert record.takes_token is True
    assert lab.fields["message"] == KEPT
    assert "outbox" not in lab.fields


def test_a_task_with_a_time_is_scheduled(lab: Lab) -> None:
    """What is not to run at once is told from what is."""
    lab.enqueue(eta=str(AT))
    assert (lab.state, lab.fields["eta"]) == ("SCHEDULED", str(AT))


def test_why_a_message_is_not_kept_is_known(lab: Lab) -> None:
    """A task that cannot be requeued says why."""
    lab.enqueue(message="", unkept="too-large")
    assert lab.record.message_not_kept == "too-large"
    assert "message" not in lab.fields


def test_writing_it_twice_changes_nothing(lab: Lab) -> None:
    """A lost answer may be asked for again."""
    assert lab.enqueue()
    with lab.unchanged():
        assert not lab.enqueue()


@pytest.mark.parametrize("kind", ["revoke", "delete"])
def test_what_was_asked_of_the_id_before_stays(lab: Lab, kind: str) -> None:
    """A request that was faster than the publisher's note denies the task."""
    lab.request(kind)
    assert lab.enqueue()
    assert lab.state == "ENQUEUED"
    assert lab.claim("one").verdict is ClaimVerdict.DENIED


@pytest.mark.parametrize("known", ["retry", "running", "finishing", "requeued"])
def test_what_is_known_of_a_task_is_more(lab: Lab, known: str) -> None:
    """A worker that was faster is not overruled; neither is the copy of a retry news."""
    if known == "retry":
        lab.enqueued(1)
    elif known == "running":
        lab.run("one")
    elif known == "finishing":
        lab.finishing()
    else:
        lab.requeued()
    with lab.unchanged():
        assert not lab.enqueue(generation=1)
        assert not lab.enqueue(send="again")


def test_the_note_of_a_life_that_has_ended_comes_too_late(lab: Lab) -> None:
    """The same send does not come to life again by its publisher's note."""
    lab.final()
    with lab.unchanged():
        assert not lab.enqueue()


def test_an_ended_id_that_is_sent_again_waits(lab: Lab) -> None:
    """A new send of it is a new life, of which nothing but the history knows the old one."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.RAISED, value="[1]", error="ValueError()")
    lab.settle()
    assert lab.enqueue(send="again")
    left = {name for name in lab.fields if not name.startswith("h")}
    assert left == {"v", "state", "send", "generation", "name", "message", "changes"}
    assert lab.history[-1] == "ENQUEUED"


def test_a_tracked_task_runs_as_its_first_attempt(lab: Lab) -> None:
    """Having waited is no attempt."""
    lab.enqueue()
    assert lab.claim("one") == ClaimAnswer(ClaimVerdict.RUN, attempt=1, generation=0)


@pytest.mark.parametrize("damage", [{"v": "2"}, {"state": "PAUSED"}], ids=str)
def test_what_cannot_be_read_is_left_alone(lab: Lab, damage: dict[str, str]) -> None:
    """A newer release's record, or a damaged one, is not written over."""
    lab.run("one")
    lab.set(**damage)
    with lab.unchanged():
        assert not lab.enqueue(send="again")


def test_a_tracked_task_is_rescheduled(lab: Lab) -> None:
    """Its message is kept from the start, so it can be sent for another time."""
    lab.enqueue()
    answer = lab.request("requeue", wanted_eta=AT)
    assert (answer.previous, answer.outbox) == (State.ENQUEUED, Enqueued(1, AT))


@pytest.mark.parametrize(("root", "member"), [("root", True), ("", False), ("task-7", False)])
def test_a_member_of_a_workflow_is_found_by_its_root(lab: Lab, root: str, member: bool) -> None:
    """What was sent by a workflow belongs to it before it runs; the root is no member of its own."""
    lab.enqueue(root=root)
    found = lab.store.ask(lab.store.calls.members(root or "root"))
    assert found == ([lab.task_id] if member else [])


@pytest.mark.parametrize("fields", [{}, {"eta": str(AT)}], ids=["enqueued", "scheduled"])
def test_a_tracked_task_is_not_recovered(lab: Lab, fields: dict[str, Any]) -> None:
    """It is nobody's."""
    lab.enqueue(**fields)
    with lab.unchanged():
        assert lab.recover(by=BOB) is None
