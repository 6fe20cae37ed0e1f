"""Writing down what is sent, where `canceltoken_track_enqueued` asks for it: one round trip per message."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery, current_app, signals
from celery.utils.time import maybe_iso8601
from kombu.serialization import dumps

from celery_canceltoken.configuration import publisher_store, settings_of
from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.settings import SETTING_PREFIX, Settings
from celery_canceltoken.task.stamp import Stamp
from celery_canceltoken.task.wire import PROPERTIES, keeping

__all__ = ["install", "publishing_for"]

logger = logging.getLogger("celery_canceltoken.task")

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

# Celery's signals tell neither the app nor, after the fact, the properties.
_app: ContextVar[Celery | None] = ContextVar("celery_canceltoken.publishing_app", default=None)
_properties: ContextVar[Mapping[str, Any] | None] = ContextVar("celery_canceltoken.properties", default=None)


def install() -> None:
    """Listen to all that this process publishes. Calling it again changes nothing."""
    signals.before_task_publish.connect(_before_publish, dispatch_uid="celery_canceltoken.tracking")
    signals.after_task_publish.connect(_after_publish, dispatch_uid="celery_canceltoken.tracking")


@contextmanager
def publishing_for(app: Celery) -> Iterator[None]:
    """What is published in this context is of *app*, rather than of the current one."""
    reset = _app.set(app)
    try:
        yield
    finally:
        _app.reset(reset)


def _before_publish(properties: Mapping[str, Any] | None = None, **_: Any) -> None:
    _properties.set(properties)


def _after_publish(
    sender: str | None = None,
    headers: Mapping[str, Any] | None = None,
    body: Any = None,
    exchange: Any = None,
    routing_key: str | None = None,
    **_: Any,
) -> None:
    # After it is sent, not before: what could not be sent leaves no trace, and a worker that is faster
    # has said all there is to say.
    app = _app.get() or current_app._get_current_object()  # type: ignore[attr-defined]
    if not app.conf.get(SETTING_PREFIX + "track_enqueued") or not headers or "task" not in headers:
        return
    task = app.tasks.get(sender or "")
    if task is not None and not hasattr(task, "token_parameter"):
        # It never claims its id, and would wait in the lists for ever.
        return
    settings = settings_of(app)
    try:
        message = _message(app, task, headers, body, exchange, routing_key)
        _write(app, task, settings, headers, message, routing_key)
    except StoreUnavailableError as error:
        logger.warning("task %s[%s] is sent, but not tracked: %s", sender, headers.get("id"), error)


def _message(
    app: Celery, task: Any, headers: Mapping[str, Any], body: Any, exchange: Any, routing_key: str | None
) -> KeptMessage | None:
    """What is on the wire, near enough: the serializer of a single call is not told to anybody."""
    serializer = getattr(task, "serializer", None) or app.conf.task_serializer
    try:
        content_type, content_encoding, payload = dumps(body, serializer=serializer)
    except Exception:
        return None
    properties = _properties.get() or {}
    return KeptMessage(
        body=payload.encode() if isinstance(payload, str) else payload,
        content_type=content_type,
        content_encoding=content_encoding,
        headers=dict(headers),
        exchange=str(getattr(exchange, "name", exchange) or ""),
        routing_key=routing_key or "",
        properties={
            name: properties[name]
            # In seconds here, and in milliseconds on the wire.
            for name in PROPERTIES
            if name != "expiration" and properties.get(name) is not None
        },
    )


def _write(
    app: Celery,
    task: Any,
    settings: Settings,
    headers: Mapping[str, Any],
    message: KeptMessage | None,
    routing_key: str | None,
) -> None:
    store = publisher_store(app)
    stamp, kept = Stamp.of(headers), keeping(message, task, settings)
    root_id = headers.get("root_id")
    fields = {
        "send": stamp.send,
        "generation": stamp.generation,
        "name": str(headers["task"]),
        "queue": routing_key,
        "root": root_id if isinstance(root_id, str) else None,
        "takes_token": None if task is None else str(int(task.token_parameter is not None)),
        "unkept": kept.why_not or None,
        "eta": _microseconds(headers.get("eta")),
    }
    store.ask(store.calls.enqueue(str(headers["id"]), fields, kept.text))


def _microseconds(eta: Any) -> str | None:
    try:
        moment = maybe_iso8601(eta)
    except (TypeError, ValueError, AttributeError):
        return None
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return str(max(0, microseconds))
