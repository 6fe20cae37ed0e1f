"""Finding a RabbitMQ, and using it so that its owner notices nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError, NotFound
from kombu import Connection, Exchange, Queue
from kombu.exceptions import KombuError

__all__ = ["DEFAULT_URL", "RabbitMQ", "RabbitMQAbsentError", "RabbitMQUnusableError", "find_rabbitmq"]

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672//"
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"


class RabbitMQAbsentError(Exception):
    """Nobody has promised a RabbitMQ, and there is none."""


class RabbitMQUnusableError(Exception):
    """The RabbitMQ that CANCELTOKEN_RABBITMQ_URL promises does not work."""


@dataclass(frozen=True)
class RabbitMQ:
    """A running RabbitMQ that may be somebody else's."""

    url: str

    def __str__(self) -> str:
        shown: str = Connection(self.url).as_uri()
        return shown

    def delete(self, queue: str) -> None:
        """Delete what an app with `private_names(queue)` has declared; what is not there is no error."""
        with Connection(self.url) as connection, connection.channel() as channel:
            Queue(queue, channel=channel).delete()
            for exchange in self.exchanges_of(queue):
                Exchange(exchange, channel=channel).delete()

    @staticmethod
    def exchanges_of(queue: str) -> list[str]:
        """The exchanges that an app with `private_names(queue)` declares."""
        return [queue, f"{queue}-control.pidbox", f"reply.{queue}-control.pidbox", f"{queue}-event"]

    def has_queue(self, name: str) -> bool:
        """True if there is such a queue."""
        return self._answers(lambda channel: Queue(name, channel=channel).queue_declare(passive=True))

    def has_exchange(self, name: str) -> bool:
        """True if there is such an exchange."""
        return self._answers(lambda channel: Exchange(name, channel=channel).declare(passive=True))

    def _answers(self, question: Callable[[Any], object]) -> bool:
        with Connection(self.url) as connection, connection.channel() as channel:
            try:
                question(channel)
            except NotFound:
                return False
            return True


def find_rabbitmq() -> RabbitMQ:
    """Return the RabbitMQ at CANCELTOKEN_RABBITMQ_URL, else the one at this machine's usual port.

    Raises `RabbitMQUnusableError` if the variable is set, else `RabbitMQAbsentError`.
    """
    promised = os.environ.get("CANCELTOKEN_RABBITMQ_URL")
    url = promised or DEFAULT_URL
    problem = _problem_with(url)
    if problem is None:
        return RabbitMQ(url)
    if promised:
        raise RabbitMQUnusableError(f"CANCELTOKEN_RABBITMQ_URL={RabbitMQ(url)} does not work: {problem}")
    raise RabbitMQAbsentError(
        f"none at {RabbitMQ(url)}: {problem}; start one, or set CANCELTOKEN_RABBITMQ_URL"
    )


def _problem_with(url: str) -> str | None:
    # The plain socket comes first: kombu's own connection tries again for ten seconds before it gives up.
    address = urlsplit(url)
    try:
        _greet(address.hostname or "127.0.0.1", address.port, secure=address.scheme == "amqps")
        with Connection(url, connect_timeout=5) as connection:
            connection.connect()
    except (OSError, KombuError, AMQPError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _greet(host: str, port: int | None, *, secure: bool) -> None:
    with socket.create_connection((host, port or (5671 if secure else 5672)), timeout=2) as client:
        if secure:
            return
        client.sendall(PROTOCOL_HEADER)
        answer = b""
        with suppress(TimeoutError):
            answer = client.recv(1)
        if answer != METHOD_FRAME:
            raise ConnectionError("what listens there does not speak AMQP 0-9-1")
