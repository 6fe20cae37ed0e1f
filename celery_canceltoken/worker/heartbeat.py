"""The heartbeat: one small write per interval, however many tasks run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery_canceltoken.worker.service import PeriodicService

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Heartbeat"]


class Heartbeat(PeriodicService):
    """Renews the lease; a lease that had lapsed makes the agent a new incarnation."""

    name = "heartbeat"

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.settings.heartbeat_interval)
        self._agent = agent
        self._announced = False
        # Keys that expire in a day need no push each interval.
        self._keep_every = agent.settings.record_expires / 10
        self._keep_at = 0.0

    def turn(self) -> None:
        """Announce the agent first, so that its first tasks have a lease to be claimed under."""
        if not self._announced:
            self._agent.store.announce(self._agent.owner)
            self._announced = True
            self._keep_at = time.monotonic() + self._keep_every
        super().turn()

    def work(self) -> None:
        """Renew the lease, and now and then what else would expire."""
        agent = self._agent
        if not agent.store.beat(agent.owner):
            agent.renew()
        if time.monotonic() >= self._keep_at:
            agent.store.keep(agent.owner, agent.live_task_ids())
            self._keep_at = time.monotonic() + self._keep_every
