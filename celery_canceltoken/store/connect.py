"""From a URL to redis-py clients with the limits this package needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from celery_canceltoken.errors import SettingsError
from celery_canceltoken.store.fork_guard import with_fork_guard

__all__ = ["ConnectionPlan", "is_redis_url"]

_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "socket", "sentinel")


def is_redis_url(url: str | None) -> bool:
    """Tell whether *url* names a Redis/Valkey server in one of the forms Celery knows."""
    return bool(url) and str(url).partition("://")[0] in _SCHEMES and "://" in str(url)


@dataclass(frozen=True)
class ConnectionPlan:
    """Where the store is and how to reach it; makes clients, holds none.

    *options* are transport options in redis-py's words (`password`, `ssl_ca_certs`, ...), borrowed
    from the broker or the result backend together with its URL; for Sentinel also `master_name`
    and `sentinel_kwargs`.
    """

    url: str
    setting: str = "canceltoken_redis_url"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_redis_url(self.url):
            raise SettingsError(
                self.setting,
                f"{_without_password(self.url)!r} is not a Redis/Valkey URL; "
                "use redis://, rediss://, unix:// or sentinel://",
            )
        try:
            _check(self.url)
            client = self.client(timeout=1.0, connections=1)
            # Makes a connection without connecting it: options that redis-py does not know come to light.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        except SettingsError:
            raise
        except (ValueError, TypeError, AttributeError, IndexError):
            # Not the parser's own words: they repeat what they stumbled over, a password for instance.
            raise SettingsError(
                self.setting,
                f"{_without_password(self.url)!r} is not usable; check host, port, database (a number) and "
                "options, and percent-encode special characters in the password",
            ) from None

    def client(
        self, *, timeout: float, connections: int, connect_timeout: float | None = None
    ) -> redis.Redis:
        """Return a client of at most *connections* connections, each wait limited to *timeout* seconds.

        Threads beyond that number wait for a free connection, *timeout* seconds at most. Connecting
        takes *connect_timeout* seconds at most, where that is to be less.
        """
        options = self._options(Retry, timeout, connect_timeout)
        if self.url.startswith("sentinel://"):
            return self._sentinel_client(options, connections, timeout)
        pool = redis.BlockingConnectionPool.from_url(
            _redis_py_url(self.url), max_connections=connections, timeout=timeout, **options
        )
        pool.connection_class = with_fork_guard(pool.connection_class)
        return redis.Redis.from_pool(pool)

    def async_client(self, *, timeout: float, connections: int) -> Any:
        """Return the same for the running event loop. Whoever uses more connections gets an error."""
        options = self._options(AsyncRetry, timeout, None)
        if self.url.startswith("sentinel://"):
            hosts, master, sentinel_options = self._sentinel(options)
            sentinel = AsyncSentinel(hosts, sentinel_kwargs=sentinel_options, **options)  # type: ignore[no-untyped-call]
            return sentinel.master_for(master, max_connections=connections)
        return redis.asyncio.Redis.from_url(_redis_py_url(self.url), max_connections=connections, **options)

    def _options(self, retry: Any, timeout: float, connect_timeout: float | None) -> dict[str, Any]:
        return {
            "socket_timeout": timeout,
            "socket_connect_timeout": connect_timeout or timeout,
            "decode_responses": True,
            "encoding_errors": "replace",
            # A connection the server closed while it idled is worth one more try. Nothing else is: redis-py's
            # own default goes on for seconds against a frozen server.
            "retry": retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            "retry_on_timeout": False,
            # What redis-py 5 asks for besides.
            "retry_on_error": [redis.ConnectionError],
            **self.options,
        }

    def _sentinel_client(self, options: dict[str, Any], connections: int, timeout: float) -> redis.Redis:
        hosts, master, sentinel_options = self._sentinel(options)
        sentinel = Sentinel(hosts, sentinel_kwargs=sentinel_options, **options)  # type: ignore[no-untyped-call]
        return sentinel.master_for(  # type: ignore[no-any-return, no-untyped-call]
            master, connection_pool_class=_BlockingSentinelPool, max_connections=connections, timeout=timeout
        )

    def _sentinel(self, options: dict[str, Any]) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
        """Take out of *options* what is the sentinels': their addresses, the master's name, their options."""
        master = options.pop("master_name", None) or dict(parse_qsl(urlsplit(self.url).query)).get(
            "master_name"
        )
        if not master:
            problem = "sentinel:// needs `master_name` in its transport options: "
            raise SettingsError(self.setting, problem + _without_password(self.url))
        sentinel_options = dict(options.pop("sentinel_kwargs", None) or {})
        hosts = []
        database, password = "0", None
        for url in self.url.split(";"):
            parts = urlsplit(url)
            hosts.append((parts.hostname or "localhost", parts.port or 26379))
            database = parts.path.strip("/") or database
            password = unquote(parts.password) if parts.password else password
        options.setdefault("db", int(database))
        if password:
            options.setdefault("password", password)
        for name in ("socket_timeout", "socket_connect_timeout", "retry"):
            sentinel_options.setdefault(name, options[name])
        return hosts, str(master), sentinel_options


def _redis_py_url(url: str) -> str:
    """Translate the spellings Celery and kombu accept into redis-py's."""
    scheme, _, rest = url.partition("://")
    if scheme in ("redis+socket", "socket"):
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        if "virtual_host" in query:
            query["db"] = query.pop("virtual_host").strip("/")
        return f"unix://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")
    if scheme == "rediss":
        parts = urlsplit(url)
        names = {"CERT_NONE": "none", "CERT_OPTIONAL": "optional", "CERT_REQUIRED": "required"}
        query = {k: names.get(v, v) if k == "ssl_cert_reqs" else v for k, v in parse_qsl(parts.query)}
        return parts._replace(query=urlencode(query)).geturl()
    return f"{scheme}://{rest}"


def _check(url: str) -> None:
    """Raise ValueError for what redis-py would take without a word, and lead elsewhere."""
    sentinel = url.startswith("sentinel://")
    if ";" in url and not sentinel:
        raise ValueError("several servers")
    for one in url.split(";"):
        parts = urlsplit(one)
        if "sock" in parts.scheme or parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError("no path")
        elif not (parts.path.strip("/") or "0").isdecimal():
            raise ValueError("no database")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    _, at, tail = rest.rpartition("@")
    server, query, _ = tail.partition("?")
    return f"{scheme}://{'***@' if at else ''}{server}{'?...' if query else ''}"


class _BlockingSentinelPool(SentinelConnectionPool, redis.BlockingConnectionPool):
    """A sentinel's pool that has threads wait for a free connection, as the other one does."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; without *inuse_connections* only those that idle."""
        # redis-py's blocking pool knows the argument since release 7 only, but its sentinel passes it in all.
        if inuse_connections:
            super().disconnect()
            return
        for connection in list(self.pool.queue):
            if connection is not None:
                connection.disconnect()
