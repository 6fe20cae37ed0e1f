"""The agent: one per worker, in its main process. It knows what runs here and trips what is to stop."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending, rows
from celery_canceltoken.settings import Settings
from celery_canceltoken.store.answers import Claim, Delivery, DeliveryVerdict, Ended, Finish, Recovery
from celery_canceltoken.store.redis_store import RedisStore
from celery_canceltoken.worker.bodies import Bodies
from celery_canceltoken.worker.check import Check
from celery_canceltoken.worker.heartbeat import Heartbeat
from celery_canceltoken.worker.inbox import Inbox
from celery_canceltoken.worker.link import LinkServer
from celery_canceltoken.worker.recovery import Janitor
from celery_canceltoken.worker.service import Service
from celery_canceltoken.worker.settling import Settler

__all__ = ["Agent", "LiveExecution"]

logger = logging.getLogger("celery_canceltoken.worker")

_EARLY_LIMIT = 1000
_STOP_TIMEOUT = 3.0


@dataclass
class LiveExecution:
    """An execution that runs in this worker."""

    claim: Claim
    generation: int
    attempt: int
    cancel: Callable[[Cancellation], None]
    """Reaches the token, in this process or a child; raises OSError where the child is gone."""
    tripped: bool = False


class Agent:
    """What runs in this worker, and the services that look after it.

    Owner: the worker. It is made before the pool forks, started with the worker, and stopped
    after the pool has been joined, so that heartbeats and cancellations go on while bodies drain.
    `started`, `observed`, `ended` and `wanted` may be called from any thread. A forked child
    never touches it.
    """

    def __init__(
        self, store: RedisStore, settings: Settings, worker: str, complete: Callable[[Recovery], None]
    ) -> None:
        self.store = store
        self.settings = settings
        self.worker = worker
        self._id = uuid.uuid4().hex
        self._incarnation = 1
        self._lock = threading.Lock()
        self._live: dict[str, LiveExecution] = {}
        # Wake-ups that overtook the registration of the execution they name.
        self._early: OrderedDict[str, str] = OrderedDict()
        self.bodies = Bodies()
        self.link = LinkServer(self)
        self.settler = Settler(self)
        self.check = Check(self)
        self.janitor = Janitor(self, complete)
        self._services: list[Service] = [
            Heartbeat(self),
            Inbox(self),
            self.check,
            self.janitor,
            self.link,
            self.settler,
        ]

    @property
    def owner(self) -> str:
        """Whom executions of this worker are claimed for."""
        return f"{self._id}.{self._incarnation}"

    # -- life

    def start(self) -> None:
        """Start all services. The store need not be reachable yet."""
        for service in self._services:
            service.start()

    def stop(self) -> None:
        """Settle what has ended, give up the lease, end all threads. Seconds at most."""
        self.settler.drain(_STOP_TIMEOUT)
        for service in self._services:
            service.stop()
        for service in self._services:
            service.join(_STOP_TIMEOUT)
        self.link.close()
        try:
            self.store.retire(self.owner)
        except ConnectionError:
            logger.info("the store does not answer; the lease of this worker will run out by itself")
        self.store.close()

    def renew(self) -> None:
        """The lease had lapsed: go on as a new incarnation, and keep what nobody has taken meanwhile."""
        old = self.owner
        with self._lock:
            self._incarnation += 1
            live = list(self._live.values())
        self.store.announce(self.owner)
        self.link.broadcast_owner()
        for execution in live:
            self._adopt(execution)
        self.store.forget_owner(old)
        logger.warning("the lease of this worker had lapsed; %d executions checked", len(live))

    # -- what bodies tell

    def started(
        self,
        claim: Claim,
        generation: int,
        attempt: int,
        cancel: Callable[[Cancellation], None] | None = None,
    ) -> None:
        """Register an execution; without *cancel* its body runs in this process."""
        execution_id = claim.execution_id
        execution = LiveExecution(
            claim,
            generation,
            attempt,
            cancel or (lambda cancellation: self.bodies.cancel(execution_id, cancellation)),
        )
        with self._lock:
            self._live[execution_id] = execution
            early = self._early.pop(execution_id, None) is not None
            lapsed = claim.owner != self.owner
        if lapsed:
            self._adopt(execution)
        if early:
            self.check.poke()

    def observed(self, execution_id: str) -> None:
        """The body has seen that it is to stop."""
        execution = self._live.get(execution_id)
        if execution is not None:
            self.settler.observe(execution.claim.task_id, execution_id)

    def ended(self, ended: Ended, owed: Finish | None) -> None:
        """The execution is over and Celery's result is written."""
        with self._lock:
            execution = self._live.pop(ended.execution_id, None)
        self.settler.settle(ended, owed, urgent=execution is not None and execution.tripped)

    def abandoned(self, task_id: str, ending: Ending) -> None:
        """Celery says how an execution ended whose body cannot say so any more (its child is gone)."""
        with self._lock:
            gone = [one for one in self._live.values() if one.claim.task_id == task_id]
            for execution in gone:
                del self._live[execution.claim.execution_id]
        for execution in gone:
            finish = Finish(
                claim=execution.claim,
                generation=execution.generation,
                attempt=execution.attempt,
                rows=rows(ending, None, observed=False, disregarded=False),
                error=ending.value,
            )
            self.settler.settle(Ended(execution.claim.execution_id, task_id), finish, urgent=True)

    # -- what the store tells

    def wanted(self, task_id: str, execution_id: str) -> None:
        """Somebody has asked something of an execution: find out what, and trip its token."""
        with self._lock:
            execution = self._live.get(execution_id)
            if execution is None:
                self._early[execution_id] = task_id
                while len(self._early) > _EARLY_LIMIT:
                    self._early.popitem(last=False)
        if execution is not None and not execution.tripped:
            self.obey(execution, self.store.deliver(task_id, execution_id))

    def untripped(self) -> list[LiveExecution]:
        """The executions that nobody has told to stop."""
        with self._lock:
            return [execution for execution in self._live.values() if not execution.tripped]

    def live_task_ids(self) -> list[str]:
        """The ids that run here."""
        with self._lock:
            return [execution.claim.task_id for execution in self._live.values()]

    def obey(self, execution: LiveExecution, delivery: Delivery) -> None:
        """Do what a delivery says."""
        if delivery.verdict is DeliveryVerdict.DELIVER and delivery.cancellation is not None:
            self._trip(execution, delivery.cancellation)
        elif delivery.verdict is DeliveryVerdict.SUPERSEDED:
            self._trip(execution, Cancellation(Cause.SUPERSEDED, "another execution owns the task id now"))
        elif delivery.verdict is DeliveryVerdict.VANISHED:
            # Data loss or eviction, not a cancellation: what runs is written again.
            self.store.claim(replace(execution.claim, owner=self.owner), runs_already=True)
        elif delivery.verdict is DeliveryVerdict.UNTRACKED:
            logger.warning("the record of task %s cannot be read; left alone", execution.claim.task_id)

    def _adopt(self, execution: LiveExecution) -> None:
        claim = execution.claim
        if self.store.adopt(claim.task_id, claim.execution_id, claim.owner, self.owner):
            execution.claim = replace(claim, owner=self.owner)
        else:
            self._trip(execution, Cancellation(Cause.SUPERSEDED, "another execution owns the task id now"))

    def _trip(self, execution: LiveExecution, cancellation: Cancellation) -> None:
        began = time.monotonic()
        try:
            execution.cancel(cancellation)
        except OSError:
            # Gone, or not reading: Celery will tell of the first, the check tries the second again.
            logger.debug("execution %s cannot be reached", execution.claim.execution_id, exc_info=True)
            return
        execution.tripped = True
        logger.info(
            "task %s[%s] told to stop: %s (%.1f ms)",
            execution.claim.name,
            execution.claim.task_id,
            cancellation.cause,
            (time.monotonic() - began) * 1000,
        )
