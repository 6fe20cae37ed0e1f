"""From a Celery app to this package's settings and store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, finalize

from celery import Celery

from celery_canceltoken.errors import SettingsError
from celery_canceltoken.settings import Settings
from celery_canceltoken.store.agent_store import AgentStore
from celery_canceltoken.store.async_store import AsyncStore
from celery_canceltoken.store.breaker import Breaker
from celery_canceltoken.store.connect import ConnectionPlan, is_redis_url
from celery_canceltoken.store.redis_store import RedisStore

__all__ = [
    "agent_store",
    "async_store",
    "body_store",
    "broker_of",
    "client_store",
    "publisher_store",
    "settings_of",
]

_BODY_CONNECTIONS = 8
_SERVICE_CONNECTIONS = 1
_CLIENT_CONNECTIONS = 8
_PAUSE_AFTER_FAILURE = 4
"""In store timeouts: a task in five pays for a try while the store is away, the others start at once."""

# How the options of a borrowed URL are called by redis-py. What is not here (visibility timeouts, socket
# timeouts, retries) belongs to the broker or the backend alone.
_BORROWED_OPTIONS = ("master_name", "sentinel_kwargs", "username", "password", "client_name")

_settings: WeakKeyDictionary[Celery, Settings] = WeakKeyDictionary()
_plans: WeakKeyDictionary[Celery, ConnectionPlan] = WeakKeyDictionary()
_brokers: WeakKeyDictionary[Celery, str] = WeakKeyDictionary()
_client_stores: WeakKeyDictionary[Celery, RedisStore] = WeakKeyDictionary()
_publisher_stores: WeakKeyDictionary[Celery, RedisStore] = WeakKeyDictionary()


def settings_of(app: Celery) -> Settings:
    """Return the settings of *app*, read once. Raises SettingsError."""
    _prepare(app)
    return _settings[app]


def agent_store(app: Celery) -> AgentStore:
    """Make the store of one of an agent's services: a thread of its own, so one connection does."""
    _prepare(app)
    return AgentStore(_plans[app], _settings[app], connections=_SERVICE_CONNECTIONS)


def body_store(app: Celery) -> RedisStore:
    """Make the store that the bodies of one process share."""
    _prepare(app)
    settings = _settings[app]
    breaker = Breaker(settings.store_timeout * _PAUSE_AFTER_FAILURE)
    return RedisStore(_plans[app], settings, connections=_BODY_CONNECTIONS, breaker=breaker)


def client_store(app: Celery) -> RedisStore:
    """Return the store for calls from app code; one per process, shared by its threads."""
    _prepare(app)
    store = _client_stores.get(app)
    if store is None:
        made = RedisStore(_plans[app], _settings[app], connections=_CLIENT_CONNECTIONS)
        store = _client_stores.setdefault(app, made)
        if store is made:
            finalize(app, made.close)
    return store


def publisher_store(app: Celery) -> RedisStore:
    """Return the store for what is written beside each message that is sent: it must never hold one up."""
    _prepare(app)
    store = _publisher_stores.get(app)
    if store is None:
        store = _publisher_stores.setdefault(app, body_store(app))
    return store


def broker_of(app: Celery) -> str:
    """Return what tells the broker of *app* from that of another app that shares the store."""
    broker = _brokers.get(app)
    if broker is None:
        # Without the password: this is stored with each record.
        broker = hashlib.sha256(app.connection_for_write().as_uri().encode()).hexdigest()[:16]
        _brokers[app] = broker
    return broker


def async_store(app: Celery) -> AsyncStore:
    """Make the store for the calls of one event loop."""
    _prepare(app)
    return AsyncStore(_plans[app], _settings[app])


def _prepare(app: Celery) -> None:
    if app not in _plans:
        settings = Settings.from_mapping(app.conf)
        plan, prefix = _connection_of(app, settings)
        _settings[app] = Settings(**{**vars(settings), "prefix": prefix + settings.prefix})
        _plans[app] = plan


def _connection_of(app: Celery, settings: Settings) -> tuple[ConnectionPlan, str]:
    """Return where the store is, and the key prefix that comes with a borrowed URL."""
    if settings.redis_url:
        return ConnectionPlan(settings.redis_url), ""
    # As attributes: Celery's own way to look, which heeds its environment variables as well.
    conf = app.conf
    backend = conf.result_backend
    if is_redis_url(backend):
        transport = conf.get("result_backend_transport_options") or {}
        ssl = conf.get("redis_backend_use_ssl")
        return _borrowed(backend, "result_backend", transport, ssl)
    broker: Any = conf.broker_write_url or conf.broker_url
    if isinstance(broker, (list, tuple)) and broker:
        broker = broker[0]
    if isinstance(broker, str) and not broker.startswith("sentinel://"):
        # Several to fail over between: the first one holds the records.
        broker = broker.partition(";")[0]
    if is_redis_url(broker):
        transport = conf.get("broker_transport_options") or {}
        return _borrowed(str(broker), "broker_url", transport, conf.get("broker_use_ssl"))
    raise SettingsError(
        "canceltoken_redis_url",
        "neither the result backend nor the broker is Redis/Valkey; set canceltoken_redis_url to one, "
        "for example redis://localhost:6379/0",
    )


def _borrowed(url: str, setting: str, transport: Mapping[str, Any], ssl: Any) -> tuple[ConnectionPlan, str]:
    options = {name: transport[name] for name in _BORROWED_OPTIONS if transport.get(name) is not None}
    if isinstance(ssl, Mapping):
        # A bare True, which means nothing to kombu, means nothing here.
        if url.startswith("redis://"):
            url = "rediss" + url[len("redis") :]
        options.update({name if name.startswith("ssl_") else f"ssl_{name}": ssl[name] for name in ssl})
    return ConnectionPlan(url, setting, options), str(transport.get("global_keyprefix") or "")


def _forget_connections() -> None:
    # A fork makes its own: a connection shared by two processes mixes up their answers.
    _client_stores.clear()
    _publisher_stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)
