"""The Lua scripts, read from the package; each file's head says what it takes and answers."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

__all__ = ["script_source"]


@cache
def script_source(name: str) -> str:
    """Return the source of lua/<name>.lua with the common functions before it."""
    folder = files(__package__) / "lua"
    common = (folder / "common.lua").read_text(encoding="utf-8")
    return common + "\n" + (folder / f"{name}.lua").read_text(encoding="utf-8")
