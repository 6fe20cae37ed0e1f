"""Messages between an agent and its children: a length, then JSON. Never pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["FrameError", "FrameReader", "encode_frame"]

Frame = dict[str, Any]

_LENGTH = struct.Struct("!I")
MAX_FRAME = 1 << 20
"""Bytes. Larger than any frame we send: a length above it means that the peer is not one of ours."""


class FrameError(ValueError):
    """The bytes are not a frame; the connection they came from is of no use any more."""


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of one frame."""
    body = json.dumps(frame, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Puts frames together from however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take *data* and yield the frames that are complete by now. Raises FrameError."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                frame = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise FrameError(f"not JSON: {error}") from error
            if not isinstance(frame, dict):
                raise FrameError("not an object")
            yield frame
