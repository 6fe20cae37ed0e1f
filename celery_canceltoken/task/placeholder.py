"""Placeholders in messages: `CancellationToken.none` is dropped from whatever is published."""

from __future__ import annotations

from typing import Any

from celery import signals

from celery_canceltoken.task.injection import is_placeholder

__all__ = ["install", "without_placeholders"]


def install() -> None:
    """Clean every message that this process publishes. Calling it again changes nothing."""
    signals.before_task_publish.connect(_on_publish, dispatch_uid="celery_canceltoken")


def _on_publish(body: Any = None, **_: Any) -> None:
    # A chain that begins with somebody else's task carries ours in its embedded signatures, and `starmap`
    # and `chunks` carry lists of arguments. The caller's own objects stay as they are.
    if not isinstance(body, (tuple, list)) or len(body) != 3:
        return
    for part in body[1:]:
        if isinstance(part, dict):
            for name, value in list(part.items()):
                if is_placeholder(value):
                    continue
                cleaned = without_placeholders(value)
                if cleaned is not value:
                    part[name] = cleaned


def without_placeholders(value: Any) -> Any:
    """Return *value* without tokens anywhere in its lists, tuples and dicts; itself where there are none."""
    if isinstance(value, dict):
        items = {name: without_placeholders(one) for name, one in value.items() if not is_placeholder(one)}
        changed = len(items) != len(value) or any(items[name] is not value[name] for name in items)
        return items if changed else value
    if isinstance(value, (list, tuple)):
        kept = [without_placeholders(one) for one in value if not is_placeholder(one)]
        changed = len(kept) != len(value) or any(new is not old for new, old in zip(kept, value, strict=True))
        return type(value)(kept) if changed and type(value) in (list, tuple) else value
    return value
