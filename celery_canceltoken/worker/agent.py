"""The agent: one per worker, in its main process. It knows what runs here and trips what is to stop."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending, ResultFate, Verdict, rows
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store.agent_store import AgentStore
from celery_canceltoken.store.answers import (
    Claim,
    ClaimVerdict,
    Delivery,
    DeliveryVerdict,
    Ended,
    Finish,
    Recovery,
)
from celery_canceltoken.worker.bodies import Bodies
from celery_canceltoken.worker.celery_port import CeleryPort
from celery_canceltoken.worker.drops import Dropped
from celery_canceltoken.worker.inbox import Inbox
from celery_canceltoken.worker.keeper import Keeper
from celery_canceltoken.worker.link import LinkServer
from celery_canceltoken.worker.service import Service
from celery_canceltoken.worker.shutdown import Phase, Shutdown
from celery_canceltoken.worker.world import world_of_this_process

__all__ = ["Agent", "LiveExecution"]

logger = logging.getLogger("celery_canceltoken.worker")

_EARLY_LIMIT = 1000
_REVOKED_LIMIT = 10_000
_STOP_TIMEOUT = 3.0
_TERMINATED = Cancellation(Cause.REVOKED, "terminated")
_SUPERSEDED = Cancellation(Cause.SUPERSEDED, "another execution owns the task id now")


@dataclass
class LiveExecution:
    """An execution that runs in this worker."""

    claim: Claim
    generation: int
    attempt: int
    cancel: Callable[[Cancellation], None]
    """Reaches the token, in this process or a child; raises OSError where the child is gone."""
    kill: Callable[[], None] | None = None
    """Ends the child that it runs in, at once; None where there is no child."""
    tripped: bool = False
    told_at: float | None = None
    """When its token was tripped, on the monotonic clock."""
    next_complaint: float = 10.0
    """Seconds after that at which the log names it."""


class Agent:
    """What runs in this worker, and the services that look after it.

    Owner: the worker. It is made before the pool forks, started with the worker, and stopped
    after the pool has been joined, so that heartbeats and cancellations go on while bodies drain.
    `started`, `observed`, `ended` and `abandoned` may be called from any thread or greenlet and
    never wait: what is shared between them and the services is three dicts, and the keeper's mail.
    The same goes for `cancel`, `dropped` and `runs`. A forked child never touches it.

    *make_store* makes one store for each service: a connection cannot be shared by two threads
    under gevent and eventlet. *children* tells whether bodies run in child processes. *later* has
    Celery's worker do something after so many seconds, where it does all it does itself.
    """

    def __init__(
        self,
        make_store: Callable[[], AgentStore],
        settings: Settings,
        worker: str,
        *,
        celery: CeleryPort,
        broker: str,
        children: bool,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self.make_store = make_store
        self.settings = settings
        self.worker = worker
        self.broker = broker
        self.later = later
        self._id = uuid.uuid4().hex
        self._incarnation = 1
        self._live: dict[str, LiveExecution] = {}
        # Wake-ups that overtook the registration of the execution they name.
        self._early: dict[str, None] = {}
        # Task ids that Celery was told to revoke, for executions that are still on their way here.
        self._revoked: dict[str, Cancellation] = {}
        self.world = world_of_this_process()
        self.bodies = Bodies(self.world)
        self.link = LinkServer(self) if children else None
        self.celery = celery
        self._keeper = Keeper(self)
        self.shutdown = Shutdown(self)
        self._last_words: list[Callable[[], None]] | None = None
        self._services: list[Service] = [self._keeper, Inbox(self), self.shutdown]
        if self.link is not None:
            self._services.append(self.link)

    @property
    def owner(self) -> str:
        """Whom executions of this worker are claimed for."""
        return f"{self._id}.{self._incarnation}"

    @property
    def takes_work(self) -> bool:
        """False: no body is to start here any more."""
        return self.shutdown.phase is Phase.RUNNING

    @property
    def is_closed(self) -> bool:
        """True: the worker takes no messages any more."""
        return self.shutdown.is_closed

    # -- life

    def start(self) -> None:
        """Start all services. The store need not be reachable yet."""
        self.world.start()
        for service in self._services:
            service.start()

    def stop(self) -> None:
        """Settle what has ended, give up the lease, end all threads. Seconds at most.

        Whatever has not ended by now ends with its process.
        """
        self._last_words = []
        self.end_all()
        for service in self._services:
            service.stop()
        for service in self._services:
            service.join(_STOP_TIMEOUT)
        for say in self._last_words:
            say()
        self.world.stop()
        if self.link is not None:
            self.link.close()

    def end_all(self) -> None:
        """The bodies that still run are about to end with their processes."""
        for execution in self.live():
            self.evict(execution)
        if self.link is not None:
            self.link.kill_children()

    def renew(self, store: AgentStore) -> None:
        """The lease had lapsed: go on as a new incarnation, and keep what nobody has taken meanwhile."""
        old = self.owner
        self._incarnation += 1
        store.announce(self.owner)
        if self.link is not None:
            self.link.broadcast_owner()
        self.adopt_all(store)
        store.forget_owner(old)
        logger.warning("the lease of this worker had lapsed; it goes on as %s", self.owner)

    def adopt_all(self, store: AgentStore) -> None:
        """Move what still runs under an earlier incarnation to the current one; mostly there is nothing."""
        for execution in self.live():
            if execution.claim.owner != self.owner and not execution.tripped:
                self._adopt(execution, store)

    # -- what bodies tell

    def started(
        self,
        claim: Claim,
        generation: int,
        attempt: int,
        cancel: Callable[[Cancellation], None] | None = None,
        kill: Callable[[], None] | None = None,
    ) -> None:
        """Register an execution; without *cancel* its body runs in this process."""
        execution_id = claim.execution_id
        execution = LiveExecution(
            claim,
            generation,
            attempt,
            cancel or (lambda cancellation: self.bodies.cancel(execution_id, cancellation)),
            kill,
        )
        # First this, then the look at the early ones; `wanted` does it the other way round. So one of the
        # two sees the other.
        self._live[execution_id] = execution
        if execution_id in self._early:
            del self._early[execution_id]
            self.check_now()
        # The same with `cancel`, and with a shutdown.
        cancellation = self._revoked.get(claim.task_id)
        if cancellation is not None:
            self.trip(execution, cancellation)
        if not self.takes_work:
            self.shutdown.look()
        if claim.owner != self.owner:
            self._keeper.post(lambda: self._adopt(execution, self._keeper.store))

    def observed(self, execution_id: str, at: float) -> None:
        """The body has seen that it is to stop, at a time of the monotonic clock."""
        execution = self._live.get(execution_id)
        if execution is not None:
            task_id = execution.claim.task_id
            self._keeper.post(
                lambda: self._keeper.store.observe(task_id, execution_id, time.monotonic() - at)
            )

    def published(self, task_id: str, generation: int) -> None:
        """The message of a task that goes back to its queue is with the broker."""
        self._keeper.post(lambda: self._keeper.store.published(task_id, generation))

    def ended(self, ended: Ended, owed: Finish | None) -> None:
        """The execution is over and Celery's result is written."""
        execution = self._live.pop(ended.execution_id, None)
        self.settle(ended, owed, urgent=execution is None or execution.tripped)

    def abandoned(self, task_id: str, send: str, generation: int, ending: Ending) -> None:
        """Celery says how an execution ended whose body cannot say so any more (its child is gone).

        *send* and *generation* are its message's: it takes Celery seconds to notice, and by then the
        next generation may run here.
        """
        for execution in self.executions_of(task_id):
            if (execution.claim.send, execution.claim.generation) != (send, generation):
                continue
            if not self.takes_work and ending in (Ending.CHILD_LOST, Ending.CHILD_LOST_BACK):
                self.evict(execution, celery_tells=True)
            else:
                cancellation = _TERMINATED if ending is Ending.TERMINATED else None
                self._end_without_body(execution, ending, cancellation)

    def evict(self, execution: LiveExecution, *, celery_tells: bool = False) -> None:
        """The worker stops, and the execution has not ended: it goes back, if its policy is that.

        *celery_tells*: Celery has noticed that it is gone, and will write the result of what is lost.
        """
        claim = execution.claim
        if claim.shutdown_policy == "ignore" or claim.unkept:
            # As Celery does: the broker brings it again if it was not acknowledged, else it is lost.
            ending = Ending.CHILD_LOST_BACK if claim.late_ack else Ending.CHILD_LOST
            self._end_without_body(execution, ending, None, untold=not celery_tells)
        else:
            cancellation = Cancellation(Cause.SHUTDOWN, "its worker is gone")
            self._end_without_body(execution, Ending.EVICTED, cancellation)

    def executions_of(self, task_id: str) -> list[LiveExecution]:
        """The executions of an id that run here."""
        return [execution for execution in self.live() if execution.claim.task_id == task_id]

    def _end_without_body(
        self,
        execution: LiveExecution,
        ending: Ending,
        cancellation: Cancellation | None,
        *,
        untold: bool = False,
    ) -> None:
        claim = execution.claim
        if self._live.pop(claim.execution_id, None) is None:
            return
        # Terminated it is whatever else was asked; stopped it is for a reason.
        cause = cancellation.cause if cancellation is not None and ending is Ending.EVICTED else None
        verdicts = rows(ending, cause, observed=False, disregarded=False, policy=claim.shutdown_policy)
        if untold:
            verdicts = {kind: _told_by_us(verdict) for kind, verdict in verdicts.items()}
        finish = Finish(
            claim=claim,
            generation=execution.generation,
            attempt=execution.attempt,
            rows=verdicts,
            cancellation=cancellation,
            error=ending.value,
            bodiless=True,
        )
        self.settle(Ended(claim.execution_id, claim.task_id, keep=claim.keep), finish, urgent=True)

    def settle(self, ended: Ended, owed: Finish | None, *, urgent: bool) -> None:
        """Have an outcome made final by the keeper."""
        self._keeper.post(lambda: self._keeper.settler.add(ended, owed, urgent=urgent))

    def later_in_bodies_world(self, seconds: float, call: Callable[[], None]) -> None:
        """Do something where bodies run, without Celery's timer, which may have ended by then."""

        def wait_and_call() -> None:
            time.sleep(seconds)
            call()

        self.world.spawn(wait_and_call)

    def check_now(self) -> None:
        """Have the check done without waiting for its interval."""
        self._keeper.post(lambda: self._keeper.check.hasten())

    # -- what Celery tells

    def cancel(self, task_id: str, cancellation: Cancellation) -> list[LiveExecution]:
        """Trip the tokens of a task id, those of executions to come included. Returns the live ones.

        It needs no store. The id is remembered, as Celery remembers what it was told to revoke: an
        execution may have passed Celery's own look at that, and not be registered here yet.
        """
        self._revoked[task_id] = cancellation
        if len(self._revoked) > 2 * _REVOKED_LIMIT:
            for old in list(self._revoked)[:-_REVOKED_LIMIT]:
                self._revoked.pop(old, None)
        executions = self.executions_of(task_id)
        for execution in executions:
            if not execution.tripped:
                self.trip(execution, cancellation)
        return executions

    def dropped(self, dropped: Dropped) -> None:
        """Celery has discarded a message before its body could claim: have the record agree."""
        self._keeper.post(lambda: self._keeper.drops.add(dropped))

    def runs(self, execution: LiveExecution) -> bool:
        """Tell whether an execution has not ended yet."""
        return execution.claim.execution_id in self._live

    # -- what Celery is to do

    def complete(self, recovery: Recovery) -> None:
        """Have the Celery result written that a lost body left unwritten, then settle."""

        def write() -> None:
            try:
                self.celery.complete(recovery)
            except Exception:
                # FINISHING it stays, as this agent's: whoever comes after it will try again.
                logger.exception("the result of task %s could not be written", recovery.task_id)
                return
            self.settle(Ended(recovery.execution_id, recovery.task_id), None, urgent=True)

        self._in_bodies_world(write)

    def send_again(self, task_id: str) -> None:
        """Have a message published that waits in the outbox."""

        def publish() -> None:
            try:
                self.celery.send_again(task_id)
            except Exception:
                # In the outbox it stays: some agent will try again.
                logger.exception("task %s could not be sent back to its queue yet", task_id)

        self._in_bodies_world(publish)

    def _in_bodies_world(self, work: Callable[[], None]) -> None:
        # Celery's backend and broker may try for long, and belong to the bodies' world.
        if self._last_words is not None:
            self._last_words.append(work)
        else:
            self.world.spawn(work)

    # -- what the store tells

    def wanted(self, execution_id: str, store: AgentStore) -> None:
        """Somebody has asked something of an execution: find out what, and trip its token."""
        self._early[execution_id] = None
        execution = self._live.get(execution_id)
        if execution is None:
            while len(self._early) > _EARLY_LIMIT:
                self._early.pop(next(iter(self._early)), None)
            return
        self._early.pop(execution_id, None)
        if not execution.tripped:
            self.obey(execution, store.deliver(execution.claim.task_id, execution_id), store)

    def live(self) -> list[LiveExecution]:
        """The executions that run here."""
        return list(self._live.copy().values())

    def obey(self, execution: LiveExecution, delivery: Delivery, store: AgentStore) -> None:
        """Do what a delivery says."""
        if delivery.verdict is DeliveryVerdict.DELIVER and delivery.cancellation is not None:
            self.trip(execution, delivery.cancellation)
        elif delivery.verdict is DeliveryVerdict.SUPERSEDED:
            self.trip(execution, _SUPERSEDED)
        elif delivery.verdict is DeliveryVerdict.VANISHED:
            self._write_again(execution, store)
        elif delivery.verdict is DeliveryVerdict.UNTRACKED:
            logger.warning("the record of task %s cannot be read; left alone", execution.claim.task_id)

    def _write_again(self, execution: LiveExecution, store: AgentStore) -> None:
        # Data loss, eviction, an outage at its start: no cancellation, unless another has the id now.
        claim = replace(execution.claim, owner=self.owner, generation=execution.generation)
        answer = store.claim(claim, running_attempt=execution.attempt)
        # A skip without a send may be a later life as well as an earlier one: rather let it run.
        overtaken = answer.verdict is ClaimVerdict.SKIP and claim.send
        if overtaken or answer.verdict is ClaimVerdict.OWNED:
            self.trip(execution, _SUPERSEDED)

    def _adopt(self, execution: LiveExecution, store: AgentStore) -> None:
        claim = execution.claim
        if store.adopt(claim.task_id, claim.execution_id, claim.owner, self.owner):
            execution.claim = replace(claim, owner=self.owner)
        else:
            self.trip(execution, _SUPERSEDED)

    def trip(self, execution: LiveExecution, cancellation: Cancellation) -> None:
        """Tell a body to stop."""
        try:
            execution.cancel(cancellation)
        except OSError:
            # Gone, or not reading: Celery will tell of the first, the check tries the second again.
            logger.debug("execution %s cannot be reached", execution.claim.execution_id, exc_info=True)
            return
        execution.tripped = True
        execution.told_at = time.monotonic()
        claim = execution.claim
        logger.info("task %s[%s] told to stop: %s", claim.name, claim.task_id, cancellation.cause)


def _told_by_us(verdict: Verdict) -> Verdict:
    fails = verdict.state is State.FAILED and verdict.result is ResultFate.CELERY
    return replace(verdict, result=ResultFate.SHUT_DOWN) if fails else verdict
