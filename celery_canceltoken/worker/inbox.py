"""The inbox: what makes a cancellation arrive in a millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_canceltoken.worker.service import Service

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Inbox"]


class Inbox(Service):
    """Blocks on the agent's stream and hands each wake-up to the agent.

    A wake-up carries no order, only where to look: the record says what is wanted.
    """

    name = "inbox"

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent

    def begin(self) -> None:
        """Make the two connections: one to wait, one to ask what is wanted."""
        self._store = self._agent.make_store()
        self._stream = self._store.inbox_of(self._agent.owner)

    def turn(self) -> None:
        """Wait for wake-ups and pass them on."""
        for entry in self._stream.read():
            self._agent.wanted(entry.execution_id, self._store)

    def last_turn(self) -> None:
        """Take the stream away: nobody reads it any more."""
        try:
            self._stream.remove()
        finally:
            self._stream.close()
            self._store.close()

    def store_lost(self) -> None:
        """What the server knew may be gone when it is back."""
        self._stream.lost()

    def store_found(self) -> None:
        """Requests that were made meanwhile had nobody to wake."""
        self._agent.check_now()
