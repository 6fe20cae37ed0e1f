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
        get_record,
        list_records,
        requeue,
        reschedule,
        revoke,
        revoke_group,
        revoke_many,
        revoke_where,
        revoke_workflow,
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
        StoreUnavailableError,
    )
    from celery_canceltoken.record import Change, TaskRecord
    from celery_canceltoken.signals import task_cancelled
    from celery_canceltoken.states import State
    from celery_canceltoken.task.base import CancellableTask
    from celery_canceltoken.token import CancellationSource, CancellationToken, Registration

__all__ = [
    "CancelTokenError",
    "CancellableTask",
    "CancellationSource",
    "CancellationToken",
    "Cause",
    "Change",
    "InvalidArgumentError",
    "Outcome",
    "RecordPage",
    "RecordUnreadableError",
    "Registration",
    "RequestHandle",
    "RequestHandles",
    "SettingsError",
    "State",
    "StoreUnavailableError",
    "StoredTask",
    "TaskCancelled",
    "TaskRecord",
    "current_token",
    "delete",
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
    "InvalidArgumentError": "errors",
    "Outcome": "control.handle",
    "RecordPage": "control.listing",
    "RecordUnreadableError": "errors",
    "Registration": "token",
    "RequestHandle": "control.handle",
    "RequestHandles": "control.handle",
    "SettingsError": "errors",
    "State": "states",
    "StoreUnavailableError": "errors",
    "StoredTask": "control.many",
    "TaskCancelled": "cancelled",
    "TaskRecord": "record",
    "current_token": "current",
    "delete": "api",
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
