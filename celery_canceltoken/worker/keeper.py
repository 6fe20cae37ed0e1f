"""The keeper: does the agent's chores, one after the other, on one thread and one connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from celery_canceltoken.native import Empty, NativeQueue
from celery_canceltoken.worker.check import Check
from celery_canceltoken.worker.chore import Chore
from celery_canceltoken.worker.drops import Drops
from celery_canceltoken.worker.heartbeat import Heartbeat
from celery_canceltoken.worker.outbox import Outbox
from celery_canceltoken.worker.recovery import Janitor
from celery_canceltoken.worker.service import Service
from celery_canceltoken.worker.settling import Settler

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["Keeper"]


class Keeper(Service):
    """Heartbeat, check, drops, recovery and settling, and whatever is posted to it.

    Its state is touched by its own thread only; everybody else posts. None of the chores waits
    for more than a store timeout at a time, so the heartbeat is never late by much.
    """

    name = "keeper"

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent
        self._mail: NativeQueue[Callable[[], None]] = NativeQueue()

    def begin(self) -> None:
        """Make the store and the chores."""
        agent = self._agent
        self.store = agent.make_store()
        self.check = Check(agent, self.store)
        self.settler = Settler(agent, self.store)
        self.drops = Drops(agent, self.store)
        self._chores: list[Chore] = [
            Heartbeat(agent, self.store),
            self.settler,
            self.check,
            self.drops,
            Janitor(agent, self.store),
            Outbox(agent, self.store),
        ]

    def post(self, work: Callable[[], None]) -> None:
        """Have *work* done by the keeper; from any thread or greenlet, never waits."""
        self._mail.put(work)

    def interrupt(self) -> None:
        """End the wait for the next chore."""
        self.post(lambda: None)

    def turn(self) -> None:
        """Wait for mail or for a chore, and do all that is due."""
        next_due = min(chore.due for chore in self._chores)
        self._read_mail(max(0.0, next_due - time.monotonic()))
        now = time.monotonic()
        for chore in self._chores:
            if chore.due <= now:
                chore.run()

    def last_turn(self) -> None:
        """Settle what has ended, wake the inbox so that it can end, give up the lease."""
        self._read_mail(0.0)
        try:
            self.drops.work()
            self._read_mail(0.0)
            self.settler.work()
            self.store.wake(self._agent.owner)
            self.store.retire(self._agent.owner)
        finally:
            self.store.close()

    def store_found(self) -> None:
        """Nothing waits for its interval after an outage."""
        for chore in self._chores:
            chore.store_found()

    def _read_mail(self, timeout: float) -> None:
        try:
            work = self._mail.get(timeout=timeout)
            while True:
                work()
                work = self._mail.get()
        except Empty:
            return
