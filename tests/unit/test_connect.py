"""From a URL to a client: the forms that are understood, and what is said of the others."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis, SSLConnection, UnixDomainSocketConnection
from redis import __version__ as redis_version
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_canceltoken.errors import SettingsError, StoreUnavailableError
from celery_canceltoken.settings import Settings
from celery_canceltoken.store.connect import ConnectionPlan, is_redis_url
from celery_canceltoken.store.redis_store import RedisStore
from tests.support.servers import EmbeddedServer, sentinel_for
from tests.support.waiting import wait_until
from tests.support.workers import unique_name

SECRET = "hunter2"

# redis-py wants to be told what a connection is for until release 5.2.
COMMAND = ("PING",) if tuple(map(int, redis_version.split(".")[:2])) < (5, 3) else ()


def client_of(url: str, **options: Any) -> Redis:
    return ConnectionPlan(url, options=options).client(timeout=2.0, connections=2)


def target_of(url: str, **options: Any) -> dict[str, Any]:
    """How connections to the URL would be made."""
    with client_of(url, **options) as client:
        target: dict[str, Any] = client.connection_pool.connection_kwargs
        return target


@pytest.fixture
def key(valkey: EmbeddedServer) -> Iterator[str]:
    """A key that is this test's own."""
    key = unique_name("key")
    yield key
    with Redis.from_url(valkey.url) as client:
        client.delete(key)


@pytest.fixture
def sentinel(valkey: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A sentinel that knows the server as `shop`."""
    with sentinel_for(valkey, name="shop") as sentinel:
        yield sentinel


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://localhost",
        "rediss://host:6380/1",
        "unix:///run/valkey.sock",
        "redis+socket:///run/valkey.sock",
        "socket:///run/valkey.sock",
        "sentinel://host:26379",
    ],
)
def test_what_celery_takes_for_redis_is_redis(url: str) -> None:
    """Each of Celery's spellings of a Redis URL is known."""
    assert is_redis_url(url)


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "redis",
        "localhost:6379",
        "amqp://",
        "http://redis://x",
        "sqs://",
        "db+sqlite:///x",
        "rpc://",
    ],
)
def test_what_is_not_redis_is_told_from_it(url: str | None) -> None:
    """Other brokers and backends are not mistaken for a store."""
    assert not is_redis_url(url)


def test_a_plain_url_reaches_the_server(valkey: EmbeddedServer, key: str) -> None:
    """`redis://` connects by TCP, and answers are text."""
    with client_of(f"redis://{valkey.host}:{valkey.port}/1") as client:
        client.set(key, "Ü", px=10_000)
        assert client.get(key) == "Ü"
    with Redis(port=valkey.port, db=1) as client:
        assert client.delete(key) == 1


@pytest.mark.parametrize(
    "scheme",
    ["unix", "redis+socket", "socket"],
)
def test_a_socket_file_reaches_the_server(valkey: EmbeddedServer, key: str, scheme: str) -> None:
    """A server on this machine may be reached by its socket file, in either spelling."""
    path = valkey.unix_url.partition("://")[2]
    with client_of(f"{scheme}://{path}") as client:
        assert issubclass(client.connection_pool.connection_class, UnixDomainSocketConnection)
        assert client.set(key, "1", px=10_000)
    with Redis(port=valkey.port) as client:
        assert client.get(key) == b"1"


@pytest.mark.parametrize(
    "query",
    [
        "unix://{}?db=3",
        "redis+socket://{}?virtual_host=3",
        "socket://{}?virtual_host=/3",
    ],
)
def test_a_socket_file_may_name_a_database(valkey: EmbeddedServer, key: str, query: str) -> None:
    """redis-py's and kombu's ways of naming the database both work."""
    path = valkey.unix_url.partition("://")[2]
    with client_of(query.format(path)) as client:
        client.set(key, "1", px=10_000)
    with Redis(port=valkey.port, db=3) as client:
        assert client.delete(key) == 1


def test_a_sentinel_shows_the_way(valkey: EmbeddedServer, sentinel: EmbeddedServer, key: str) -> None:
    """`sentinel://` with a name in the transport options reaches the server of that name."""
    url = f"sentinel://{sentinel.host}:{sentinel.port}/2"
    with client_of(url, master_name="shop") as client:
        client.set(key, "1", px=10_000)
    with Redis(port=valkey.port, db=2) as client:
        assert client.delete(key) == 1


