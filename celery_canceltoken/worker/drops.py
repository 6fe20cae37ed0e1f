"""Drops: messages that Celery itself discarded, as revoked or expired, without any body of ours."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.outcome import Ending, rows
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Claim, ClaimVerdict, Ended, Finish, RequestOrder
from celery_canceltoken.worker.chore import NEVER, Chore

if TYPE_CHECKING:
    from celery_canceltoken.record import TaskRecord
    from celery_canceltoken.store.agent_store import AgentStore
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Dropped", "Drops"]

logger = logging.getLogger("celery_canceltoken.worker")

_TRY_AGAIN = 1.0
_LIMIT = 10_000
_SENDERS_TIME = 1.0
"""Seconds in which a sender that tracks what it sends has written its record, after the message."""


@dataclass(frozen=True)
class Dropped:
    """A message that Celery discarded."""

    claim: Claim
    """What its body would have claimed."""
    message: str
    """As it would have been kept."""
    cancellation: Cancellation
    at: float = field(default_factory=time.monotonic)


class Drops(Chore):
    """Brings the records of dropped messages to REVOKED, where there are any.

    Otherwise a request for such a task would stay unanswered, and what waits for a retry would seem
    to wait for ever. Nothing is written of ids that have no record.
    """

    def __init__(self, agent: Agent, store: AgentStore) -> None:
        super().__init__(_TRY_AGAIN)
        self._agent = agent
        self._store = store
        # As many as may come in an outage; of more, the oldest are forgotten.
        self._dropped: deque[Dropped] = deque(maxlen=_LIMIT)
        self.due = NEVER

    def add(self, dropped: Dropped) -> None:
        """Take over a message that was dropped."""
        self._dropped.append(dropped)
        self.hasten()

    def work(self) -> None:
        """Look at each; what the store does not take is tried again."""
        for _ in range(len(self._dropped)):
            if self._write(self._dropped[0]):
                self._dropped.popleft()
            else:
                self._dropped.rotate(-1)
        self.due = time.monotonic() + _TRY_AGAIN if self._dropped else NEVER

    def store_found(self) -> None:
        """Only what waits is worth a command."""
        if self._dropped:
            self.hasten()

    def _write(self, dropped: Dropped) -> bool:
        """Tell whether there is nothing more to do."""
        claim, cancellation = dropped.claim, dropped.cancellation
        try:
            record = self._store.get(claim.task_id)
        except RecordUnreadableError as error:
            logger.debug("%s; left alone", error)
            return True
        if record is None:
            return not self._agent.settings.track_enqueued or time.monotonic() > dropped.at + _SENDERS_TIME
        if not _waits_for(claim, record):
            return True
        if record.state is not None:
            # The same way as if somebody had asked us: a request, and a claim that is denied for it.
            self._store.request(
                RequestOrder(claim.task_id, claim.execution_id, "revoke", cancellation, (record.state,))
            )
        claim = replace(claim, owner=self._agent.owner)
        answer = self._store.claim(claim, message=dropped.message)
        if answer.verdict is ClaimVerdict.RUN:
            # The request was gone by then, but nobody is going to run this.
            table = rows(Ending.CANCELLED, Cause.REVOKED, observed=False, disregarded=False)
            self._store.finish(
                Finish(claim, answer.generation, answer.attempt, table, cancellation=cancellation)
            )
        if answer.verdict in (ClaimVerdict.RUN, ClaimVerdict.DENIED):
            self._agent.settle(Ended(claim.execution_id, claim.task_id, keep=claim.keep), None, urgent=True)
        return True


def _waits_for(claim: Claim, record: TaskRecord) -> bool:
    """Tell whether the record is a request alone, or waits for a message that is not newer than this one."""
    if record.state is None:
        return record.answer == "pending"
    runs = record.state in (State.PROCESSING, State.FINISHING)
    return not runs and not record.state.is_final and record.generation <= claim.generation
