"""The outbox: sends what was to go back to its queue and whose sender did not live to do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_canceltoken.worker.chore import Chore

if TYPE_CHECKING:
    from celery_canceltoken.store.agent_store import AgentStore
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Outbox"]

_AT_ONCE = 50


class Outbox(Chore):
    """Looks for messages that wait too long. Two copies of one do no harm: they are of one generation."""

    def __init__(self, agent: Agent, store: AgentStore) -> None:
        super().__init__(agent.settings.check_interval, jitter=0.5)
        self._agent = agent
        self._store = store

    def work(self) -> None:
        """Send some; the next ones in the next turn."""
        task_ids = self._store.in_outbox(_AT_ONCE, self._agent.broker)
        for task_id in task_ids:
            self._agent.send_again(task_id)
        if len(task_ids) == _AT_ONCE:
            self.hasten()
