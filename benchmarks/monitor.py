"""Which commands a server gets, and from whom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis

from celery_canceltoken.store.scripts import script_source

__all__ = ["Commands", "watch"]

PREFIX = "canceltoken:"
_END = "bench:end-of-watch"
_SCRIPTS = {
    hashlib.sha1(script_source(name).encode()).hexdigest(): name for name in ("claim", "finish", "settle")
}


@dataclass
class Commands:
    """The commands that came over TCP: the worker's, as the driver uses the socket file.

    What a script does inside the server costs no round trip and is not among them.
    """

    by_connection: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(map(len, self.by_connection.values()))

    @property
    def connections_of_extension(self) -> set[str]:
        """Those that were ever used for one of its keys."""
        return {
            connection
            for connection, commands in self.by_connection.items()
            if any(word.startswith(PREFIX) for command in commands for word in command)
        }

    def of_extension(self) -> list[list[str]]:
        """All on its connections, whatever they are about."""
        return [command for one in self.connections_of_extension for command in self.by_connection[one]]

    def calls_of(self, *scripts: str) -> int:
        """How often those scripts were called."""
        return sum(
            command[0].upper() == "EVALSHA" and _SCRIPTS.get(command[1]) in scripts
            for command in self.of_extension()
        )


@contextmanager
def watch(socket_url: str) -> Iterator[Commands]:
    """Note all commands while the block runs; they are there to be read after it."""
    commands = Commands()
    with redis.Redis.from_url(socket_url, socket_timeout=30) as client, client.monitor() as monitor:
        yield commands
        # Its own end is the one thing in the stream that can be waited for.
        client.echo(_END)
        for entry in monitor.listen():
            words = entry["command"].split(" ")
            if words == ["ECHO", _END]:
                return
            if entry["client_type"] == "tcp":
                commands.by_connection.setdefault(entry["client_port"], []).append(words)
