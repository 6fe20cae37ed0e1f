"""Where Celery's worker calls us: the agent starts with the worker and stops after its pool."""

from __future__ import annotations

import logging
from typing import Any

from billiard import get_start_method
from celery import bootsteps, current_app, signals
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.worker import state as worker_state

from celery_canceltoken import draining
from celery_canceltoken.cold_shutdown import before_soft_shutdown
from celery_canceltoken.configuration import (
    agent_store,
    body_store,
    broker_of,
    client_store,
    settings_of,
)
from celery_canceltoken.errors import SettingsError
from celery_canceltoken.publishing import send_again
from celery_canceltoken.results import complete
from celery_canceltoken.store.answers import Recovery
from celery_canceltoken.worker.agent import Agent
from celery_canceltoken.worker.runtime import (
    agents_named,
    announce_to_fresh_children,
    serve,
    serve_as_fresh_child,
    stop_serving,
)

__all__ = ["AgentStep", "install"]

logger = logging.getLogger("celery_canceltoken.worker")


class _CeleryOf:
    """An agent's port to the Celery of its worker."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def was_told_to_stop(self) -> bool:
        """Celery's own flags: the loop that looks at them may be held up by a body."""
        told: tuple[Any, Any] = (worker_state.should_stop, worker_state.should_terminate)
        return any(flag is not None and flag is not False for flag in told)

    def complete(self, recovery: Recovery) -> None:
        """Write the Celery result that a lost worker left unwritten."""
        complete(self._app, recovery)

    def send_again(self, task_id: str) -> None:
        """Publish the message of *task_id* that waits in the outbox, if one does."""
        send_again(self._app, client_store(self._app), task_id)


class AgentStep(bootsteps.StartStopStep):
    """The agent's place in the worker.

    It is made before any step starts, so that children inherit the way to it, and started after
    the pool, so that its first threads find the first children forked. It is not stopped in the
    order of steps but after the last of them: revokes and heartbeats have to go on while the pool
    waits for its bodies.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        app = worker.app
        self._agent: Agent | None = None
        try:
            settings_of(app)
        except SettingsError:
            if _has_cancellable_tasks(app):
                raise
            # This worker may well have nothing to do with us.
            logger.debug("no agent for an app without cancellable tasks", exc_info=True)
            return
        agent = Agent(
            lambda: agent_store(app),
            settings_of(app),
            worker.hostname,
            celery=_CeleryOf(app),
            broker=broker_of(app),
            children=issubclass(worker.pool_cls, PreforkPool),
            later=lambda seconds, call: worker.timer.call_after(seconds, call),
        )
        serve(id(app), agent, lambda: body_store(app))
        if getattr(worker, "pool_start_method", "fork") != "fork" or get_start_method() != "fork":
            announce_to_fresh_children(agent)
        self._agent = agent
        self._stop_after(worker, agent)
        before_soft_shutdown(worker, agent)

    def create(self, worker: Any) -> Any:
        """Nothing to create: it was made in time."""

    def start(self, worker: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Start the agent's threads."""
        if self._agent is not None:
            self._agent.start()

    def close(self, worker: Any) -> None:  # noqa: ARG002 - Celery's signature
        """The worker stops, warm or cold, and however it was told to: it takes no messages any more."""
        if self._agent is not None:
            self._agent.shutdown.begin_shutdown()
            self._agent.shutdown.close()

    def terminate(self, worker: Any) -> None:  # noqa: ARG002 - Celery's signature
        """The pool is about to be killed: what has not ended yet goes back to its queue."""
        if self._agent is not None:
            self._agent.end_all()

    def _stop_after(self, worker: Any, agent: Agent) -> None:
        on_stopped = worker.blueprint.on_stopped

        def stop() -> None:
            try:
                if on_stopped is not None:
                    on_stopped()
            finally:
                stop_serving(agent)
                agent.stop()

        worker.blueprint.on_stopped = stop


def install() -> None:
    """Have every worker of this process take an agent along. Calling it again changes nothing."""
    signals.worker_init.connect(_on_worker_init, dispatch_uid="celery_canceltoken")
    signals.worker_process_init.connect(_on_worker_process_init, dispatch_uid="celery_canceltoken")
    signals.worker_shutting_down.connect(_on_worker_shutting_down, dispatch_uid="celery_canceltoken")


def _on_worker_init(sender: Any, **_: Any) -> None:
    # An exception here would only be logged by Celery: the step raises, and the worker does not start.
    sender.app.steps["worker"].add(AgentStep)
    draining.install()


def _on_worker_process_init(**_: Any) -> None:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    serve_as_fresh_child(id(app), lambda: settings_of(app), lambda: body_store(app))


def _on_worker_shutting_down(sender: Any = None, how: str = "", **_: Any) -> None:
    # Within a signal handler. All agents of the process with that name: the signal ends the process.
    for agent in agents_named(sender):
        agent.shutdown.begin_shutdown(hurry=how == "Cold")


def _has_cancellable_tasks(app: Any) -> bool:
    return any(hasattr(task, "token_parameter") for task in app.tasks.values())
