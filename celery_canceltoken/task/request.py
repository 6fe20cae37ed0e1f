"""The parent's view of a running task: what only the worker's main process can say or learn."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import signals
from celery.exceptions import Terminated, WorkerLostError
from celery.worker.request import Request

from celery_canceltoken.outcome import Ending
from celery_canceltoken.task import wire
from celery_canceltoken.task.endings import Revoked
from celery_canceltoken.worker.runtime import agent_of

__all__ = ["CancellableRequest"]


class CancellableRequest(Request):
    """Celery's request, which also announces revocations and hears of children that are gone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        wire.attach(self)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A task ended with an exception, or its child did."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, Revoked):
            self._announce_cooperative_end()
        elif isinstance(error, Terminated):
            self._abandoned(Ending.TERMINATED)
        elif isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            comes_back = (self.task.acks_late and self.task.reject_on_worker_lost) or getattr(
                self.task, "retry_on_worker_lost", False
            )
            self._abandoned(Ending.CHILD_LOST_BACK if comes_back else Ending.CHILD_LOST)
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """A time limit has passed; after the hard one the child is gone."""
        if not soft:
            comes_back = self.task.acks_late and not getattr(self.task, "acks_on_timeout", True)
            self._abandoned(Ending.CHILD_LOST_BACK if comes_back else Ending.TIME_LIMIT)
        return super().on_timeout(soft, timeout)

    def _announce_cooperative_end(self) -> None:
        facts = {"terminated": False, "signum": None, "expired": False}
        self.send_event("task-revoked", **facts)
        signals.task_revoked.send(sender=self.task, request=self._context, **facts)  # type: ignore[attr-defined]

    def _abandoned(self, ending: Ending) -> None:
        agent = agent_of(id(self.app), self.hostname)
        if agent is not None:
            agent.abandoned(self.id, ending)
