"""What a record remembers: its last 20 changes, and what became of each request."""

from __future__ import annotations

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import State
from tests.store.conftest import ALICE, BOB, KEPT, Lab


def test_a_life_from_queue_to_end(lab: Lab) -> None:
    """Each state it came to has its line, but for the moment between the body's end and its result's."""
    lab.enqueue()
    lab.run("one")
    lab.finish("one", Ending.RETRIED)
    lab.run("two", owner=BOB, generation=1)
    lab.finish("two")
    lab.settle("two", owner=BOB)
    assert lab.history == ["ENQUEUED", "PROCESSING", "ENQUEUED", "PROCESSING", "SUCCEEDED"]
    changes = lab.record.history
    assert [change.attempt for change in changes] == [0, 1, 1, 2, 2]
    assert [change.worker for change in changes[1:]] == ["celery@alice"] * 2 + ["celery@bob"] * 2
    assert [change.at for change in changes] == sorted(change.at for change in changes)


def test_a_request_and_its_answer(lab: Lab) -> None:
    """Who asked what and why, and what became of it."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)
    lab.settle()
    assert lab.history == ["PROCESSING", "PROCESSING request:pending", "REVOKED request:effective"]
    asked = lab.record.history[1]
    assert (asked.cause, asked.reason, asked.actor) == (Cause.REVOKED, "customer left", "alice")
    assert (asked.request_kind, asked.completed) == ("revoke", False)


def test_a_request_that_came_too_late(lab: Lab) -> None:
    """The last line says so."""
    lab.run("one")
    lab.request()
    lab.finish("one")
    lab.settle()
    assert lab.history[-1] == "SUCCEEDED request:too-late"


def test_a_request_of_an_unseen_id(lab: Lab) -> None:
    """It is there before any state is."""
    lab.request()
    assert lab.history == ["- request:pending"]
    lab.claim("one")
    lab.settle()
    assert lab.history == ["- request:pending", "REVOKED request:effective"]


@pytest.mark.parametrize("way", ["successor", "takeover"])
def test_a_requeue_that_another_copy_has_met(lab: Lab, way: str) -> None:
    """The run that starts is what was wanted, and the record has room for other requests."""
    lab.run("one")
    lab.request("requeue")
    if way == "successor":
        lab.run("two", owner=BOB, generation=1)
    else:
        lab.run("two", owner=BOB, take_over_from=("one", ALICE))
    assert lab.history[-2:] == ["PROCESSING request:effective", "PROCESSING"]
    assert "request" not in lab.fields


def test_a_lost_worker(lab: Lab) -> None:
    """The end that a janitor wrote names the janitor's worker, and no request that there was not."""
    lab.run("one")
    lab.recover()
    lab.settle("recovery", owner=BOB)
    assert lab.history == ["PROCESSING", "FAILED"]
    assert lab.record.history[-1].worker == f"celery@{BOB}"


def test_an_earlier_life_is_remembered(lab: Lab) -> None:
    """The same id sent again goes on with its history."""
    lab.run("one")
    lab.request("revoke", "first")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)
    lab.settle()
    lab.run("two", send="again")
    assert lab.history[-2:] == ["REVOKED first:effective", "PROCESSING"]


@pytest.mark.parametrize("retries", [9, 10, 11, 25])
def test_the_last_twenty_are_kept(lab: Lab, retries: int) -> None:
    """In their order, and no more than that, however many there were."""
    for attempt in range(retries):
        lab.run(f"run-{attempt}", generation=attempt)
        lab.finish(f"run-{attempt}", Ending.RETRIED)
    history = lab.record.history
    expected = (["PROCESSING", "ENQUEUED"] * retries)[-20:]
    assert [change.state for change in history] == [State(one) for one in expected]
    first = retries - len(expected) // 2 + 1
    assert [change.attempt for change in history[::2]] == list(range(first, retries + 1))
    lines = [name for name in lab.fields if name.startswith("h")]
    assert len(lines) == min(20, 2 * retries)


def test_what_changes_nothing_has_no_line(lab: Lab) -> None:
    """Refusals, repetitions and steps of the ladder are not changes."""
    lab.run("one", message=KEPT)
    lab.request()
    before = lab.history
    lab.request()
    lab.request("revoke", "second")
    lab.deliver()
    lab.observe()
    lab.withdraw()
    lab.finish("one")
    lab.finish("one")
    assert lab.history == before
    lab.settle()
    lab.settle()
    assert len(lab.history) == len(before) + 1


def test_an_adoption_has_no_line(lab: Lab) -> None:
    """The same body goes on."""
    lab.run("one")
    lab.adopt("one")
    assert lab.history == ["PROCESSING"]


def test_words_in_a_history_are_data(lab: Lab) -> None:
    """Whatever stands in a reason comes back as it was."""
    words = '"},\n{"n": 99} \\ %s 客 🚪 \x00'
    lab.run("one")
    lab.request(reason=words, actor=words)
    change = lab.record.history[-1]
    assert (change.reason, change.actor) == (words, words)
