"""The janitor: completes what dead workers left half done. Every agent has one; no leader."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Ended, Recovery
from celery_canceltoken.worker.service import PeriodicService

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Janitor"]

logger = logging.getLogger("celery_canceltoken.worker")

_AT_ONCE = 100


class Janitor(PeriodicService):
    """Looks at what the owners without a lease have left, and takes it over by compare-and-set."""

    name = "janitor"

    def __init__(self, agent: Agent, complete: Callable[[Recovery], None]) -> None:
        super().__init__(agent.settings.check_interval, jitter=0.5)
        self._agent = agent
        self._complete = complete
        self._not_before = 0.0
        self.poke()

    def store_found(self) -> None:
        """The others were cut off as well: give each of them a full lease to be heard of again."""
        self._not_before = time.monotonic() + self._agent.settings.lease_duration

    def work(self) -> None:
        """Go through the dead owners."""
        store = self._agent.store
        others = [owner for owner in store.owners() if owner != self._agent.owner]
        dead = store.dead(others)
        if time.monotonic() < self._not_before:
            return
        for owner in dead:
            task_ids = store.owned_by(owner, _AT_ONCE)
            if not task_ids:
                store.forget_owner(owner)
            for task_id in task_ids:
                self._look_at(owner, task_id)

    def _look_at(self, dead_owner: str, task_id: str) -> None:
        store = self._agent.store
        try:
            record = store.get(task_id)
        except RecordUnreadableError as error:
            logger.warning("%s; left alone", error)
            record = None
        if record is None or record.state not in (State.PROCESSING, State.FINISHING):
            store.not_owned(dead_owner, task_id)
            return
        if record.owner != dead_owner:
            # Taken over, or adopted by a later incarnation of the same agent, whose index this is as well.
            if not _same_agent(record.owner, dead_owner):
                store.not_owned(dead_owner, task_id)
            return
        agent = self._agent
        recovery = store.recover(record, owner=agent.owner, worker=agent.worker, recovery_id=uuid.uuid4().hex)
        if recovery is None:
            return
        logger.warning("task %s: its worker is gone; it ends %s", task_id, recovery.state)
        self._complete(recovery)
        store.settle(agent.owner, [Ended(recovery.execution_id, task_id)])


def _same_agent(owner: str | None, other: str) -> bool:
    return (owner or "").rpartition(".")[0] == other.rpartition(".")[0]
