"""Settling: the last step of an execution, which no body waits for."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_canceltoken.errors import StoreUnavailableError
from celery_canceltoken.store.answers import Ended, Finish
from celery_canceltoken.worker.service import Service

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Settler"]

_GATHER = 0.05
"""Seconds in which the ends of ordinary executions are gathered into one command."""
_BATCH = 200


@dataclass(frozen=True)
class _Job:
    ended: Ended
    owed: Finish | None
    urgent: bool


@dataclass(frozen=True)
class _Observation:
    task_id: str
    execution_id: str


class Settler(Service):
    """Writes what bodies leave behind: finishes that could not be written, observations, settlements.

    What the store does not take is kept and tried again, in order, until it does.
    """

    name = "settler"

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent
        self._queue: queue.SimpleQueue[_Job | _Observation | None] = queue.SimpleQueue()
        self._batch: list[_Job] = []
        self._idle = threading.Condition()
        self._unsettled = 0

    def settle(self, ended: Ended, owed: Finish | None, *, urgent: bool) -> None:
        """Take over an execution that has ended; *urgent* if somebody may be waiting for its end."""
        with self._idle:
            self._unsettled += 1
        self._queue.put(_Job(ended, owed, urgent))

    def observe(self, task_id: str, execution_id: str) -> None:
        """Record that a body has seen its token tripped."""
        self._queue.put(_Observation(task_id, execution_id))

    def drain(self, timeout: float) -> None:
        """Wait *timeout* seconds at most until all that was taken over is written."""
        self._queue.put(None)
        with self._idle:
            self._idle.wait_for(lambda: self._unsettled == 0, timeout)

    def interrupt(self) -> None:
        """End the wait for something to do."""
        self._queue.put(None)

    def turn(self) -> None:
        """Gather a batch and write it."""
        if not self._batch:
            self._gather()
        self._write()

    def _gather(self) -> None:
        deadline: float | None = None
        while len(self._batch) < _BATCH:
            try:
                timeout = None if deadline is None else deadline - time.monotonic()
                item = self._queue.get(timeout=None if timeout is None else max(0.0, timeout))
            except queue.Empty:
                return
            if item is None:
                return
            if isinstance(item, _Observation):
                self._observe(item)
                continue
            self._batch.append(item)
            if item.urgent:
                return
            if deadline is None:
                deadline = time.monotonic() + _GATHER

    def _observe(self, item: _Observation) -> None:
        try:
            self._agent.store.observe(item.task_id, item.execution_id)
        except StoreUnavailableError:
            # Informational; the finish carries the time as well.
            return

    def _write(self) -> None:
        if not self._batch:
            return
        store = self._agent.store
        for job in self._batch:
            if job.owed is not None:
                store.finish(job.owed)
        store.settle(self._agent.owner, [job.ended for job in self._batch])
        with self._idle:
            self._unsettled -= len(self._batch)
            self._idle.notify_all()
        self._batch = []
