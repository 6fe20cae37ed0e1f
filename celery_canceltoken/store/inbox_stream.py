"""An agent's inbox: a stream that wakes it, read on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_canceltoken.settings import Settings
from celery_canceltoken.store.answers import InboxEntry
from celery_canceltoken.store.connect import ConnectionPlan

__all__ = ["INBOX_LENGTH", "InboxStream"]

INBOX_LENGTH = 1000
"""Entries kept, about. Nothing is lost with one that is cut off: the check finds the request."""


class InboxStream:
    """The reading end. It belongs to one thread, which an entry without a task wakes to no end."""

    def __init__(
        self,
        plan: ConnectionPlan,
        settings: Settings,
        key: str,
        call: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._key = key
        self._call = call
        self._ttl = int(settings.record_expires * 1000)
        self._block = settings.heartbeat_interval * 2
        # The read is meant to wait: its limit is how long an idle server may stay silent, and then some.
        timeout = self._block + settings.store_timeout + 1.0
        self._client: Any = plan.client(
            timeout=timeout, connections=1, connect_timeout=settings.store_timeout
        )
        self._last_id = "0-0"
        self._created = False

    def read(self) -> list[InboxEntry]:
        """Wait for entries; an empty list after a while without any. Raises StoreUnavailableError.

        The stream keeps what arrives between two calls, or while the connection is lost.
        """
        entries = []
        for _, messages in self._call(self._read) or ():
            for entry_id, fields in messages:
                self._last_id = entry_id
                if fields.get("execution"):
                    entries.append(InboxEntry(entry_id, fields.get("task", ""), fields["execution"]))
        return entries

    def lost(self) -> None:
        """The server was away and may have come back empty: create the stream again before reading."""
        self._created = False

    def remove(self) -> None:
        """Delete the stream: nobody will read it any more."""
        self._call(lambda: self._client.delete(self._key))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _read(self) -> Any:
        if not self._created:
            # Requests append only to a stream that is there: none is left behind for a dead agent.
            self._client.xadd(self._key, {"hello": "1"}, maxlen=INBOX_LENGTH, approximate=True)
            self._client.pexpire(self._key, self._ttl)
            self._created = True
        answer = self._client.xread({self._key: self._last_id}, block=int(self._block * 1000), count=100)
        if not answer:
            # Evicted or flushed, nobody could append to it, and nothing would ever end the silence.
            self._created = bool(self._client.exists(self._key))
        return answer
