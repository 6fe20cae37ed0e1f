"""The ladder's third time: the body has seen its token tripped."""

from __future__ import annotations

from tests.store.conftest import BOB, Lab


def test_an_observation_is_marked_with_its_time(lab: Lab) -> None:
    """The ladder shows when the body knew."""
    lab.run("one")
    lab.request()
    lab.deliver("one")
    lab.observe("one")
    assert lab.fields["observed_at"] >= lab.fields["delivered_at"]


def test_an_observation_that_is_told_late_is_counted_back(lab: Lab) -> None:
    """The time is when the body saw, not when somebody came to write it down."""
    lab.run("one")
    lab.request()
    seconds, microseconds = lab.redis.time()
    lab.observe("one", ago=100.0)
    told = seconds * 1_000_000 + microseconds
    assert -100_000_000 <= int(lab.fields["observed_at"]) - told < -90_000_000


def test_the_first_observation_stays(lab: Lab) -> None:
    """A body that looks again is not later than it was."""
    lab.run("one")
    lab.request()
    lab.observe("one")
    with lab.unchanged():
        lab.observe("one")


def test_an_observation_without_a_request_is_dropped(lab: Lab) -> None:
    """A token that tripped for a reason of its worker's has no ladder in the record."""
    lab.run("one")
    with lab.unchanged():
        lab.observe("one")


def test_another_execution_observes_nothing(lab: Lab) -> None:
    """A superseded body does not write into its successor's record."""
    lab.run("one")
    lab.run("two", owner=BOB, generation=1)
    lab.request()
    with lab.unchanged():
        lab.observe("one")


def test_an_observation_makes_no_record(lab: Lab) -> None:
    """A late word about a record that is gone leaves nothing behind."""
    lab.observe("one")
    assert lab.fields == {}


def test_an_observation_of_a_request_alone_is_dropped(lab: Lab) -> None:
    """A request that nobody has been told of cannot have been seen."""
    lab.request()
    with lab.unchanged():
        lab.observe("one")
