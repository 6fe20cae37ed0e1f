"""The settings: Celery configuration, `canceltoken_*`, read once and checked whole."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from celery_canceltoken.errors import SettingsError
from celery_canceltoken.message import KEEP_POLICIES
from celery_canceltoken.outcome import SHUTDOWN_POLICIES

__all__ = ["SETTING_PREFIX", "Settings"]

SETTING_PREFIX = "canceltoken_"

_SHORTEST = 0.001
"""Seconds; what the store's own clock can tell apart."""
_LONGEST = 315_360_000.0
"""Seconds; ten years, which every clock concerned can hold."""


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingsError(name, f"must be a number of seconds, not {value!r}")
    if not _SHORTEST <= value <= _LONGEST:
        raise SettingsError(
            name, f"must be a number of seconds from {_SHORTEST} to {_LONGEST:.0f}, not {value!r}"
        )
    return float(value)


def _seconds_or_none(name: str, value: object) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else _seconds(name, value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(name, f"must be a non-empty string, not {value!r}")
    return value


def _keep_policy(name: str, value: object) -> str:
    if value not in KEEP_POLICIES:
        raise SettingsError(name, f"must be one of {', '.join(KEEP_POLICIES)}, not {value!r}")
    return str(value)


def _shutdown_policy(name: str, value: object) -> str:
    if value not in SHUTDOWN_POLICIES:
        raise SettingsError(name, f"must be one of {', '.join(SHUTDOWN_POLICIES)}, not {value!r}")
    return str(value)


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SettingsError(name, f"must be a whole number, 0 or more, not {value!r}")
    return value


def _bytes(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SettingsError(name, f"must be a number of bytes, 0 or more, not {value!r}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(name, f"must be True or False, not {value!r}")
    return value


def _prefix(name: str, value: object) -> str:
    text = _text(name, value)
    if not text.isprintable() or any(sign in text for sign in "{}") or len(text) > 100:
        raise SettingsError(name, f"must be at most 100 printable characters without braces, not {value!r}")
    return text


@dataclass(frozen=True)
class Settings:
    """All settings of one app. Durations are in seconds, sizes in bytes."""

    redis_url: str | None = None
    prefix: str = "canceltoken"
    check_interval: float = 5.0
    heartbeat_interval: float = 5.0
    lease_duration: float = 30.0
    store_timeout: float = 0.5
    record_expires: float = 86_400.0
    request_expires: float = 2_592_000.0
    shutdown_grace: float = 0.0
    shutdown_policy: str = "requeue"
    max_shutdown_requeues: int = 10
    keep_message: str = "until_success"
    message_limit: int = 65_536
    track_enqueued: bool = False
    terminate_grace: float = 5.0

    @classmethod
    def from_mapping(cls, configuration: Mapping[str, Any]) -> Settings:
        """Read every `canceltoken_*` key of *configuration*.

        Raises SettingsError for an unknown name and for a bad value, naming the setting and the remedy.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for name in configuration:
            # With a namespace Celery lists CELERY_CANCELTOKEN_PREFIX for what is canceltoken_prefix to us.
            namespace, found, short = str(name).lower().rpartition(SETTING_PREFIX)
            if not found or (namespace and not namespace.endswith("_")):
                continue
            if short not in known:
                raise SettingsError(name, _unknown(short, known))
            value = configuration[name]
            if value is None and short == "redis_url":
                continue
            values[short] = _CHECKS[short](name, value)
        settings = cls(**values)
        if settings.lease_duration < 2 * settings.heartbeat_interval:
            raise SettingsError(
                f"{SETTING_PREFIX}lease_duration",
                f"{settings.lease_duration} s is less than two heartbeats of "
                f"{settings.heartbeat_interval} s, so that one lost heartbeat would cost a worker its "
                f"tasks; raise it, or lower {SETTING_PREFIX}heartbeat_interval",
            )
        return settings


def _unknown(short: str, known: set[str]) -> str:
    close = difflib.get_close_matches(short, known, n=1)
    hint = f"did you mean {SETTING_PREFIX}{close[0]}? " if close else ""
    names = ", ".join(sorted(SETTING_PREFIX + name for name in known))
    return f"there is no such setting; {hint}known are: {names}"


_CHECKS: dict[str, Callable[[str, object], Any]] = {
    field.name: _seconds for field in fields(Settings) if field.type == "float"
}
_CHECKS["redis_url"] = _text
_CHECKS["prefix"] = _prefix
_CHECKS["keep_message"] = _keep_policy
_CHECKS["message_limit"] = _bytes
_CHECKS["shutdown_grace"] = _seconds_or_none
_CHECKS["shutdown_policy"] = _shutdown_policy
_CHECKS["max_shutdown_requeues"] = _count
_CHECKS["track_enqueued"] = _flag
_CHECKS["terminate_grace"] = _seconds_or_none
