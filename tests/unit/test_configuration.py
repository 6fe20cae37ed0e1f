"""From an app to its store: whose URL is borrowed, and what is borrowed with it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis, SSLConnection

from celery_canceltoken.configuration import agent_store, body_store, client_store, settings_of
from celery_canceltoken.errors import SettingsError
from celery_canceltoken.store.redis_store import RedisStore
from tests.support.orders import revoke
from tests.support.servers import EmbeddedServer, sentinel_for
from tests.support.workers import unique_name

AppFactory = Callable[..., Celery]


@pytest.fixture
def prefix() -> str:
    """A key prefix that is this test's own."""
    return unique_name("prefix")


@pytest.fixture
def make_app(prefix: str) -> Iterator[AppFactory]:
    """Makes apps with these settings and this test's prefix."""
    apps = []

    def make(**settings: Any) -> Celery:
        app = Celery("shop", set_as_current=False)
        app.conf.update({"canceltoken_prefix": prefix, **settings})
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


def where(valkey: EmbeddedServer, prefix: str) -> dict[int, list[str]]:
    """The keys with that prefix, or with something before it, by database."""
    found = {}
    for database in range(1, 6):
        with Redis(port=valkey.port, db=database, decode_responses=True) as client:
            keys = sorted(client.scan_iter(match=f"*{prefix}*"))
            if keys:
                found[database] = keys
                client.delete(*keys)
    return found


def use(store: RedisStore) -> None:
    """Have something written."""
    try:
        assert revoke(store, "7")
    finally:
        store.close()


@pytest.fixture
def url(valkey: EmbeddedServer) -> Callable[[int], str]:
    """The address of a database of the server."""
    return lambda database: f"redis://{valkey.host}:{valkey.port}/{database}"


