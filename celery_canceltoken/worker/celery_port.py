"""What an agent asks of Celery, and has done by it: results written, messages published."""

from __future__ import annotations

from typing import Protocol

from celery_canceltoken.store.answers import Recovery

__all__ = ["CeleryPort"]


class CeleryPort(Protocol):
    """All but the first are called in the bodies' world, where they may take their time.

    An exception means that it was not done.
    """

    def was_told_to_stop(self) -> bool:
        """Tell whether this process's worker is to stop. At once, from any thread."""

    def complete(self, recovery: Recovery) -> None:
        """Write the Celery result that a lost worker left unwritten."""

    def send_again(self, task_id: str) -> None:
        """Publish the message of *task_id* that waits in the outbox, if one does."""
