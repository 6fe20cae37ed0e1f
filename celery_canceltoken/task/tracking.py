"""Writing down what is sent, where `canceltoken_track_enqueued` asks for it: one round trip per message."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery, _state, current_app, signals
from celery.utils.time import maybe_iso8601
from kombu.entity import maybe_delivery_mode
from kombu.serialization import dumps

from celery_canceltoken.configuration import broker_of, publisher_store, settings_of
from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.message import KeptMessage
from celery_canceltoken.settings import SETTING_PREFIX, Settings
from celery_canceltoken.task.stamp import Stamp
from celery_canceltoken.task.wire import PROPERTIES, keeping

__all__ = ["install", "publishing_for"]

logger = logging.getLogger("celery_canceltoken.task")

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class _Options:
    """What `apply_async` knows of a message, and Celery's signals do not tell."""

    app: Celery
    serializer: str | None
    delivery_mode: Any


@dataclass(frozen=True)
class _Sending:
    """A message between Celery's two publish signals; by its headers, for sends may be nested."""

    headers: Mapping[str, Any]
    app: Celery
    properties: Mapping[str, Any]
    serializer: str | None
    delivery_mode: Any


_NESTED = 8
_options: ContextVar[_Options | None] = ContextVar("celery_canceltoken.options", default=None)
# What could not be published stays here until others have taken its place.
_sending: ContextVar[tuple[_Sending, ...]] = ContextVar("celery_canceltoken.sending", default=())


def install() -> None:
    """Listen to all that this process publishes. Calling it again changes nothing."""
    signals.before_task_publish.connect(_before_publish, dispatch_uid="celery_canceltoken.tracking")
    signals.after_task_publish.connect(_after_publish, dispatch_uid="celery_canceltoken.tracking")


@contextmanager
def publishing_for(task: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """What is published in this context is *task*, sent with these options."""
    serializer = options.get("serializer") or task.serializer
    reset = _options.set(_Options(task.app, serializer, options.get("delivery_mode")))
    try:
        yield
    finally:
        _options.reset(reset)


def _before_publish(
    sender: str | None = None,
    headers: Any = None,
    properties: Mapping[str, Any] | None = None,
    declare: Any = None,
    **_: Any,
) -> None:
    options = _options.get()
    app = _app_of(declare) or (options.app if options is not None else current_app._get_current_object())  # type: ignore[attr-defined]
    if not app.conf.get(SETTING_PREFIX + "track_enqueued") or not headers or "task" not in headers:
        return
    task = app.tasks.get(sender or "")
    if task is not None and not hasattr(task, "token_parameter"):
        # It never claims its id, and would wait in the lists for ever.
        return
    if not Stamp.is_on(headers):
        # Sent by its name: what tells this life of the id from an earlier one.
        headers.update(Stamp.fresh().headers())
    own = options if options is not None and options.app is app else None
    serializer = own.serializer if own is not None else getattr(task, "serializer", None)
    exchange = getattr(next(iter(declare or ()), None), "exchange", None)
    delivery_mode = (
        (own.delivery_mode if own is not None else None)
        or getattr(exchange, "delivery_mode", None)
        or app.conf.task_default_delivery_mode
    )
    message = _Sending(headers, app, properties or {}, serializer, delivery_mode)
    _sending.set((*_sending.get()[1 - _NESTED :], message))


def _app_of(declare: Any) -> Celery | None:
    """The app whose queue is declared for a message: the one trace of it that the signals carry."""
    for queue in declare or ():
        for app in list(_state._get_active_apps()):  # type: ignore[attr-defined]
            amqp = vars(app).get("amqp")
            if amqp is not None and dict.get(amqp.queues, getattr(queue, "name", None)) is queue:
                found: Celery = app
                return found
    return None


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
    known = _sending.get()
    sent = next((one for one in known if one.headers is headers), None)
    if sent is None or headers is None:
        return
    _sending.set(tuple(one for one in known if one is not sent))
    app, task = sent.app, sent.app.tasks.get(sender or "")
    settings = settings_of(app)
    try:
        message = _message(sent, body, exchange, routing_key)
        _write(app, task, settings, headers, message, routing_key)
    except StoreUnavailableError as error:
        logger.warning("task %s[%s] is sent, but not tracked: %s", sender, headers.get("id"), error)


def _message(sent: _Sending, body: Any, exchange: Any, routing_key: str | None) -> KeptMessage | None:
    """What is on the wire; but for a serializer that a single `send_task` names, which nobody is told."""
    serializer = sent.serializer or sent.app.conf.task_serializer
    try:
        content_type, content_encoding, payload = dumps(body, serializer=serializer)
    except Exception:
        return None
    properties = {**sent.properties, "delivery_mode": maybe_delivery_mode(sent.delivery_mode)}
    if properties.get("expiration") is not None:
        # In seconds here, and in milliseconds on the wire.
        properties["expiration"] = str(int(properties["expiration"] * 1000))
    return KeptMessage(
        body=payload.encode() if isinstance(payload, str) else payload,
        content_type=content_type,
        content_encoding=content_encoding,
        # The body is kept as it is before it is compressed.
        headers={name: value for name, value in sent.headers.items() if name != "compression"},
        exchange=str(getattr(exchange, "name", exchange) or ""),
        routing_key=routing_key or "",
        properties={name: properties[name] for name in PROPERTIES if properties.get(name) is not None},
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
        "broker": broker_of(app),
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
