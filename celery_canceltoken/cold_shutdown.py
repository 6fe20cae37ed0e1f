"""The moment that every cold shutdown passes, whatever the pool and the signal: Celery's soft shutdown."""

from __future__ import annotations

import time
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state as worker_state

from celery_canceltoken.worker.agent import Agent

__all__ = ["before_soft_shutdown"]

_LOOK = 0.02


def before_soft_shutdown(worker: Any, agent: Agent) -> None:
    """Have bodies told, and given a moment to heed it, before Celery cancels what runs.

    Celery calls `worker.wait_for_soft_shutdown` within its signal handler, and sleeps there for
    `worker_soft_shutdown_timeout`, if there is one, even where nothing is left to wait for.
    """
    celerys_wait = worker.wait_for_soft_shutdown

    def wait() -> None:
        conf = worker.app.conf
        soft = conf.worker_soft_shutdown_timeout or 0.0
        agent.shutdown.begin_shutdown(hurry=soft <= 0)
        # Elsewhere bodies are part of the thread that is in this handler, and go on when it returns.
        apart = isinstance(worker.pool, (PreforkPool, ThreadPool))
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


def _wait_for_bodies(agent: Agent, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while agent.live() and time.monotonic() < deadline:
        time.sleep(_LOOK)


def _has_other_tasks(agent: Agent) -> bool:
    ours = {execution.claim.task_id for execution in agent.live()}
    return any(request.id not in ours for request in tuple(worker_state.active_requests))
