"""The moment that every cold shutdown passes, whatever the pool and the signal: Celery's soft shutdown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from celery.bootsteps import RUN  # type: ignore[attr-defined]
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
    put_off = False
    had_their_time = False

    def wait() -> None:
        nonlocal put_off
        soft = worker.app.conf.worker_soft_shutdown_timeout or 0.0
        agent.shutdown.begin_shutdown(hurry=soft <= 0)
        if isinstance(worker.consumer, _NothingToStop):
            return
        if not _is_stopping(worker):
            put_off = True
        elif worker.pool.is_green:
            # The worker's own greenlet waits for its bodies by now, and has no ear for this.
            agent.world.spawn(_canceller(worker.consumer))
        else:
            wait_here()
            return
        worker.consumer = _NothingToStop(worker.consumer)

    def terminate(*args: Any, **options: Any) -> None:
        if isinstance(worker.consumer, _NothingToStop):
            worker.consumer = worker.consumer.stands_for
        if put_off:
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
        if conf.worker_enable_soft_shutdown_on_idle or _has_other_tasks():
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
    """What Celery's signal handler finds in place of the consumer.

    A signal comes upon the main thread in the middle of anything. Celery's handler cancels the consumer
    there: with AMQP it waits for ever if what it interrupts is an acknowledgement, whose lock it wants. It
    waits for the pool there: where bodies are greenlets it may be in a body, and waits for itself (gevent)
    or raises in the body (eventlet), or in the hub, which refuses to wait. So all of that is done by the
    worker's own loop, a moment later.
    """

    connection = task_consumer = None

    def __init__(self, stands_for: Any) -> None:
        self.stands_for = stands_for

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
    _canceller(worker.consumer)()
    worker.pool.stop()


def _canceller(consumer: Any) -> Callable[[], None]:
    # Celery 5.5 has another name for it.
    cancel = getattr(consumer, "cancel_active_requests", None) or consumer.cancel_all_unacked_requests
    return cast("Callable[[], None]", cancel)


def _is_stopping(worker: Any) -> bool:
    # An exit code, which may be 0, once it is to stop.
    should_stop: Any = worker_state.should_stop
    told = should_stop is not None and should_stop is not False
    return told or bool(worker.blueprint.state != RUN)


def _wait_for_bodies(agent: Agent, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while agent.live() and time.monotonic() < deadline:
        time.sleep(_LOOK)


def _has_other_tasks() -> bool:
    # Not even those of ours that the agent does not know: they have not begun, and wait to be given back.
    active = tuple(worker_state.active_requests)
    return any(not hasattr(request.task, "token_parameter") for request in active)
