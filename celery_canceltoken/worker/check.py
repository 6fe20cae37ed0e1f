"""The check: the backstop that makes a lost wake-up cost one interval, and never a cancellation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_canceltoken.worker.chore import Chore

if TYPE_CHECKING:
    from celery_canceltoken.store.redis_store import RedisStore
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Check"]


class Check(Chore):
    """Re-reads what is asked of every live, untripped execution; Hangfire's watcher."""

    def __init__(self, agent: Agent, store: RedisStore) -> None:
        super().__init__(agent.settings.check_interval, jitter=0.1)
        self._agent = agent
        self._store = store

    def work(self) -> None:
        """Ask for all in one round trip; with nothing live, ask nothing."""
        live = [execution for execution in self._agent.live() if not execution.tripped]
        if not live:
            return
        asked = [(execution.claim.task_id, execution.claim.execution_id) for execution in live]
        for execution, delivery in zip(live, self._store.deliver_many(asked), strict=True):
            self._agent.obey(execution, delivery, self._store)
