"""The parent's view of a running task: what only the worker's main process can say or learn."""

from __future__ import annotations

import logging
import uuid
from signal import SIGKILL, SIGTERM
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import Terminated, WorkerLostError
from celery.platforms import signals as signals_by_name
from celery.worker import state as worker_state
from celery.worker.request import Request

from celery_canceltoken.outcome import Ending
from celery_canceltoken.store.answers import Claim
from celery_canceltoken.task import wire
from celery_canceltoken.task.celery_revoke import EXPIRED, REVOKED, TERMINATED
from celery_canceltoken.task.endings import Revoked
from celery_canceltoken.task.stamp import Stamp
from celery_canceltoken.worker.agent import Agent, LiveExecution
from celery_canceltoken.worker.drops import Dropped
from celery_canceltoken.worker.runtime import agent_of

__all__ = ["CancellableRequest"]

logger = logging.getLogger("celery_canceltoken.worker")

# How Celery puts it, in one release or the other, that a child is gone.
_LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)


class CancellableRequest(Request):
    """Celery's request, which also announces revocations and hears of children that are gone."""

    _already_revoked: bool
    """Celery's: it has told everybody that the task is revoked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        wire.attach(self)

    def revoked(self) -> bool:
        """Celery's look before it starts a task: where it drops the message, our record follows."""
        told_before = self._already_revoked
        dropped = bool(super().revoked())
        if dropped and not told_before:
            self._note_drop()
        return dropped

    def _note_drop(self) -> None:
        agent = self._agent()
        if agent is None:
            return
        context = self._context  # type: ignore[attr-defined]
        stamp, message = Stamp.of(context.headers), wire.kept_message(context)
        keeping = wire.keeping(message, self.task, agent.settings)
        claim = Claim(
            task_id=self.id,
            execution_id=uuid.uuid4().hex,
            owner=agent.owner,
            worker=agent.worker,
            send=stamp.send,
            generation=stamp.generation,
            redelivered=bool(self.delivery_info.get("redelivered")),
            name=self.name,
            takes_token=getattr(self.task, "token_parameter", None) is not None,
            late_ack=bool(self.task.acks_late),
            queue=str(self.delivery_info.get("routing_key") or ""),
            root=self.root_id if isinstance(self.root_id, str) else "",
            stamps=message.stamps if message is not None else {},
            keep=keeping.policy,
            unkept=keeping.why_not,
            broker=agent.broker,
        )
        cancellation = EXPIRED if self.expires and self.maybe_expire() else REVOKED
        agent.dropped(Dropped(claim, keeping.text, cancellation))

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Celery's `terminate=True`: a body is asked by its token first, and killed after the grace.

        What the pool has not accepted is Celery's. Where the pool cannot terminate, the token is all
        there is.
        """
        agent = self._agent()
        executions = agent.cancel(self.id, TERMINATED) if agent is not None else []
        if agent is not None and not _can_terminate(pool):
            logger.warning(
                "task %s[%s] is told to stop but cannot be terminated: the pool has no way to do that",
                self.name,
                self.id,
            )
        elif agent is None or not self.time_start or not agent.settings.terminate_grace:
            self._terminate_now(executions, pool, signal)
        else:
            # Nothing that runs may also mean that the body has ended just now, and Celery is to hear of it.
            agent.later(
                agent.settings.terminate_grace,
                lambda: self._terminate_unheeding(agent, executions, pool, signal),
            )

    def _terminate_unheeding(
        self, agent: Agent, executions: list[LiveExecution], pool: Any, signal: Any
    ) -> None:
        ended = executions and not any(agent.runs(execution) for execution in executions)
        if self in worker_state.active_requests and not ended:
            logger.warning(
                "task %s[%s] did not stop within %s s of being told to: terminated",
                self.name,
                self.id,
                agent.settings.terminate_grace,
            )
            self._terminate_now(executions, pool, signal)

    def _terminate_now(self, executions: list[LiveExecution], pool: Any, signal: Any) -> None:
        super().terminate(pool, signal)
        self._note_termination(pool)
        if signals_by_name.signum(signal or "SIGTERM") == SIGTERM:
            for execution in executions:
                # That signal alone has a child of ours wind down.
                if execution.kill is not None:
                    execution.kill()

    def _note_termination(self, pool: Any) -> None:
        # A child's end is reported in time. Of a greenlet that was killed Celery hears nothing but "done".
        if pool.is_green and self._already_revoked:
            self._abandoned(Ending.TERMINATED)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Celery's cold shutdown ends what runs: of ours, what has not heeded its token by now."""
        agent = self._agent()
        if agent is None:
            super().cancel(pool, signal, emit_retry=emit_retry)
            return
        executions = agent.executions_of(self.id)
        if not executions:
            # It has ended, and its result is on the way; or it has not begun, and is given back.
            return
        if pool.is_green:
            agent.later_in_bodies_world(
                agent.settings.terminate_grace, lambda: self._kill_greenlet(agent, pool)
            )
        elif _can_terminate(pool):
            logger.warning("task %s[%s] has not stopped in time: its process is killed", self.name, self.id)
            for execution in executions:
                agent.evict(execution)
            pool.terminate_job(self.worker_pid, SIGKILL)
            worker_state.task_ready(self)
            self._already_cancelled = True

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A task ended with an exception, or its child did."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, Revoked):
            self._announce_cooperative_end()
        elif isinstance(error, Terminated) or (self._already_revoked and isinstance(error, _LOST)):
            self._abandoned(Ending.TERMINATED)
        elif isinstance(error, _LOST) and self._is_evicted():
            # Its message goes back to its queue: nobody is to hear of a failure.
            worker_state.task_ready(self)
            self.acknowledge()
            return None
        elif isinstance(error, _LOST):
            comes_back = (self.task.acks_late and self.task.reject_on_worker_lost) or getattr(
                self.task, "retry_on_worker_lost", False
            )
            self._abandoned(Ending.CHILD_LOST_BACK if comes_back else Ending.CHILD_LOST)
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """A time limit has passed; after the hard one the child is gone."""
        if not soft:
            comes_back = self.task.acks_late and not getattr(self.task, "acks_on_timeout", True)
            self._abandoned(Ending.CHILD_LOST_BACK if comes_back else Ending.TIME_LIMIT)
        return super().on_timeout(soft, timeout)

    def _announce_cooperative_end(self) -> None:
        if self._already_revoked:
            # The body heeded just when its grace was over, and Celery has told everybody.
            return
        facts = {"terminated": False, "signum": None, "expired": False}
        self.send_event("task-revoked", **facts)
        signals.task_revoked.send(sender=self.task, request=self._context, **facts)  # type: ignore[attr-defined]

    def _abandoned(self, ending: Ending) -> None:
        agent = self._agent()
        if agent is not None:
            stamp = Stamp.of(self._context.headers)  # type: ignore[attr-defined]
            agent.abandoned(self.id, stamp.send, stamp.generation, ending)

    def _is_evicted(self) -> bool:
        agent = self._agent()
        if agent is None or agent.takes_work:
            return False
        claims = [execution.claim for execution in agent.executions_of(self.id)]
        if not any(claim.shutdown_policy == "requeue" and not claim.unkept for claim in claims):
            return False
        self._abandoned(Ending.CHILD_LOST)
        return True

    def _kill_greenlet(self, agent: Agent, pool: Any) -> None:
        for execution in agent.executions_of(self.id):
            logger.warning("task %s[%s] has not stopped in time: killed", self.name, self.id)
            agent.evict(execution)
            pool.terminate_job(self.worker_pid)

    def _agent(self) -> Agent | None:
        return agent_of(id(self.app), self.hostname)


def _can_terminate(pool: Any) -> bool:
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job
