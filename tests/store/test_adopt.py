"""After a lapsed lease: what is still an agent's goes over to its new incarnation."""

from __future__ import annotations

import pytest

from celery_canceltoken.outcome import Ending
from tests.store.conftest import ALICE, BOB, Lab

RETURNED = "alice.2"


def test_what_nobody_has_taken_is_adopted(lab: Lab) -> None:
    """An execution that is still its agent's has the new incarnation as its owner."""
    lab.run("one")
    before = lab.fields
    assert lab.adopt("one", ALICE, RETURNED)
    assert lab.fields == {**before, "owner": RETURNED}


def test_adopting_twice_is_adopting_once(lab: Lab) -> None:
    """An adoption whose answer was lost may be repeated."""
    lab.run("one")
    lab.adopt("one", ALICE, RETURNED)
    with lab.unchanged():
        assert lab.adopt("one", ALICE, RETURNED)


def test_an_execution_that_was_taken_over_is_not_adopted(lab: Lab) -> None:
    """What another worker runs by now stays there, and the agent learns that it has lost it."""
    lab.run("one")
    lab.run("two", owner=BOB, take_over_from=("one", ALICE))
    with lab.unchanged():
        assert not lab.adopt("one", ALICE, RETURNED)


def test_an_execution_that_was_recovered_is_not_adopted(lab: Lab) -> None:
    """What a janitor has ended is not revived."""
    lab.run("one")
    lab.recover()
    with lab.unchanged():
        assert not lab.adopt("one", ALICE, RETURNED)


def test_an_execution_that_was_overtaken_on_its_own_worker_is_not_adopted(lab: Lab) -> None:
    """A successor of the same owner's is not mistaken for the execution that it follows."""
    lab.run("one")
    lab.run("two", generation=1)
    with lab.unchanged():
        assert not lab.adopt("one", ALICE, RETURNED)
    assert lab.adopt("two", ALICE, RETURNED)


@pytest.mark.parametrize("owner", [BOB, "alice.3"])
def test_an_execution_of_another_owner_is_not_adopted(lab: Lab, owner: str) -> None:
    """Only the incarnation that the agent remembers hands over."""
    lab.run("one", owner=owner)
    with lab.unchanged():
        assert not lab.adopt("one", ALICE, RETURNED)


def test_a_lost_record_is_nothing_to_lose(lab: Lab) -> None:
    """Data loss is not taken for having been superseded, and leaves no trace."""
    lab.run("one")
    lab.remove()
    assert lab.adopt("one", ALICE, RETURNED)
    assert lab.fields == {}


def test_an_end_that_is_not_settled_yet_is_adopted(lab: Lab) -> None:
    """An agent that came back completes what it had begun to end."""
    lab.finishing()
    assert lab.adopt("one", ALICE, RETURNED)
    assert lab.recover(by=BOB) is not None
    assert lab.fields["owner"] == BOB


def test_an_adopted_execution_is_a_living_owners(lab: Lab) -> None:
    """Who had seen the former incarnation dead comes too late."""
    lab.run("one")
    record = lab.store.get(lab.task_id)
    assert record is not None
    lab.adopt("one", ALICE, RETURNED)
    with lab.unchanged():
        assert lab.store.recover(record, owner=BOB, worker="celery@bob", recovery_id="r") is None


def test_an_adopted_execution_finishes(lab: Lab) -> None:
    """The body that ran through it all ends as if nothing had been."""
    lab.run("one")
    lab.adopt("one", ALICE, RETURNED)
    assert lab.finish("one", Ending.RETURNED).recorded


def test_a_settled_record_is_not_touched(lab: Lab) -> None:
    """An adoption that meets a task's end leaves the final record as it is."""
    lab.final()
    with lab.unchanged():
        lab.adopt("one", ALICE, RETURNED)
