"""The breaker, on a clock of the test's own."""

from __future__ import annotations

import pytest

from celery_canceltoken.store.breaker import Breaker

PAUSE = 2.0


class Clock:
    """Tells the time that the test has set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """A breaker that has seen nothing yet."""
    return Breaker(PAUSE, clock)


def test_at_first_everything_is_let_through(breaker: Breaker) -> None:
    """A breaker that knows of no failure refuses nothing."""
    assert not breaker.open
    assert not any(breaker.refuses() for _ in range(3))


def test_success_changes_nothing(breaker: Breaker) -> None:
    """Calls that are answered keep the way open."""
    breaker.succeeded()
    assert not breaker.open
    assert not breaker.refuses()


def test_after_a_failure_calls_are_refused(breaker: Breaker, clock: Clock) -> None:
    """One failure is enough, and it holds for the whole pause."""
    breaker.failed()
    assert breaker.open
    assert breaker.refuses()
    clock.now += PAUSE - 0.001
    assert breaker.refuses()


def test_after_the_pause_one_call_may_try(breaker: Breaker, clock: Clock) -> None:
    """When the pause is over a single call is let through, and the others go on being refused."""
    breaker.failed()
    clock.now += PAUSE
    assert not breaker.refuses()
    assert breaker.refuses()
    assert breaker.open


def test_a_try_that_says_nothing_is_followed_by_another(breaker: Breaker, clock: Clock) -> None:
    """A call that was let through and never came back does not block the way for ever."""
    breaker.failed()
    clock.now += PAUSE
    assert not breaker.refuses()
    clock.now += PAUSE
    assert not breaker.refuses()


def test_a_failed_try_starts_a_new_pause(breaker: Breaker, clock: Clock) -> None:
    """The pause is counted from the last failure."""
    breaker.failed()
    clock.now += PAUSE
    assert not breaker.refuses()
    clock.now += 0.5
    breaker.failed()
    clock.now += PAUSE - 0.001
    assert breaker.refuses()
    clock.now += 0.001
    assert not breaker.refuses()


def test_a_successful_try_lets_everything_through_again(breaker: Breaker, clock: Clock) -> None:
    """One answer ends the refusals at once, for all."""
    breaker.failed()
    clock.now += PAUSE
    assert not breaker.refuses()
    breaker.succeeded()
    assert not breaker.open
    assert not any(breaker.refuses() for _ in range(3))


def test_a_late_answer_of_an_earlier_call_counts(breaker: Breaker) -> None:
    """An answer is an answer, also to a call that was made before the failure."""
    breaker.failed()
    breaker.succeeded()
    assert not breaker.refuses()


def test_a_second_failure_opens_it_again(breaker: Breaker) -> None:
    """Having recovered once is no excuse."""
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.refuses()
