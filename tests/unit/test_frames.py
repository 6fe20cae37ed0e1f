"""Frames between an agent and its children."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_canceltoken.worker.frames import MAX_FRAME, FrameError, FrameReader, encode_frame

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=5)


def with_length(body: bytes, length: int | None = None) -> bytes:
    return struct.pack("!I", len(body) if length is None else length) + body


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, cut at the given places, empty pieces included."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@settings(deadline=None)
@given(frames=FRAMES, cuts=st.lists(st.integers(min_value=0), max_size=12))
def test_frames_arrive_whole_however_they_are_cut(frames: list[dict[str, Any]], cuts: list[int]) -> None:
    """Any chunking of the bytes gives the same frames in the same order."""
    reader = FrameReader()
    data = b"".join(map(encode_frame, frames))
    assert [frame for chunk in chunks_of(data, cuts) for frame in reader.feed(chunk)] == frames


def test_a_frame_comes_with_its_last_byte() -> None:
    """Nothing is handed out too early, and nothing is held back."""
    reader, frame = FrameReader(), {"type": "cancel"}
    *most, last = encode_frame(frame)
    assert [list(reader.feed(bytes([byte]))) for byte in most] == [[]] * len(most)
    assert list(reader.feed(bytes([last]))) == [frame]


def test_frames_that_nobody_took_are_kept() -> None:
    """A consumer that stops after one frame finds the others at its next turn."""
    reader = FrameReader()
    first = next(reader.feed(encode_frame({"n": 1}) + encode_frame({"n": 2})))
    assert [first, *reader.feed(b"")] == [{"n": 1}, {"n": 2}]


def test_text_of_any_script_survives() -> None:
    """A reason may be written in any language."""
    frame = {"reason": "Kunde weg, 客户走了, 🚪\u2028\0"}
    assert list(FrameReader().feed(encode_frame(frame))) == [frame]


def test_the_largest_frame_is_read() -> None:
    """The limit itself is allowed."""
    frame = {"value": "x" * (MAX_FRAME - len(json.dumps({"value": ""}, separators=(",", ":"))))}
    data = encode_frame(frame)
    assert len(data) == struct.calcsize("!I") + MAX_FRAME
    assert list(FrameReader().feed(data)) == [frame]


def test_an_oversize_frame_is_refused_by_its_length() -> None:
    """A length above the limit is an error before a byte of the body is waited for."""
    with pytest.raises(FrameError, match=f"{MAX_FRAME + 1} bytes"):
        list(FrameReader().feed(struct.pack("!I", MAX_FRAME + 1)))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"\x80\x04K\x01.", b"{}{}"], ids=repr)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    """Bytes that cannot be a frame, a pickle among them, are a typed error."""
    with pytest.raises(FrameError):
        list(FrameReader().feed(with_length(body)))


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"', b"true"], ids=repr)
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    """A frame has named parts."""
    with pytest.raises(FrameError, match="not an object"):
        list(FrameReader().feed(with_length(body)))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_garbage_is_an_error_or_not_yet_a_frame(data: bytes) -> None:
    """Random bytes are refused, waited on or frames, and never another kind of error."""
    with contextlib.suppress(FrameError):
        assert all(isinstance(frame, dict) for frame in FrameReader().feed(data))


@settings(deadline=None)
@given(frames=FRAMES, garbage=st.binary(max_size=16))
def test_frames_before_garbage_are_read(frames: list[dict[str, Any]], garbage: bytes) -> None:
    """What came whole before the stream broke is handed out, then comes the error."""
    stream = FrameReader().feed(b"".join(map(encode_frame, frames)) + with_length(b"!" + garbage))
    assert [next(stream) for _ in frames] == frames
    with pytest.raises(FrameError):
        next(stream)


def test_endless_nesting_is_refused() -> None:
    """A body that nests deeper than the interpreter goes is a typed error like any other garbage."""
    with pytest.raises(FrameError):
        list(FrameReader().feed(with_length(b"[" * 200_000)))
