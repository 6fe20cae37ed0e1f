"""Private Valkey servers in the shapes that a deployment may have."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from examples.embedded_valkey import EmbeddedServer, ServerNotFoundError, ServerStartError, find_server
from tests.support.waiting import wait_until

__all__ = [
    "EmbeddedServer",
    "ServerNotFoundError",
    "ServerStartError",
    "cluster_of_one",
    "find_server",
    "impatient_client",
    "sentinel_for",
]


def impatient_client(port: int, *, timeout: float = 0.3) -> Redis:
    """A client that gives up soon and never tries again: what it says is what just happened."""
    return Redis(port=port, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))


@contextmanager
def cluster_of_one() -> Iterator[EmbeddedServer]:
    """A cluster whose only node holds all slots: enough to refuse a script that spans two of them."""
    with socket.socket() as reservation:
        reservation.bind(("127.0.0.1", 0))
        bus_port = reservation.getsockname()[1]
    with EmbeddedServer("--cluster-enabled", "yes", "--cluster-port", str(bus_port)) as server:
        with Redis(port=server.port) as client:
            client.cluster("addslotsrange", 0, 16383)
            wait_until(
                lambda: client.cluster("info")["cluster_state"] == "ok",
                description="the cluster serves all slots",
            )
        yield server


@contextmanager
def sentinel_for(primary: EmbeddedServer, *, name: str = "primary") -> Iterator[EmbeddedServer]:
    """A sentinel that knows `primary` by `name` and fails over to nobody."""
    monitor = f"sentinel monitor {name} {primary.host} {primary.port} 1\n"
    with EmbeddedServer("--sentinel", configuration=monitor) as server:
        yield server
