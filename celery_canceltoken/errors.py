"""Everything this package raises on purpose, besides `TaskCancelled`."""

from __future__ import annotations

__all__ = [
    "CancelTokenError",
    "InvalidArgumentError",
    "RecordUnreadableError",
    "SettingsError",
    "ShutdownError",
    "StoreUnavailableError",
    "SupersededError",
]


class CancelTokenError(Exception):
    """Base of all errors of this package."""


class InvalidArgumentError(CancelTokenError, ValueError):
    """An argument was refused; nothing was written. The message names it and the remedy."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument}: {self.problem}"


class SettingsError(CancelTokenError, ValueError):
    """A setting is unknown, or its value is not usable. The message names it and the remedy."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting = setting
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class StoreUnavailableError(CancelTokenError, ConnectionError):
    """The store did not answer in time. Nothing is known to have been applied."""


class RecordUnreadableError(CancelTokenError):
    """The stored record of one task is damaged, or was written by a newer release."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"record {self.key!r}: {self.problem}"


class ShutdownError(CancelTokenError):
    """The task was stopped by its worker's shutdown, and is not to be sent back to its queue (again)."""


class SupersededError(CancelTokenError):
    """Another execution owns the task id: what this one wanted to save was not written."""