def test_a_client_behind_a_sentinel_has_our_limits(sentinel: EmbeddedServer) -> None:
    """Timeout, text answers and the one retry hold with a sentinel as they do without."""
    url = f"sentinel://{sentinel.host}:{sentinel.port}/2"
    with client_of(url, master_name="shop") as client:
        limits = client.connection_pool.connection_kwargs
        plain = target_of("redis://localhost/2")
        names = ("socket_timeout", "socket_connect_timeout", "decode_responses", "encoding_errors", "db")
        assert {name: limits.get(name) for name in names} == {name: plain[name] for name in names}


def test_a_sentinel_that_is_down_is_passed_over(sentinel: EmbeddedServer) -> None:
    """Of several sentinels one that answers is enough, and the others cost next to no time."""
    url = f"sentinel://127.0.0.1:1/0;sentinel://{sentinel.host}:{sentinel.port}/0"
    with client_of(url, master_name="shop") as client:
        began = time.monotonic()
        assert client.ping()
        assert time.monotonic() - began < 2.0


def test_a_sentinel_that_is_silent_costs_one_timeout(sentinel: EmbeddedServer) -> None:
    """Asking the way takes no longer than any other call may."""
    plan = ConnectionPlan(f"sentinel://{sentinel.host}:{sentinel.port}", options={"master_name": "shop"})
    sentinel.pause()
    with plan.client(timeout=0.3, connections=1) as client:
        began = time.monotonic()
        with pytest.raises(RedisConnectionError):
            client.ping()
        assert time.monotonic() - began < 2.0


def test_an_unknown_name_at_the_sentinel_is_no_connection(sentinel: EmbeddedServer) -> None:
    """A name that no sentinel knows is an outage like any other."""
    with (
        client_of(f"sentinel://{sentinel.host}:{sentinel.port}", master_name="other") as client,
        pytest.raises(RedisConnectionError),
    ):
        client.ping()


def test_a_sentinel_url_may_name_its_master(sentinel: EmbeddedServer) -> None:
    """Where there are no transport options, the name of the master stands in the URL."""
    with client_of(f"sentinel://{sentinel.host}:{sentinel.port}/0?master_name=shop") as client:
        assert client.ping()


def test_a_sentinel_without_a_name_is_refused() -> None:
    """`sentinel://` alone does not say which server: the error names what is missing and where it goes."""
    with pytest.raises(
        SettingsError, match="sentinel:// needs `master_name` in its transport options"
    ) as told:
        ConnectionPlan("sentinel://localhost:26379/0", "broker_url")
    assert told.value.setting == "broker_url"


def test_tls_is_used_where_it_is_asked_for() -> None:
    """`rediss://` makes encrypted connections, and checks certificates unless told otherwise."""
    with client_of("rediss://localhost:6380/0") as client:
        pool = client.connection_pool
        assert issubclass(pool.connection_class, SSLConnection)
        assert pool.make_connection().cert_reqs == ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("spelling", "meaning"),
    [
        ("CERT_REQUIRED", ssl.CERT_REQUIRED),
        ("required", ssl.CERT_REQUIRED),
        ("CERT_OPTIONAL", ssl.CERT_OPTIONAL),
        ("optional", ssl.CERT_OPTIONAL),
        ("CERT_NONE", ssl.CERT_NONE),
        ("none", ssl.CERT_NONE),
    ],
)
def test_celerys_names_for_certificate_checks_are_understood(spelling: str, meaning: int) -> None:
    """Celery's and redis-py's spellings mean the same."""
    with client_of(f"rediss://localhost/0?ssl_cert_reqs={spelling}") as client:
        assert client.connection_pool.make_connection().cert_reqs == meaning


def test_tls_keeps_the_rest_of_its_query() -> None:
    """Translating one option loses no other."""
    target = target_of("rediss://localhost/4?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=/etc/ca.pem")
    assert (target["ssl_ca_certs"], target["db"]) == ("/etc/ca.pem", 4)


