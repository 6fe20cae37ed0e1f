"""The two headers by which a message says which life of its id, and which generation of it, it wants."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Stamp"]

_SEND = "canceltoken_send"
_GENERATION = "canceltoken_generation"


@dataclass(frozen=True)
class Stamp:
    """*send* is new with each deliberate `apply_async`; *generation* rises with each copy that continues it.

    Headers come from outside: what is not of the expected form counts as absent.
    """

    send: str = ""
    generation: int = 0

    @classmethod
    def fresh(cls) -> Stamp:
        """The stamp of a deliberate send."""
        return cls(uuid.uuid4().hex)

    @classmethod
    def of(cls, headers: Mapping[str, Any] | None) -> Stamp:
        """The stamp that *headers* carry; the default one where another program sent the message."""
        send = (headers or {}).get(_SEND, "")
        generation = (headers or {}).get(_GENERATION)
        if not isinstance(send, str) or len(send) > 64 or not send.isprintable():
            return cls()
        if isinstance(generation, bool) or not isinstance(generation, int) or not 0 <= generation < 2**31:
            generation = 0
        return cls(send, generation)

    @staticmethod
    def is_on(headers: Mapping[str, Any]) -> bool:
        """Tell whether *headers* say which life they want, in whatever form."""
        return _SEND in headers

    def headers(self) -> dict[str, Any]:
        """As message headers."""
        return {_SEND: self.send, _GENERATION: self.generation}
