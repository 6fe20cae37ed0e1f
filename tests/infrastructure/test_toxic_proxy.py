from __future__ import annotations

import time

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.support.proxy import ToxicProxy
from tests.support.servers import EmbeddedServer, impatient_client
from tests.support.waiting import wait_until
from tests.support.workers import unique_name


@pytest.fixture
def client(valkey_proxy: ToxicProxy) -> Redis:
    """A client behind the proxy."""
    return impatient_client(valkey_proxy.port)


@pytest.fixture
def direct(valkey: EmbeddedServer) -> Redis:
    """A client of the same server that the proxy cannot harm."""
    return Redis(port=valkey.port)


@pytest.fixture
def key() -> str:
    """A key that is this test's own."""
    return unique_name("key")


def test_by_default_it_only_passes_on(client: Redis, key: str) -> None:
    """Without a fault the proxy is not noticed, whatever the size."""
    value = b"x" * 1_000_000
    client.set(key, value)
    assert client.get(key) == value


def test_a_cut_refuses_old_and_new_connections_until_healed(client: Redis, valkey_proxy: ToxicProxy) -> None:
    """While cut off, a client is reset and refused; afterwards it connects as before."""
    client.ping()
    valkey_proxy.cut()
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            client.ping()
    assert valkey_proxy.refused
    valkey_proxy.heal()
    assert client.ping()


def test_a_reset_ends_open_connections_only(client: Redis, valkey_proxy: ToxicProxy) -> None:
    """After a reset the next connection is welcome."""
    client.ping()
    valkey_proxy.reset_connections()
    wait_until(lambda: not valkey_proxy.open_connections, description="the connection is gone")
    assert Redis(port=valkey_proxy.port).ping()


def test_what_is_frozen_downwards_has_been_executed(
    client: Redis, direct: Redis, valkey_proxy: ToxicProxy, key: str
) -> None:
    """In a partition towards the client the command arrives and its reply does not."""
    client.ping()
    valkey_proxy.freeze("down")
    with pytest.raises(RedisTimeoutError):
        client.set(key, "value")
    assert direct.get(key) == b"value"


def test_what_is_frozen_upwards_has_not_been_executed(
    client: Redis, direct: Redis, valkey_proxy: ToxicProxy, key: str
) -> None:
    """In a partition towards the server the command never arrives."""
    client.ping()
    valkey_proxy.freeze("up")
    with pytest.raises(RedisTimeoutError):
        client.set(key, "value")
    assert direct.get(key) is None


def test_a_lost_reply_belongs_to_an_executed_command(
    client: Redis, direct: Redis, valkey_proxy: ToxicProxy, key: str
) -> None:
    """The chosen command is executed once, and its sender sees a closed connection."""
    client.ping()
    valkey_proxy.lose_replies_to(b"INCR")
    with pytest.raises(RedisConnectionError):
        client.incr(key)
    assert direct.get(key) == b"1"
    assert client.ping()


def test_a_torn_reply_ends_in_the_middle(
    client: Redis, direct: Redis, valkey_proxy: ToxicProxy, key: str
) -> None:
    """A reply that is longer than the limit is cut short with the connection."""
    direct.set(key, "x" * 10_000)
    valkey_proxy.tear_replies_after(100)
    with pytest.raises(RedisConnectionError):
        client.get(key)


def test_a_delay_is_felt(client: Redis, valkey_proxy: ToxicProxy) -> None:
    """A command takes at least the delay of both ways."""
    client.ping()
    valkey_proxy.delay(0.05)
    start = time.monotonic()
    client.ping()
    assert time.monotonic() - start >= 0.1


def test_a_throttle_is_felt(client: Redis, direct: Redis, valkey_proxy: ToxicProxy, key: str) -> None:
    """A reply takes its size divided by the rate."""
    direct.set(key, "x" * 5_000)
    client.ping()
    valkey_proxy.throttle(50_000)
    start = time.monotonic()
    client.get(key)
    assert time.monotonic() - start >= 0.1


def test_an_unreachable_server_is_a_closed_connection(private_valkey: EmbeddedServer) -> None:
    """Behind the proxy, a server that is down looks down."""
    with ToxicProxy((private_valkey.host, private_valkey.port)) as proxy:
        private_valkey.crash()
        with pytest.raises(RedisConnectionError):
            impatient_client(proxy.port).ping()


def test_a_stopped_proxy_does_not_listen(valkey: EmbeddedServer) -> None:
    """After the with block nobody answers on the port."""
    with ToxicProxy((valkey.host, valkey.port)) as proxy:
        assert Redis(port=proxy.port).ping()
    with pytest.raises(RedisConnectionError):
        impatient_client(proxy.port).ping()
