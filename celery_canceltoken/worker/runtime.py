"""What a body's process has at hand: a store, the bodies' registry, and a way to the agent."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from celery_canceltoken.settings import Settings
from celery_canceltoken.store.redis_store import RedisStore
from celery_canceltoken.worker.agent import Agent
from celery_canceltoken.worker.bodies import AgentPort, Bodies
from celery_canceltoken.worker.child_link import ChildLink

__all__ = ["Runtime", "agent_of", "runtime_of", "serve", "stop_serving"]

logger = logging.getLogger("celery_canceltoken.worker")


@dataclass(frozen=True)
class Runtime:
    """Everything an execution needs of its worker."""

    worker: str
    settings: Settings
    store: RedisStore
    bodies: Bodies
    port: AgentPort


@dataclass
class _Served:
    """One worker, as this process or its parent serves it."""

    agent: Agent
    make_store: Callable[[], RedisStore]
    runtime: Runtime | None
    link: ChildLink | None = None


# Owner: this process. A fork inherits the entries, gives up the agents' descriptors in them (and touches
# nothing else of an agent) and makes runtimes of its own when an execution first asks for one.
_served: dict[str, _Served] = {}
_lock = threading.Lock()


def serve(agent: Agent, make_store: Callable[[], RedisStore]) -> None:
    """Make *agent* the one for executions of its worker, in this process and in its future children.

    *make_store* makes the store that bodies of a process share.
    """
    with _lock:
        runtime = Runtime(agent.worker, agent.settings, make_store(), agent.bodies, agent)
        _served[agent.worker] = _Served(agent, make_store, runtime)


def stop_serving(agent: Agent) -> None:
    """Take back what `serve` made."""
    with _lock:
        served = _served.get(agent.worker)
        if served is None or served.agent is not agent:
            return
        del _served[agent.worker]
        if served.runtime is not None:
            served.runtime.store.close()


def agent_of(worker: str | None) -> Agent | None:
    """Return the agent of *worker* if it lives in this very process."""
    served = _find(worker)
    return served.agent if served is not None and served.link is None else None


def runtime_of(worker: str | None) -> Runtime | None:
    """Return what an execution on *worker* (a node name) needs; None where nobody serves it.

    In a child the first call connects the link.
    """
    served = _find(worker)
    if served is None:
        return None
    if served.runtime is not None and not (served.link and served.link.closed):
        return served.runtime
    with _lock:
        if served.runtime is None or (served.link and served.link.closed):
            served.runtime = _connect(served)
        return served.runtime


def _find(worker: str | None) -> _Served | None:
    served = _served.get(worker or "")
    if served is None and len(_served) == 1:
        # Without its worker optimizations Celery gives a request the host's name instead of the node's.
        (served,) = list(_served.values())
    return served


def _connect(served: _Served) -> Runtime | None:
    bodies, worker = Bodies(), served.agent.worker
    if served.agent.link is None:
        return None
    address = served.agent.link.address
    try:
        served.link = ChildLink(address.path, address.key, bodies)
    except OSError as error:
        logger.warning("the agent of %s cannot be reached (%s); its tasks run untracked", worker, error)
        return None
    store = served.runtime.store if served.runtime else served.make_store()
    return Runtime(worker, served.agent.settings, store, bodies, served.link)


def _forget_after_fork() -> None:
    global _lock
    # Whoever held it in the parent does not exist here.
    _lock = threading.Lock()
    for served in _served.values():
        if served.link is not None:
            served.link.close()
            served.link = None
        elif served.agent.link is not None:
            served.agent.link.close_inherited()
        served.runtime = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
