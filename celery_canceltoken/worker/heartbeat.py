"""The heartbeat: one small write per interval, however many tasks run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery_canceltoken.worker.chore import Chore

if TYPE_CHECKING:
    from celery_canceltoken.store.agent_store import AgentStore
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Heartbeat"]


class Heartbeat(Chore):
    """Renews the lease; a lease that had lapsed makes the agent a new incarnation."""

    def __init__(self, agent: Agent, store: AgentStore) -> None:
        super().__init__(agent.settings.heartbeat_interval)
        self._agent = agent
        self._store = store
        self._announced = False
        # Keys that expire in a day need no push each interval.
        self._keep_every = agent.settings.record_expires / 10
        self._keep_at = 0.0

    def work(self) -> None:
        """Announce the agent or renew its lease, and now and then what else would expire."""
        agent, now = self._agent, time.monotonic()
        if not self._announced:
            self._store.announce(agent.owner)
            self._announced = True
            self._keep_at = now + self._keep_every
        elif not self._store.beat(agent.owner):
            agent.renew(self._store)
        else:
            agent.adopt_all(self._store)
        if now >= self._keep_at:
            self._store.keep(agent.owner, [one.claim.task_id for one in agent.live()])
            self._keep_at = now + self._keep_every
