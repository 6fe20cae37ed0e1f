"""Listening to Celery's remote control commands: who is told what, and that Celery never minds."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state
from celery.worker.control import Panel

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.task import celery_revoke

APP, OTHER_APP = Celery("one", set_as_current=False), Celery("other", set_as_current=False)
COMMANDS = ("revoke", "terminate", "revoke_by_stamped_headers")


class Agent:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Cancellation]] = []

    def cancel(self, task_id: str, cancellation: Cancellation) -> None:
        self.told.append((task_id, cancellation))


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, str], Agent]:
    """The agents of two apps' workers, by app and node name, in a process that listens."""
    agents = {(id(app), name): Agent() for app in (APP, OTHER_APP) for name in ("first@here", "second@here")}
    monkeypatch.setattr(celery_revoke, "agent_of", lambda app, name: agents.get((app, name)))
    monkeypatch.setattr(Panel, "data", {name: command_named(name) for name in COMMANDS})
    celery_revoke._on_worker_init(SimpleNamespace(app=APP))
    return agents


def command_named(name: str) -> Any:
    """Stands in for Celery's command: answers with what it was called with."""

    def command(state: Any, *args: Any, **kwargs: Any) -> Any:
        return name, args, kwargs

    return command


def call(name: str, app: Celery = APP, hostname: str = "first@here", **arguments: Any) -> Any:
    """Have a worker obey a command."""
    return Panel.data[name](SimpleNamespace(app=app, hostname=hostname), **arguments)


def words(agent: Agent) -> list[tuple[str, str | None]]:
    assert all((one.cause, one.actor) == (Cause.REVOKED, None) for _, one in agent.told)
    return [(task_id, one.reason) for task_id, one in agent.told]


@pytest.mark.parametrize("task_id", ["a", ["a"], ("a",)], ids=repr)
def test_one_id(agents: dict[tuple[int, str], Agent], task_id: Any) -> None:
    """An id is an id, alone or in a list."""
    call("revoke", task_id=task_id)
    assert words(agents[id(APP), "first@here"]) == [("a", "revoked")]


def test_many_ids_and_none(agents: dict[tuple[int, str], Agent]) -> None:
    """All ids of a list are told of; of no ids, nobody is."""
    call("revoke", task_id=["a", "b"], terminate=True, signal="KILL")
    call("revoke", task_id=[])
    call("revoke", task_id=None)
    assert words(agents[id(APP), "first@here"]) == [("a", "terminated"), ("b", "terminated")]


def test_terminate_is_a_command_of_its_own(agents: dict[tuple[int, str], Agent]) -> None:
    """`celery control terminate` does not come as `revoke`."""
    call("terminate", signal="KILL", task_id=["a"])
    assert words(agents[id(APP), "first@here"]) == [("a", "terminated")]


@pytest.mark.parametrize(
    ("name", "arguments", "order"),
    [
        ("revoke", {"task_id": "a"}, ["told", "command"]),
        ("revoke", {"task_id": "a", "terminate": True}, ["command", "told"]),
        ("terminate", {"task_id": "a", "signal": "KILL"}, ["command", "told"]),
    ],
)
def test_who_is_first(
    agents: dict[tuple[int, str], Agent],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: Any,
    order: Any,
) -> None:
    """Tokens trip at once, but not before Celery has asked our request to terminate."""
    seen: list[str] = []
    monkeypatch.setattr(Agent, "cancel", lambda *_: seen.append("told"))
    monkeypatch.setattr(Panel, "data", {one: lambda *_, **__: seen.append("command") for one in COMMANDS})
    celery_revoke._on_worker_init(SimpleNamespace(app=APP))
    call(name, **arguments)
    assert seen == order


def test_the_agent_is_the_commanded_workers(agents: dict[tuple[int, str], Agent]) -> None:
    """Of several workers in a process, each hears its own commands; one without an agent is no trouble."""
    call("revoke", app=OTHER_APP, hostname="second@here", task_id="a")
    call("revoke", app=APP, hostname="unknown@here", task_id="b")
    told = {key: words(agent) for key, agent in agents.items() if agent.told}
    assert told == {(id(OTHER_APP), "second@here"): [("a", "revoked")]}


@pytest.mark.parametrize(
    ("stamps", "asked", "matches"),
    [
        ({"team": "blue"}, {"team": "blue"}, True),
        ({"team": "blue"}, {"team": ["red", "blue"]}, True),
        ({"team": ["red", "blue"]}, {"team": "blue"}, True),
        ({"team": ["red", "blue"]}, {"team": ["green", "blue"]}, True),
        ({"team": "blue"}, ["team=blue"], True),
        ({"floor": 3, "team": "red"}, {"team": "blue", "floor": 3}, True),
        ({"team": "blue"}, {"team": "blu"}, False),
        ({"team": "blue"}, {"floor": "blue"}, False),
        ({"team": None}, {"team": "blue"}, False),
        ({}, {"team": "blue"}, False),
        (None, {"team": "blue"}, False),
        ({"team": "blue"}, {}, False),
    ],
    ids=str,
)
def test_stamps(
    agents: dict[tuple[int, str], Agent],
    monkeypatch: pytest.MonkeyPatch,
    stamps: Any,
    asked: Any,
    matches: bool,
) -> None:
    """One value of one header in common is enough, as it is for Celery."""
    request = SimpleNamespace(id="a", stamps=stamps)
    monkeypatch.setattr(worker_state, "requests", {"a": request})
    call("revoke_by_stamped_headers", headers=asked)
    assert words(agents[id(APP), "first@here"]) == ([("a", "revoked")] if matches else [])


def test_commands_answer_as_ever(agents: dict[tuple[int, str], Agent]) -> None:
    """What the command is called with and what it answers is unchanged."""
    assert call("revoke", task_id=["a"], later="option") == (
        "revoke",
        (),
        {"task_id": ["a"], "later": "option"},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_our_errors_are_logged(
    agents: dict[tuple[int, str], Agent],
    name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong on our side, or with the arguments, Celery's command is done."""
    monkeypatch.delattr(Agent, "cancel")
    with caplog.at_level(logging.ERROR):
        assert call(name, signal="KILL", task_id=["a"], headers=["nothing"])[0] == name
    assert "tokens were not told" in caplog.text


def test_listening_twice_is_listening_once(agents: dict[tuple[int, str], Agent]) -> None:
    """A second worker of the process changes nothing."""
    celery_revoke._on_worker_init(SimpleNamespace(app=APP))
    call("revoke", task_id="a")
    assert words(agents[id(APP), "first@here"]) == [("a", "revoked")]


def test_celery_has_these_commands() -> None:
    """The commands that are listened to are Celery's, under these names."""
    assert set(COMMANDS) <= set(Panel.data)
