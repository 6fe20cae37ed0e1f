"""What a task says of itself, where it differs from the settings."""

from __future__ import annotations

from typing import Any

from celery_canceltoken.message import KEEP_POLICIES
from celery_canceltoken.outcome import SHUTDOWN_POLICIES
from celery_canceltoken.settings import Settings

__all__ = ["check_policies", "keep_policy_of", "shutdown_grace_of", "shutdown_policy_of"]


def keep_policy_of(task: Any, settings: Settings) -> str:
    """What is kept of its message."""
    return getattr(task, "keep_message", None) or settings.keep_message


def shutdown_policy_of(task: Any, settings: Settings) -> str:
    """What becomes of it when its worker's shutdown has stopped it."""
    return getattr(task, "shutdown_policy", None) or settings.shutdown_policy


def shutdown_grace_of(task: Any, settings: Settings) -> float:
    """Seconds it may go on after its worker has begun to shut down."""
    grace = getattr(task, "shutdown_grace", None)
    return settings.shutdown_grace if grace is None else float(grace)


def check_policies(task: Any) -> None:
    """Refuse attributes that mean nothing. Raises ValueError, which names the attribute."""
    for attribute, known in (("keep_message", KEEP_POLICIES), ("shutdown_policy", SHUTDOWN_POLICIES)):
        value = getattr(task, attribute, None)
        if value is not None and value not in known:
            raise ValueError(f"{attribute} must be one of {', '.join(known)}, not {value!r}")
    grace = getattr(task, "shutdown_grace", None)
    number = isinstance(grace, (int, float)) and not isinstance(grace, bool) and grace >= 0
    if grace is not None and not number:
        raise ValueError(f"shutdown_grace must be a number of seconds, 0 or more, not {grace!r}")
