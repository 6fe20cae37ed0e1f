"""Settling: the last step of an execution, which no body waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery_canceltoken.outcome import ResultFate
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Ended, Finish, Recovery, Settled
from celery_canceltoken.worker.chore import NEVER, Chore

if TYPE_CHECKING:
    from celery_canceltoken.store.agent_store import AgentStore
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Settler"]

_GATHER = 0.05
"""Seconds in which the ends of ordinary executions are gathered into one command."""
_BATCH = 200
_TRY_AGAIN = 1.0
_TOLD_BY_US = (ResultFate.REVOKED, ResultFate.SHUT_DOWN)
"""What Celery does not tell by itself of a body that has no say any more."""


class Settler(Chore):
    """Writes what bodies leave behind: settlements, and finishes that could not be written.

    What the store does not take is kept and tried again, in order, until it does.
    """

    def __init__(self, agent: Agent, store: AgentStore) -> None:
        super().__init__(_TRY_AGAIN)
        self._agent = agent
        self._store = store
        self._ended: list[tuple[Ended, Finish | None]] = []
        self.due = NEVER

    def add(self, ended: Ended, owed: Finish | None, *, urgent: bool) -> None:
        """Take over an execution that has ended; *urgent* if somebody may be waiting for its end."""
        self._ended.append((ended, owed))
        if urgent or len(self._ended) >= _BATCH:
            self.hasten()
        else:
            self.due = min(self.due, time.monotonic() + _GATHER)

    def work(self) -> None:
        """Write all there is, in as few commands as it takes."""
        while self._ended:
            batch = self._ended[:_BATCH]
            told = [ended for ended, owed in batch if owed is None or self._write_finish(ended, owed)]
            settled = self._store.settle(self._agent.owner, told)
            for ended, became in zip(told, settled, strict=True):
                if became is Settled.SENT_AGAIN:
                    self._agent.send_again(ended.task_id)
            del self._ended[: len(batch)]
        self.due = NEVER

    def _write_finish(self, ended: Ended, owed: Finish) -> bool:
        """Write it. False: Celery's result is still to be written, and the end is settled after that."""
        answer = self._store.finish(owed)
        if answer.outbox is not None:
            self._agent.send_again(ended.task_id)
        elif owed.bodiless and answer.verdict is not None and answer.verdict.result in _TOLD_BY_US:
            state = answer.verdict.state or State.FAILED
            message = self._store.ask(self._store.calls.message(ended.task_id))
            cancellation = answer.cancellation or owed.cancellation
            recovery = Recovery(ended.task_id, ended.execution_id, state, "", cancellation, message)
            self._agent.complete(recovery)
            return False
        return True

    def store_found(self) -> None:
        """Only what waits is worth a command."""
        if self._ended:
            self.hasten()
