"""What an agent has done by Celery: results written, messages published."""

from __future__ import annotations

from typing import Protocol

from celery_canceltoken.store.answers import Recovery

__all__ = ["CeleryPort"]


class CeleryPort(Protocol):
    """Called in the bodies' world, where it may take its time; an exception means that it was not done."""

    def complete(self, recovery: Recovery) -> None:
        """Write the Celery result that a lost worker left unwritten."""

    def send_again(self, task_id: str) -> None:
        """Publish the message of *task_id* that waits in the outbox, if one does."""
