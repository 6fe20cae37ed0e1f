"""The headers by which a message says which life of its id it wants, and which generation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_canceltoken.task.stamp import Stamp

ABSENT = Stamp("", 0)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)


def headers(send: Any, generation: Any) -> dict[str, Any]:
    return {"canceltoken_send": send, "canceltoken_generation": generation}


def test_a_fresh_stamp_is_a_life_of_its_own() -> None:
    """Two deliberate sends differ, and each begins at generation 0."""
    one, other = Stamp.fresh(), Stamp.fresh()
    assert one.send
    assert one.send != other.send
    assert (one.generation, other.generation) == (0, 0)


@pytest.mark.parametrize("stamp", [Stamp.fresh(), Stamp("s", 7), Stamp("x" * 64, 2**31 - 1)])
def test_a_stamp_survives_the_wire(stamp: Stamp) -> None:
    """What one process stamps, another reads, JSON in between."""
    assert Stamp.of(json.loads(json.dumps(stamp.headers()))) == stamp


def test_other_headers_are_not_ours() -> None:
    """A message keeps its own headers beside the stamp."""
    assert Stamp.of({**headers("s", 1), "lang": "py", "retries": 4}) == Stamp("s", 1)


@pytest.mark.parametrize("missing", [None, {}, {"lang": "py"}], ids=repr)
def test_a_message_without_a_stamp_has_the_default_one(missing: dict[str, Any] | None) -> None:
    """What another program has published counts as generation 0 of no known send."""
    assert Stamp.of(missing) == ABSENT


@pytest.mark.parametrize("send", [None, 5, b"s", ["s"], "x" * 65, "a\nb", "a\0", True], ids=repr)
def test_a_malformed_send_counts_as_absent(send: Any) -> None:
    """A send that cannot be ours takes its generation with it."""
    assert Stamp.of(headers(send, 4)) == ABSENT


@pytest.mark.parametrize("generation", [None, "1", 1.0, True, False, -1, 2**31, 10**30, [1]], ids=repr)
def test_a_malformed_generation_counts_as_zero(generation: Any) -> None:
    """A generation that cannot be ours is that of a first copy; the send stays."""
    assert Stamp.of(headers("s", generation)) == Stamp("s", 0)


@settings(deadline=None)
@given(send=ANYTHING, generation=ANYTHING)
def test_no_header_from_outside_does_harm(send: Any, generation: Any) -> None:
    """Whatever stands in the headers, a bounded and printable stamp comes of it."""
    stamp = Stamp.of(headers(send, generation))
    assert type(stamp.send) is str
    assert len(stamp.send) <= 64
    assert stamp.send.isprintable()
    assert type(stamp.generation) is int
    assert 0 <= stamp.generation < 2**31


def test_the_continuation_of_a_message_without_a_stamp_is_told_from_it() -> None:
    """What another program has sent may be retried: the copy is the next generation of the same life."""
    first = Stamp.of(None)
    again = Stamp.of(json.loads(json.dumps(Stamp(first.send, first.generation + 1).headers())))
    assert again.send == first.send
    assert again.generation == first.generation + 1