def test_borrowed_options_are_used(valkey: EmbeddedServer) -> None:
    """User name and password may come from the transport options instead of the URL."""
    user = unique_name("user")
    with Redis(port=valkey.port) as admin:
        admin.acl_setuser(user, enabled=True, passwords=[f"+{SECRET}"], commands=["+@all"], keys=["*"])
        try:
            with client_of(f"redis://{valkey.host}:{valkey.port}", username=user, password=SECRET) as client:
                assert client.acl_whoami() == user
        finally:
            admin.acl_deluser(user)


def test_tls_options_are_used() -> None:
    """What a broker's or backend's TLS options say holds for its borrowed URL."""
    target = target_of("rediss://localhost", ssl_ca_certs="/etc/ca.pem", ssl_cert_reqs=ssl.CERT_NONE)
    assert (target["ssl_ca_certs"], target["ssl_cert_reqs"]) == ("/etc/ca.pem", ssl.CERT_NONE)


def test_a_sentinels_own_options_go_to_the_sentinel(sentinel: EmbeddedServer) -> None:
    """The password of the sentinels is not that of the server, and the other way round."""
    url = f"sentinel://:{SECRET}@{sentinel.host}:{sentinel.port}/0"
    with client_of(url, master_name="shop", sentinel_kwargs={"password": "other"}) as client:
        manager = client.connection_pool.sentinel_manager
        (guard,) = manager.sentinels
        assert guard.connection_pool.connection_kwargs["password"] == "other"
        assert client.connection_pool.connection_kwargs["password"] == SECRET


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "amqp://guest@localhost//", "localhost:6379", "redis:/localhost", "6379", "redis"],
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    """What is no Redis URL is an error which names the setting, the URL and the forms there are."""
    with pytest.raises(SettingsError, match="use redis://, rediss://, unix:// or sentinel://") as told:
        ConnectionPlan(url, "result_backend")
    assert told.value.setting == "result_backend"
    assert url.rpartition("@")[2] in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:port/0",
        "redis://localhost:99999999/0",
        "redis://localhost?socket_timeout=soon",
        "redis://[",
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    """A Redis URL with a slip in it is an error at start, with the setting's name."""
    with pytest.raises(SettingsError, match="is not usable") as told:
        ConnectionPlan(url)
    assert told.value.setting == "canceltoken_redis_url"


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@localhost",
        f"http://user:{SECRET}@localhost:80/x",
        f"redis://:{SECRET}@localhost:port",
        f"redis://user:{SECRET}@localhost:port/0",
        f"redis://user:{SECRET}@odd@localhost:port/0",
        f"sentinel://:{SECRET}@one:1;sentinel://:{SECRET}@two:2",
    ],
)
def test_a_password_is_hidden_in_errors(url: str) -> None:
    """No error shows the password of a URL, only where it points to."""
    with pytest.raises(SettingsError) as told:
        ConnectionPlan(url)
    assert SECRET not in str(told.value)
    assert SECRET not in repr(told.value)
    assert "***@" in str(told.value)


def test_an_outage_does_not_tell_the_password() -> None:
    """The error of a store that is away names host and port only."""
    store = RedisStore(ConnectionPlan(f"redis://user:{SECRET}@127.0.0.1:1/0"), Settings(store_timeout=0.2))
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as told:
        store.get("id")
    assert SECRET not in str(told.value)


def test_an_outage_of_a_socket_file_names_the_file() -> None:
    """The error of a store on this machine says which file it looked for."""
    store = RedisStore(ConnectionPlan("unix:///no/such/valkey.sock"), Settings(store_timeout=0.2))
    with pytest.raises(StoreUnavailableError, match=r"/no/such/valkey\.sock"):
        store.get("id")


def test_making_a_plan_connects_to_nobody() -> None:
    """A store that is away keeps no app from starting."""
    ConnectionPlan("redis://127.0.0.1:1/0")


