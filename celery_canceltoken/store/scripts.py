"""The Lua scripts, read from the package; each file's head says what it takes and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["SCRIPTS", "script_arguments", "script_source"]

SCRIPTS = (
    *(
        "adopt",
        "checkpoint",
        "claim",
        "deliver",
        "enqueue",
        "finish",
        "keep",
        "mark",
        "observe",
        "outbox",
        "published",
    ),
    *("published", "recover", "request", "settle", "stand", "unlist", "withdraw"),
)


@cache
def script_source(name: str) -> str:
    """Return the source of lua/<name>.lua with the common functions before it."""
    folder = files(__package__) / "lua"
    common = (folder / "common.lua").read_text(encoding="utf-8")
    return common + "\n" + (folder / f"{name}.lua").read_text(encoding="utf-8")


def script_arguments(named: Mapping[str, Any] | Sequence[Any], blob: str = "") -> list[str]:
    """Return the ARGV of a script: its named arguments as JSON, and what is too large for that as it is."""
    return [json.dumps(named, separators=(",", ":")), blob]
