"""Cooperative cancellation for Celery tasks.

Names are loaded when they are first used, so that a program which only checks a token, or only sends
tasks, loads neither Redis nor the worker's side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_canceltoken.api import get_record, revoke
    from celery_canceltoken.cancelled import TaskCancelled
    from celery_canceltoken.cause import Cause
    from celery_canceltoken.control import Outcome, RequestHandle
    from celery_canceltoken.current import current_token
    from celery_canceltoken.errors import (
        CancelTokenError,
        InvalidArgumentError,
        RecordUnreadableError,
        SettingsError,
        StoreUnavailableError,
    )
    from celery_canceltoken.record import TaskRecord
    from celery_canceltoken.states import State
    from celery_canceltoken.task.base import CancellableTask
    from celery_canceltoken.token import CancellationSource, CancellationToken, Registration

__all__ = [
    "CancelTokenError",
    "CancellableTask",
    "CancellationSource",
    "CancellationToken",
    "Cause",
    "InvalidArgumentError",
    "Outcome",
    "RecordUnreadableError",
    "Registration",
    "RequestHandle",
    "SettingsError",
    "State",
    "StoreUnavailableError",
    "TaskCancelled",
    "TaskRecord",
    "current_token",
    "get_record",
    "revoke",
]

__version__ = "0.1.0"

_HOMES = {
    "CancelTokenError": "errors",
    "CancellableTask": "task.base",
    "CancellationSource": "token",
    "CancellationToken": "token",
    "Cause": "cause",
    "InvalidArgumentError": "errors",
    "Outcome": "control",
    "RecordUnreadableError": "errors",
    "Registration": "token",
    "RequestHandle": "control",
    "SettingsError": "errors",
    "State": "states",
    "StoreUnavailableError": "errors",
    "TaskCancelled": "cancelled",
    "TaskRecord": "record",
    "current_token": "current",
    "get_record": "api",
    "revoke": "api",
}


# Hidden from type checkers, which would take any misspelt name for an object that it may return.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
