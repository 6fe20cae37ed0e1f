"""The check: the backstop that makes a lost wake-up cost one interval, and never a cancellation."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from celery_canceltoken.worker.chore import Chore

if TYPE_CHECKING:
    from celery_canceltoken.store.agent_store import AgentStore
    from celery_canceltoken.worker.agent import Agent, LiveExecution

__all__ = ["Check"]

logger = logging.getLogger("celery_canceltoken.worker")


class Check(Chore):
    """Re-reads what is asked of every live, untripped execution; Hangfire's watcher."""

    def __init__(self, agent: Agent, store: AgentStore) -> None:
        super().__init__(agent.settings.check_interval, jitter=0.1)
        self._agent = agent
        self._store = store

    def work(self) -> None:
        """Ask for all in one round trip; with nothing live, ask nothing."""
        executions = self._agent.live()
        for execution in executions:
            _name_if_unheeding(execution)
        live = [execution for execution in executions if not execution.tripped]
        if not live:
            return
        asked = [(execution.claim.task_id, execution.claim.execution_id) for execution in live]
        for execution, delivery in zip(live, self._store.deliver_many(asked), strict=True):
            self._agent.obey(execution, delivery, self._store)


def _name_if_unheeding(execution: LiveExecution) -> None:
    if execution.told_at is None:
        return
    told = time.monotonic() - execution.told_at
    if told >= execution.next_complaint:
        # Less and less often: the first times are news.
        execution.next_complaint *= 2
        claim = execution.claim
        logger.warning(
            "task %s[%s] was told to stop %.0f s ago and goes on%s",
            claim.name,
            claim.task_id,
            told,
            "" if claim.takes_token else ": it takes no token",
        )
