"""Waiting for the end of one task without polling for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["EndSubscription"]


class EndSubscription:
    """Hears the announcement of one end, on a connection of its own; use as a context manager.

    Enter first, then read the record: an end in between is heard, one before is in the record.
    """

    def __init__(
        self, client: Any, channel: str, call: Callable[[Callable[[], Any]], Any], timeout: float
    ) -> None:
        self._client = client
        self._channel = channel
        self._call = call
        self._timeout = timeout

    def __enter__(self) -> EndSubscription:
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        self._call(self._subscribe)
        return self

    def _subscribe(self) -> None:
        self._pubsub.subscribe(self._channel)
        # The record is read on another connection: not before the server has confirmed this.
        self._pubsub.get_message(timeout=self._timeout)

    def __exit__(self, *exc: object) -> None:
        self._pubsub.close()
        self._client.close()

    def wait(self, timeout: float) -> None:
        """Return when the end was announced, or after *timeout* seconds, or for no reason at all."""
        self._call(lambda: self._pubsub.get_message(timeout=timeout))
