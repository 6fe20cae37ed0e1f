"""Emptying one worker without stopping it: a remote control command of Celery's kind."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery

from celery_canceltoken.worker.runtime import agent_of

__all__ = ["ask_worker", "install"]

_DRAIN, _UNDRAIN = "canceltoken_drain", "canceltoken_undrain"

# The queues that each consumer gave up. Owner: the worker's main process.
_given_up: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


def install() -> None:
    """Teach every worker of this process the two commands. Calling it again changes nothing."""
    from celery.worker.control import Panel, control_command

    if _DRAIN not in Panel.data:
        control_command(name=_DRAIN)(_drain)
        control_command(name=_UNDRAIN)(_undrain)


def ask_worker(app: Celery, worker: str, *, drain: bool, timeout: float) -> bool:
    """Send one worker the command; True if it has answered that it does so."""
    command = _DRAIN if drain else _UNDRAIN
    replies = app.control.broadcast(command, destination=[worker], reply=True, timeout=timeout)
    return any("ok" in answer for reply in replies or () for answer in reply.values())


def _drain(state: Any, **_: Any) -> dict[str, str]:
    """Take no more tasks, and give those that run to other workers."""
    agent, consumer = agent_of(id(state.app), state.hostname), state.consumer
    if agent is None:
        return {"error": "this worker has no cancellable tasks"}
    if agent.takes_work:
        _given_up[consumer] = [queue.name for queue in consumer.task_consumer.queues]
        agent.shutdown.evict()
        for queue in _given_up[consumer]:
            consumer.call_soon(consumer.cancel_task_queue, queue)
        consumer.call_soon(agent.shutdown.close)
    return {"ok": "draining"}


def _undrain(state: Any, **_: Any) -> dict[str, str]:
    """Take tasks again."""
    agent, consumer = agent_of(id(state.app), state.hostname), state.consumer
    if agent is None or consumer not in _given_up:
        return {"error": "this worker was not drained"}
    agent.shutdown.resume()
    for queue in _given_up.pop(consumer):
        consumer.call_soon(consumer.add_task_queue, queue)
    return {"ok": "taking tasks"}
