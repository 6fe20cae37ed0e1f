"""Celery's `terminate=True` on one of our requests: who is killed, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.base import BasePool
from celery.worker import state as worker_state
from celery.worker.request import Request

from celery_canceltoken.task.request import CancellableRequest


class Pool(BasePool):
    """Can terminate."""

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        raise AssertionError("Celery's own terminate is stood in for")


@dataclass
class Execution:
    """Runs in a thread: there is no child to kill."""

    name: str
    kill: None = None


class Agent:
    """Knows some executions of the id, and holds what is to be done later."""

    def __init__(self, executions: list[str], grace: float) -> None:
        self.live = [Execution(name) for name in executions]
        self.settings = SimpleNamespace(terminate_grace=grace)
        self.plans: list[tuple[float, Callable[[], None]]] = []

    def cancel(self, task_id: str, cancellation: Any) -> list[Execution]:
        return list(self.live)

    def runs(self, execution: Execution) -> bool:
        return execution in self.live

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.plans.append((seconds, call))


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The signals by which Celery killed."""
    signals: list[Any] = []
    monkeypatch.setattr(Request, "terminate", lambda _, __, signal=None: signals.append(signal))
    monkeypatch.setattr(worker_state, "active_requests", set())
    return signals


def request_of(agent: Agent | None, *, accepted: bool = True) -> Any:
    """A request that is active, without the message of one."""
    request: Any = CancellableRequest.__new__(CancellableRequest)
    request.id, request.name = "a", "task"
    request.time_start = 1.0 if accepted else None
    request._agent = lambda: agent
    worker_state.active_requests.add(request)
    return request


def test_a_body_that_goes_on_is_killed_after_the_grace(killed: list[Any]) -> None:
    """Not before, and with the signal that was asked for."""
    agent = Agent(["e"], 5.0)
    request_of(agent).terminate(Pool(), "KILL")
    ((seconds, grace_is_over),) = agent.plans
    assert (seconds, killed) == (5.0, [])
    grace_is_over()
    assert killed == ["KILL"]


def test_a_body_that_has_ended_is_not_killed(killed: list[Any]) -> None:
    """Though Celery has not heard of its end yet: the process may be at its next task."""
    agent = Agent(["e"], 5.0)
    request_of(agent).terminate(Pool())
    agent.live.clear()
    agent.plans[0][1]()
    assert killed == []


def test_a_body_that_ended_before_it_was_asked_is_not_killed(killed: list[Any]) -> None:
    """The agent knows of its end, Celery's result is on its way through the pool."""
    agent = Agent([], 5.0)
    request = request_of(agent)
    request.terminate(Pool())
    assert killed == []
    worker_state.active_requests.discard(request)
    agent.plans[0][1]()
    assert killed == []


def test_what_never_came_to_claim_is_killed_after_the_grace(killed: list[Any]) -> None:
    """A task that holds its place in the pool, but that the agent has not heard of."""
    agent = Agent([], 5.0)
    request_of(agent).terminate(Pool(), "TERM")
    agent.plans[0][1]()
    assert killed == ["TERM"]


@pytest.mark.parametrize(
    ("agent", "accepted"), [(Agent(["e"], 0.0), True), (Agent([], 5.0), False), (None, True)]
)
def test_killed_at_once(killed: list[Any], agent: Agent | None, accepted: bool) -> None:
    """Without a grace, before the pool has accepted it, and where nobody could be asked."""
    request_of(agent, accepted=accepted).terminate(Pool(), "TERM")
    assert killed == ["TERM"]
    assert agent is None or not agent.plans


def test_a_pool_that_cannot_terminate_is_not_asked_to(killed: list[Any]) -> None:
    """Celery would raise NotImplementedError, in a thread of the pool as well."""
    agent = Agent(["e"], 5.0)
    request_of(agent).terminate(BasePool())
    assert (killed, agent.plans) == ([], [])