@pytest.mark.parametrize(
    ("configuration", "database"),
    [
        ({"canceltoken_redis_url": 1, "result_backend": 2, "broker_url": 3}, 1),
        ({"canceltoken_redis_url": 1}, 1),
        ({"result_backend": 2, "broker_url": 3}, 2),
        ({"result_backend": 2, "broker_url": "amqp://"}, 2),
        ({"result_backend": "rpc://", "broker_url": 3}, 3),
        ({"result_backend": "cache+memory://", "broker_url": 3}, 3),
        ({"broker_url": 3}, 3),
        ({"canceltoken_redis_url": None, "broker_url": 3}, 3),
        ({"broker_write_url": 4, "broker_read_url": 5}, 4),
        ({"broker_url": 3, "broker_write_url": 4, "broker_read_url": 5}, 4),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_whose_url_is_used(
    make_app: AppFactory,
    valkey: EmbeddedServer,
    url: Callable[[int], str],
    prefix: str,
    configuration: dict[str, Any],
    database: int,
) -> None:
    """The store's own URL goes before the result backend's, and that before the broker's."""
    app = make_app(**{k: url(v) if isinstance(v, int) else v for k, v in configuration.items()})
    use(client_store(app))
    assert where(valkey, prefix) == {database: [f"{prefix}:task:7"]}


def test_of_several_brokers_the_first_is_used(
    make_app: AppFactory, valkey: EmbeddedServer, url: Callable[[int], str], prefix: str
) -> None:
    """A list of brokers is a list of substitutes for its first."""
    use(client_store(make_app(broker_url=[url(4), url(5)])))
    assert list(where(valkey, prefix)) == [4]


def test_of_several_brokers_in_one_url_the_first_is_used(
    make_app: AppFactory, valkey: EmbeddedServer, url: Callable[[int], str], prefix: str
) -> None:
    """Celery's other spelling of the same."""
    use(client_store(make_app(broker_url=f"{url(4)};{url(5)}")))
    assert list(where(valkey, prefix)) == [4]


@pytest.mark.parametrize(
    "configuration",
    [
        {"broker_url": "amqp://guest@localhost//", "result_backend": "rpc://"},
        {"broker_url": "sqs://"},
        {},
        {"broker_url": "memory://", "result_backend": "cache+memory://"},
    ],
    ids=str,
)
def test_without_any_redis_the_missing_setting_is_named(
    make_app: AppFactory, configuration: dict[str, Any]
) -> None:
    """An app without Redis is told which setting to add, with an example."""
    with pytest.raises(SettingsError, match=r"set canceltoken_redis_url .* redis://localhost:6379/0") as told:
        settings_of(make_app(**configuration))
    assert told.value.setting == "canceltoken_redis_url"


@pytest.mark.parametrize("make_store", [client_store, agent_store, body_store, settings_of])
def test_a_bad_url_is_told_whoever_asks(make_app: AppFactory, make_store: Callable[[Celery], object]) -> None:
    """Worker and client alike get a typed error with the setting's name."""
    with pytest.raises(SettingsError, match="is not a Redis/Valkey URL") as told:
        make_store(make_app(canceltoken_redis_url="http://localhost"))
    assert told.value.setting == "canceltoken_redis_url"


@pytest.mark.parametrize("setting", ["result_backend", "broker_url"])
def test_a_bad_borrowed_url_is_told_by_its_own_name(make_app: AppFactory, setting: str) -> None:
    """An error in a borrowed URL points to the setting it stands in."""
    with pytest.raises(SettingsError) as told:
        settings_of(make_app(**{setting: "redis://localhost:port/0"}))
    assert told.value.setting == setting


@pytest.mark.parametrize(
    ("setting", "options"),
    [("result_backend", "result_backend_transport_options"), ("broker_url", "broker_transport_options")],
)
def test_the_borrowed_prefix_stands_before_ours(
    make_app: AppFactory,
    valkey: EmbeddedServer,
    url: Callable[[int], str],
    prefix: str,
    setting: str,
    options: str,
) -> None:
    """Where an app shares its server by a `global_keyprefix`, all our keys have it too."""
    app = make_app(**{setting: url(1), options: {"global_keyprefix": "tenant-a:"}})
    assert settings_of(app).prefix == f"tenant-a:{prefix}"
    use(client_store(app))
    assert where(valkey, prefix) == {1: [f"tenant-a:{prefix}:task:7"]}


def test_a_url_of_our_own_borrows_no_prefix(
    make_app: AppFactory, valkey: EmbeddedServer, url: Callable[[int], str], prefix: str
) -> None:
    """What belongs to the backend stays with the backend where its URL is not used."""
    app = make_app(
        canceltoken_redis_url=url(1),
        result_backend=url(2),
        result_backend_transport_options={"global_keyprefix": "tenant-a:", "password": "wrong"},
    )
    use(client_store(app))
    assert where(valkey, prefix) == {1: [f"{prefix}:task:7"]}


def test_the_backends_options_are_not_the_brokers(
    make_app: AppFactory, valkey: EmbeddedServer, url: Callable[[int], str], prefix: str
) -> None:
    """Options come from where the URL comes from."""
    app = make_app(
        result_backend=url(1),
        broker_url=url(2),
        broker_transport_options={"global_keyprefix": "tenant-a:", "username": "nobody", "password": "wrong"},
    )
    use(client_store(app))
    assert where(valkey, prefix) == {1: [f"{prefix}:task:7"]}


@pytest.mark.parametrize(
    ("setting", "options"),
    [("result_backend", "result_backend_transport_options"), ("broker_url", "broker_transport_options")],
)
def test_borrowed_credentials_are_used(
    make_app: AppFactory,
    valkey: EmbeddedServer,
    url: Callable[[int], str],
    prefix: str,
    setting: str,
    options: str,
) -> None:
    """User name and password of the transport options come along with the URL."""
    user = unique_name("user")
    with Redis(port=valkey.port) as admin:
        admin.acl_setuser(
            user, enabled=True, passwords=["+pw"], commands=["+@all"], keys=[f"{prefix}*"], channels=["*"]
        )
        try:
            store = client_store(
                make_app(
                    **{
                        setting: url(1),
                        options: {"username": user, "password": "pw", "visibility_timeout": 5},
                    }
                )
            )
            assert revoke(store, "7")
            users = [client["user"] for client in admin.client_list()]
            assert user in users
            store.close()
        finally:
            admin.acl_deluser(user)
    assert where(valkey, prefix) == {1: [f"{prefix}:task:7"]}


def test_a_borrowed_sentinel_is_used(make_app: AppFactory, valkey: EmbeddedServer, prefix: str) -> None:
    """The name of the server comes with the sentinels' URL."""
    with sentinel_for(valkey, name="shop") as sentinel:
        app = make_app(
            result_backend=f"sentinel://{sentinel.host}:{sentinel.port}/5",
            result_backend_transport_options={"master_name": "shop"},
        )
        use(client_store(app))
    assert where(valkey, prefix) == {5: [f"{prefix}:task:7"]}


@pytest.mark.parametrize(
    "configuration",
    [
        {
            "result_backend": "redis://localhost/1",
            "redis_backend_use_ssl": {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_ca_certs": "/etc/ca.pem"},
        },
        {
            "broker_url": "redis://localhost/1",
            "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_ca_certs": "/etc/ca.pem"},
        },
        {
            "broker_url": "rediss://localhost/1",
            "broker_use_ssl": {"cert_reqs": ssl.CERT_NONE, "ca_certs": "/etc/ca.pem"},
        },
    ],
    ids=["backend", "broker", "broker-short-names"],
)
def test_borrowed_tls_is_used(make_app: AppFactory, configuration: dict[str, Any]) -> None:
    """Where backend or broker speak TLS, the store does, with their certificates."""
    store = client_store(make_app(**configuration))
    pool = store._client.connection_pool
    connection = pool.make_connection()
    assert issubclass(pool.connection_class, SSLConnection)
    assert connection.cert_reqs == ssl.CERT_NONE
    assert connection.ca_certs == "/etc/ca.pem"
    assert connection.db == 1
    store.close()


def test_a_borrowed_tls_flag_means_what_it_means_to_the_broker(
    make_app: AppFactory, valkey: EmbeddedServer, url: Callable[[int], str], prefix: str
) -> None:
    """With `broker_use_ssl=True` on a plain URL the store is reached as the broker is."""
    app = make_app(broker_url=url(1), broker_use_ssl=True, canceltoken_store_timeout=2.0)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
    use(client_store(app))
    assert where(valkey, prefix) == {1: [f"{prefix}:task:7"]}


def test_settings_are_read_once(make_app: AppFactory, url: Callable[[int], str], prefix: str) -> None:
    """What changes in the configuration after the first use changes nothing."""
    app = make_app(result_backend=url(1))
    before = settings_of(app)
    app.conf.canceltoken_prefix = "other"
    app.conf.canceltoken_nonsense = True
    assert settings_of(app) is before
    assert before.prefix == prefix


def test_two_apps_have_two_stores(make_app: AppFactory, url: Callable[[int], str]) -> None:
    """Apps of one process do not share what is theirs."""
    one, other = make_app(result_backend=url(1)), make_app(result_backend=url(2), canceltoken_prefix="other")
    assert client_store(one) is not client_store(other)
    assert settings_of(other).prefix == "other"


def test_a_process_has_one_client_store(make_app: AppFactory, url: Callable[[int], str]) -> None:
    """All calls of an app go through the same few connections."""
    app = make_app(result_backend=url(1))
    assert client_store(app) is client_store(app)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_makes_a_store_of_its_own(make_app: AppFactory, url: Callable[[int], str]) -> None:
    """A child process shares no connection with its parent."""
    app = make_app(result_backend=url(1))
    parents = client_store(app)
    child = os.fork()
    if child == 0:
        os._exit(0 if client_store(app) is not parents else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert client_store(app) is parents
    parents.close()


def test_bodies_have_a_breaker_and_agents_do_not(make_app: AppFactory, url: Callable[[int], str]) -> None:
    """No task waits for a dead store twice, and an agent tries until it answers."""
    app = make_app(canceltoken_redis_url="redis://127.0.0.1:1/0", canceltoken_store_timeout=0.2)
    words = {}
    for make in (body_store, agent_store, client_store):
        store = make(app)
        for _ in range(2):
            with pytest.raises(ConnectionError) as told:
                store.get("7")
        words[make.__name__] = str(told.value)
        store.close()
    assert "not tried again yet" in words["body_store"]
    assert "did not answer: " in words["agent_store"]
    assert "did not answer: " in words["client_store"]


def test_an_unknown_setting_is_told(make_app: AppFactory, url: Callable[[int], str]) -> None:
    """A misspelt setting keeps the app from going on with a default that nobody wanted."""
    with pytest.raises(SettingsError, match=r"did you mean canceltoken_store_timeout\?"):
        settings_of(make_app(result_backend=url(1), canceltoken_store_timeouts=1))
