from __future__ import annotations

import pytest

from tests.support.waiting import wait_until


def test_it_returns_the_first_true_value() -> None:
    """Waiting hands back what the predicate found."""
    values = iter([0, "", "found", "later"])
    assert wait_until(lambda: next(values), description="something is found") == "found"


def test_a_vain_wait_names_what_it_waited_for() -> None:
    """The failure holds the description and the last value."""
    with pytest.raises(AssertionError, match=r"until the moon is full; last value: \[\]"):
        wait_until(list, timeout=0.02, description="the moon is full")


def test_a_costly_description_is_made_only_for_a_failure() -> None:
    """A callable description is left alone while all is well."""

    def fail() -> str:
        raise RuntimeError("made in vain")

    assert wait_until(lambda: True, description=fail)
    with pytest.raises(AssertionError, match="until the log says more"):
        wait_until(lambda: False, timeout=0, description=lambda: "the log says more")