def test_a_client_keeps_to_its_number_of_connections(valkey: EmbeddedServer) -> None:
    """Threads beyond the number wait for a connection instead of opening another."""
    plan = ConnectionPlan(valkey.url)
    client = plan.client(timeout=5.0, connections=2)
    name = unique_name("client")
    start = threading.Barrier(10)
    seen: list[int] = []

    def use() -> None:
        start.wait(10)
        for _ in range(20):
            client.execute_command("ECHO", name)
        seen.append(len(client.connection_pool._connections))

    threads = [threading.Thread(target=use) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    made = [one for one in client.connection_pool._connections if one is not None]
    client.close()
    assert len(seen) == 10
    assert len(made) <= 2


def test_a_thread_without_a_connection_gives_up_in_time(valkey: EmbeddedServer) -> None:
    """Where no connection becomes free, waiting for one ends with the timeout."""
    client = ConnectionPlan(valkey.url).client(timeout=0.2, connections=1)
    held = client.connection_pool.get_connection(*COMMAND)
    began = time.monotonic()
    with pytest.raises(RedisConnectionError):
        client.ping()
    assert 0.15 <= time.monotonic() - began < 2.0
    client.connection_pool.release(held)
    assert client.ping()
    client.close()


def test_a_call_whose_connection_breaks_is_tried_once_more(valkey: EmbeddedServer, key: str) -> None:
    """A call that loses its connection while it waits goes on with another one."""
    client = ConnectionPlan(valkey.url).client(timeout=10.0, connections=1)
    seen: list[object] = []

    def wait() -> None:
        try:
            seen.append(client.blpop([key], timeout=8))
        except RedisConnectionError as error:
            seen.append(error)

    def waiting() -> list[int]:
        return [
            int(one["id"]) for one in admin.client_list() if one["cmd"] == "blpop" and one["flags"] == "b"
        ]

    with Redis(port=valkey.port, decode_responses=True) as admin:
        thread = threading.Thread(target=wait)
        thread.start()
        (first,) = wait_until(waiting, description="the call waits at the server")
        admin.client_kill_filter(_id=str(first))
        wait_until(
            lambda: seen or (waiting() and waiting() != [first]),
            description="the call waits again, or failed",
        )
        admin.rpush(key, "value")
        thread.join(10)
    client.close()
    assert seen == [(key, "value")]


def test_a_connection_that_the_server_closed_is_replaced(valkey: EmbeddedServer) -> None:
    """A connection lost while it idled costs nothing but a new one."""
    with ConnectionPlan(valkey.url).client(timeout=2.0, connections=1) as client:
        connection = client.client_id()
        with Redis(port=valkey.port) as admin:
            admin.client_kill_filter(_id=connection)
        assert client.client_id() != connection


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}?1@localhost:port/0",
        f"redis://user:{SECRET}?@localhost:port/0",
        f"sentinel://:{SECRET}?@one:1;sentinel://two:2",
    ],
)
def test_a_password_with_a_question_mark_is_hidden_as_well(url: str) -> None:
    """Nor does an error show a part of one."""
    with pytest.raises(SettingsError) as told:
        ConnectionPlan(url)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}#1@localhost/0",
        f"redis://:{SECRET}/1@localhost:6379/0",
        f"redis://localhost:port/0?password={SECRET}",
        f"http://localhost/?password={SECRET}",
    ],
)
def test_a_password_in_an_odd_place_is_hidden_as_well(url: str) -> None:
    """An error shows no password, wherever in a bad URL it stood."""
    with pytest.raises(SettingsError) as told:
        ConnectionPlan(url)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost/database",
        "redis://localhost/0?no_such_option=1",
        "unix://",
        "redis://one/3;redis://two/3",
    ],
)
def test_a_url_that_cannot_work_is_refused(url: str) -> None:
    """A Redis URL that leads nowhere, or elsewhere, is an error at start."""
    with pytest.raises(SettingsError):
        ConnectionPlan(url)


def test_threads_behind_a_sentinel_wait_for_a_connection(sentinel: EmbeddedServer) -> None:
    """With a sentinel as well, threads beyond the number of connections wait for a free one."""
    client = client_of(f"sentinel://{sentinel.host}:{sentinel.port}", master_name="shop")
    held = [client.connection_pool.get_connection(*COMMAND) for _ in range(2)]
    answers: list[object] = []

    def use() -> None:
        try:
            answers.append(client.ping())
        except RedisConnectionError as error:
            answers.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(0.2)
    for connection in held:
        client.connection_pool.release(connection)
    thread.join(10)
    client.close()
    assert answers == [True]
