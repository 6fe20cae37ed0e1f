"""The check: the backstop that makes a lost wake-up cost one interval, and never a cancellation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_canceltoken.worker.service import PeriodicService

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Check"]


class Check(PeriodicService):
    """Re-reads what is asked of every live, untripped execution; Hangfire's watcher."""

    name = "check"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.settings.check_interval, jitter=0.1)
        self._agent = agent

    def work(self) -> None:
        """Ask for all in one round trip; with nothing live, ask nothing."""
        live = self._agent.untripped()
        if not live:
            return
        asked = [(execution.claim.task_id, execution.claim.execution_id) for execution in live]
        for execution, delivery in zip(live, self._agent.store.deliver_many(asked), strict=True):
            self._agent.obey(execution, delivery)

    def store_found(self) -> None:
        """Do not wait for the next interval."""
        self.poke()
