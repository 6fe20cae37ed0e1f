"""Cooperative cancellation for Celery tasks.

Names are loaded when they are first used, so that a program which only checks a token, or only sends
tasks, loads neither Redis nor the worker's side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_canceltoken.api import (
        delete,
        drain,
        get_record,
        list_records,
        requeue,
        reschedule,
        revoke,
        revoke_group,
        revoke_many,
        revoke_where,
        revoke_workflow,
        undrain,
        withdraw,
    )
    from celery_canceltoken.cancelled import TaskCancelled
    from celery_canceltoken.cause import Cause
    from celery_canceltoken.control.handle import Outcome, RequestHandle, RequestHandles
    from celery_canceltoken.control.listing import RecordPage
    from celery_canceltoken.control.many import StoredTask
    from celery_canceltoken.current import current_token
    from celery_canceltoken.errors import (
        CancelTokenError,
        InvalidArgumentError,
        RecordUnreadableError,
        SettingsError,
        ShutdownError,
        StoreUnavailableError,
        SupersededError,
    )
    from celery_canceltoken.record import Change, TaskRecord
    from celery_canceltoken.signals import task_cancelled
    from celery_canceltoken.states import State
    from celery_canceltoken.task.base import CancellableTask
    from celery_canceltoken.task.context import CurrentExecution
    from celery_canceltoken.task.execution import current_execution
    from celery_canceltoken.token import CancellationSource, CancellationToken, Registration

__all__ = [
    "CancelTokenError",
    "CancellableTask",
    "CancellationSource",
    "CancellationToken",
    "Cause",
    "Change",
    "CurrentExecution",
    "InvalidArgumentError",
    "Outcome",
    "RecordPage",
    "RecordUnreadableError",
    "Registration",
    "RequestHandle",
    "RequestHandles",
    "SettingsError",
    "ShutdownError",
    "State",
    "StoreUnavailableError",
    "StoredTask",
    "SupersededError",
    "TaskCancelled",
    "TaskRecord",
    "current_execution",
    "current_token",
    "delete",
    "drain",
    "get_record",
    "list_records",
    "requeue",
    "reschedule",
    "revoke",
    "revoke_group",
    "revoke_many",
    "revoke_where",
    "revoke_workflow",
    "task_cancelled",
    "undrain",
    "withdraw",
]

__version__ = "0.1.0"

_HOMES = {
    "CancelTokenError": "errors",
    "CancellableTask": "task.base",
    "CancellationSource": "token",
    "CancellationToken": "token",
    "Cause": "cause",
    "Change": "record",
    "CurrentExecution": "task.context",
    "InvalidArgumentError": "errors",
    "Outcome": "control.handle",
    "RecordPage": "control.listing",
    "RecordUnreadableError": "errors",
    "Registration": "token",
    "RequestHandle": "control.handle",
    "RequestHandles": "control.handle",
    "SettingsError": "errors",
    "ShutdownError": "errors",
    "State": "states",
    "StoreUnavailableError": "errors",
    "StoredTask": "control.many",
    "SupersededError": "errors",
    "TaskCancelled": "cancelled",
    "TaskRecord": "record",
    "current_execution": "task.execution",
    "current_token": "current",
    "delete": "api",
    "drain": "api",
    "get_record": "api",
    "list_records": "api",
    "requeue": "api",
    "reschedule": "api",
    "revoke": "api",
    "revoke_group": "api",
    "revoke_many": "api",
    "revoke_where": "api",
    "revoke_workflow": "api",
    "task_cancelled": "signals",
    "undrain": "api",
    "withdraw": "api",
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
