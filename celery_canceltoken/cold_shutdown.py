"""The moment that every cold shutdown passes, whatever the pool and the signal: Celery's soft shutdown."""

from __future__ import annotations

import time
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state as worker_state
from kombu.common import ignore_errors

from celery_canceltoken.worker.agent import Agent

__all__ = ["before_soft_shutdown"]

_LOOK = 0.02


def before_soft_shutdown(worker: Any, agent: Agent) -> None:
    """Have bodies told, and given a moment to heed it, before Celery cancels what runs.

    Celery calls `worker.wait_for_soft_shutdown` within its signal handler, and sleeps there for
    `worker_soft_shutdown_timeout`, if there is one, even where nothing is left to wait for.
    """
    celerys_wait = worker.wait_for_soft_shutdown
    celerys_terminate = worker.terminate
    put_off: list[Any] = []
    had_their_time = False

    def wait() -> None:
        if worker.pool.is_green and not put_off:
            soft = worker.app.conf.worker_soft_shutdown_timeout or 0.0
            agent.shutdown.begin_shutdown(hurry=soft <= 0)
            put_off.append(worker.consumer)
            worker.consumer = _NothingToStop()
        elif not worker.pool.is_green:
            wait_here()

    def terminate(*args: Any, **options: Any) -> None:
        if put_off:
            worker.consumer = put_off[0]
            # What has been prefetched is still handed over, and goes back at once.
            agent.shutdown.close()
            _take_no_messages(worker.consumer)
            wait_here()
            _stop_as_celery_does(worker)
        elif not had_their_time:
            # No signal: a worker within another program is stopped like that.
            wait_here()
        celerys_terminate(*args, **options)

    def wait_here() -> None:
        nonlocal had_their_time
        had_their_time = True
        conf = worker.app.conf
        soft = conf.worker_soft_shutdown_timeout or 0.0
        agent.shutdown.begin_shutdown(hurry=soft <= 0)
        # Elsewhere bodies are part of the thread that is in this handler, and go on when it returns.
        apart = isinstance(worker.pool, (PreforkPool, ThreadPool)) or worker.pool.is_green
        if conf.worker_enable_soft_shutdown_on_idle or _has_other_tasks(agent):
            celerys_wait()
        elif apart:
            _wait_for_bodies(agent, soft)
        agent.shutdown.begin_shutdown(hurry=True)
        if apart:
            _wait_for_bodies(agent, agent.settings.terminate_grace)
        # Celery takes no messages from here on.
        agent.shutdown.close()

    worker.wait_for_soft_shutdown = wait
    worker.terminate = terminate


class _NothingToStop:
    """What Celery's signal handler finds in place of the consumer where bodies are greenlets.

    A handler runs in whichever greenlet the signal comes upon: in the middle of a body, or in the hub.
    What Celery does there blocks: the hub refuses that, and in a body it waits for the body itself (gevent)
    or raises in it (eventlet). So it is done by the worker's own greenlet, a moment later.
    """

    connection = task_consumer = None

    @property
    def pool(self) -> _NothingToStop:
        """Celery 5.5 takes it for granted that there is one."""
        return self

    def stop(self) -> None:
        """Not here."""

    cancel_active_requests = cancel_all_unacked_requests = stop


def _take_no_messages(consumer: Any) -> None:
    if consumer.task_consumer:
        ignore_errors(consumer, consumer.task_consumer.cancel)


def _stop_as_celery_does(worker: Any) -> None:
    consumer = worker.consumer
    cancel = getattr(consumer, "cancel_active_requests", None) or consumer.cancel_all_unacked_requests
    cancel()
    worker.pool.stop()


def _wait_for_bodies(agent: Agent, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while agent.live() and time.monotonic() < deadline:
        time.sleep(_LOOK)


def _has_other_tasks(agent: Agent) -> bool:
    ours = {execution.claim.task_id for execution in agent.live()}
    return any(request.id not in ours for request in tuple(worker_state.active_requests))
