"""What a body's process has at hand: a store, the bodies' registry, and a way to the agent."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from celery_canceltoken.settings import Settings
from celery_canceltoken.store.redis_store import RedisStore
from celery_canceltoken.worker.agent import Agent
from celery_canceltoken.worker.bodies import AgentPort, Bodies
from celery_canceltoken.worker.child_link import ChildLink, LinkAddress
from celery_canceltoken.worker.child_signals import TermWatch

__all__ = [
    "Runtime",
    "agent_of",
    "agents_named",
    "announce_to_fresh_children",
    "runtime_of",
    "serve",
    "serve_as_fresh_child",
    "stop_serving",
]

logger = logging.getLogger("celery_canceltoken.worker")

_ENVIRONMENT = "CANCELTOKEN_AGENT"


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
    """One worker, as the agent's process or one of its children serves it."""

    app_id: int
    worker: str
    settings: Settings
    make_store: Callable[[], RedisStore]
    address: LinkAddress | None
    agent: Agent | None
    """In the agent's own process only."""
    runtime: Runtime | None = None
    link: ChildLink | None = None


# Owner: this process. A fork inherits the entries, gives up the agents' descriptors in them (and touches
# nothing else of an agent) and makes runtimes of its own when an execution first asks for one.
_served: list[_Served] = []
# Owner: this process, where it is a pool's child that has run something.
_term_watch: TermWatch | None = None
_lock = threading.Lock()


def serve(app_id: int, agent: Agent, make_store: Callable[[], RedisStore]) -> None:
    """Make *agent* the one for executions of its worker, in this process and in its future children.

    *make_store* makes the store that bodies of a process share. *app_id* tells apps of one process
    apart that have workers of the same name.
    """
    address = agent.link.address if agent.link is not None else None
    runtime = Runtime(agent.worker, agent.settings, make_store(), agent.bodies, agent)
    _served.append(_Served(app_id, agent.worker, agent.settings, make_store, address, agent, runtime))


def stop_serving(agent: Agent) -> None:
    """Take back what `serve` made."""
    for served in list(_served):
        if served.agent is agent:
            _served.remove(served)
            if served.runtime is not None:
                served.runtime.store.close()


def announce_to_fresh_children(agent: Agent) -> None:
    """Leave word for children that are started afresh rather than forked, and inherit nothing else."""
    if agent.link is not None:
        address = agent.link.address
        word = {"worker": agent.worker, "path": address.path, "key": address.key.hex()}
        os.environ[_ENVIRONMENT] = json.dumps(word)


def serve_as_fresh_child(
    app_id: int, settings: Callable[[], Settings], make_store: Callable[[], RedisStore]
) -> None:
    """In a child that was started afresh: find the word that was left. In any other process: do nothing."""
    word = os.environ.get(_ENVIRONMENT)
    if not word or _served:
        return
    fields = json.loads(word)
    address = LinkAddress(fields["path"], bytes.fromhex(fields["key"]))
    _served.append(_Served(app_id, fields["worker"], settings(), make_store, address, agent=None))


def agent_of(app_id: int, worker: str | None) -> Agent | None:
    """Return the agent of a worker if it lives in this very process."""
    served = _find(app_id, worker)
    return served.agent if served is not None else None


def agents_named(worker: str) -> list[Agent]:
    """Return the agents of this process whose worker has that node name."""
    return [served.agent for served in _served if served.agent is not None and served.worker == worker]


def runtime_of(app_id: int, worker: str | None) -> Runtime | None:
    """Return what an execution on *worker* (a node name) needs; None where nobody serves it.

    In a child the first call connects the link.
    """
    served = _find(app_id, worker)
    if served is None:
        return None
    if not _needs_link(served):
        return served.runtime
    with _lock:
        if _needs_link(served):
            served.runtime = _connect(served)
        return served.runtime


def _needs_link(served: _Served) -> bool:
    return served.runtime is None or (served.link is not None and served.link.closed)


def _find(app_id: int, worker: str | None) -> _Served | None:
    # Without its worker optimizations Celery gives a request the host's name instead of the node's, and a
    # child that was started afresh has its app at another address. One candidate is enough in both cases.
    for matches in (
        [one for one in _served if one.app_id == app_id and one.worker == worker],
        [one for one in _served if one.app_id == app_id],
        [one for one in _served if one.worker == worker],
        _served,
    ):
        if len(matches) == 1:
            return matches[0]
    return None


def _connect(served: _Served) -> Runtime | None:
    global _term_watch
    if served.address is None:
        return None
    bodies = Bodies()
    try:
        served.link = ChildLink(served.address, bodies)
    except OSError as error:
        logger.warning("the agent of %s cannot be reached (%s): tasks run untracked", served.worker, error)
        return None
    if _term_watch is None:
        _term_watch = TermWatch()
    _term_watch.watch(bodies, served.link, served.settings.terminate_grace)
    store = served.runtime.store if served.runtime is not None else served.make_store()
    return Runtime(served.worker, served.settings, store, bodies, served.link)


def _forget_after_fork() -> None:
    global _lock, _term_watch
    _term_watch = None
    # Whoever held it in the parent does not exist here.
    _lock = threading.Lock()
    for served in _served:
        if served.link is not None:
            served.link.close()
            served.link = None
        if served.agent is not None and served.agent.link is not None:
            served.agent.link.close_inherited()
        served.agent = None
        served.runtime = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
