"""The janitor: completes what dead workers left half done. Every agent has one; no leader."""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING

from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.states import State
from celery_canceltoken.worker.chore import Chore

if TYPE_CHECKING:
    from celery_canceltoken.store.agent_store import AgentStore
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Janitor"]

logger = logging.getLogger("celery_canceltoken.worker")

_AT_ONCE = 20


class Janitor(Chore):
    """Looks at what the owners without a lease have left, and takes it over by compare-and-set."""

    def __init__(self, agent: Agent, store: AgentStore) -> None:
        super().__init__(agent.settings.check_interval, jitter=0.5)
        self._agent = agent
        self._store = store
        self._not_before = 0.0

    def store_found(self) -> None:
        """The others were cut off as well: give each of them a full lease to be heard of again."""
        self._not_before = time.monotonic() + self._agent.settings.lease_duration

    def work(self) -> None:
        """Go through the dead owners."""
        if time.monotonic() < self._not_before:
            return
        store = self._store
        others = [owner for owner in store.owners() if not _same_agent(owner, self._agent.owner)]
        for owner in store.dead(others):
            task_ids = store.owned_by(owner, _AT_ONCE)
            if not task_ids:
                store.forget_owner(owner)
            done = [task_id for task_id in task_ids if self._look_at(owner, task_id)]
            if len(task_ids) == _AT_ONCE and done:
                # More of them in the next turn: the heartbeat comes first.
                self.hasten()

    def _look_at(self, dead_owner: str, task_id: str) -> bool:
        """Tell whether the id needs no second look."""
        store = self._store
        try:
            record = store.get(task_id)
        except RecordUnreadableError as error:
            # Written by a newer release, perhaps: for an agent of that release to see to.
            logger.debug("%s; left alone", error)
            return False
        if record is None or record.state not in (State.PROCESSING, State.FINISHING):
            store.not_owned(dead_owner, task_id)
            return True
        if record.owner != dead_owner:
            # Taken over, or adopted by a later incarnation of the same agent, whose index this is as well.
            if not _same_agent(record.owner, dead_owner):
                store.not_owned(dead_owner, task_id)
            return True
        agent = self._agent
        recovery = store.recover(
            record,
            owner=agent.owner,
            worker=agent.worker,
            recovery_id=uuid.uuid4().hex,
            broker=agent.broker,
        )
        if recovery is not None:
            logger.warning("task %s: its worker is gone; it ends %s", task_id, recovery.state)
            agent.complete(recovery)
        return recovery is not None


def _same_agent(owner: str | None, other: str) -> bool:
    return (owner or "").rpartition(".")[0] == other.rpartition(".")[0]
