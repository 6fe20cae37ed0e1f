"""The janitor, over what dead owners have left."""

from __future__ import annotations

import time
from typing import Any

import pytest

from celery_canceltoken.outcome import Ending
from celery_canceltoken.settings import Settings
from celery_canceltoken.store import AgentStore
from celery_canceltoken.store.answers import Recovery
from celery_canceltoken.worker.recovery import Janitor
from tests.store.conftest import ALICE, BOB, Lab

MANY = 25
"""More than a janitor looks at in one turn."""


class AgentOfBob:
    """What a janitor needs of its agent."""

    owner = BOB
    worker = "celery@bob"
    broker = "ours"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.completed: list[Recovery] = []

    def complete(self, recovery: Recovery) -> None:
        self.completed.append(recovery)


@pytest.fixture
def agent(settings: Settings) -> Any:
    """Bob's, who is alive."""
    return AgentOfBob(settings)


@pytest.fixture
def janitor(agent: Any, lab: Lab, store: AgentStore) -> Janitor:
    """Bob's; Alice, for whom executions of the lab are claimed, is dead."""
    store.announce(ALICE)
    store.retire(ALICE)
    return Janitor(agent, store)


def is_due_at_once(janitor: Janitor) -> bool:
    """Tell whether it wants another turn without waiting for its interval."""
    return janitor.due <= time.monotonic()


def test_what_comes_back_by_its_broker_is_no_reason_to_hurry(janitor: Janitor, agent: Any, lab: Lab) -> None:
    """Tasks that are left to the broker's redelivery are looked at once per interval, however many."""
    for number in range(MANY):
        lab.other(f"late-{number}").run("one", late_ack=True)
    janitor.run()
    assert agent.completed == []
    assert not is_due_at_once(janitor)
    assert len(lab.owned(ALICE)) == MANY


def test_what_can_be_recovered_is_recovered_without_waiting(janitor: Janitor, agent: Any, lab: Lab) -> None:
    """Where a turn was not enough, the next one comes at once; in the end nothing is left."""
    for number in range(MANY):
        lab.other(f"early-{number}").run("one")
    turns = 0
    while turns == 0 or is_due_at_once(janitor):
        janitor.run()
        turns += 1
        for recovery in agent.completed:
            lab.store.not_owned(ALICE, recovery.task_id)
    assert {recovery.task_id for recovery in agent.completed} == {f"early-{number}" for number in range(MANY)}


def test_records_of_a_newer_release_stay_in_the_index(
    janitor: Janitor, agent: Any, lab: Lab, store: AgentStore
) -> None:
    """What this release cannot read is left to an agent that can: record, index and owner stay."""
    lab.run("one")
    lab.set(v="2")
    with lab.unchanged():
        janitor.run()
        janitor.run()
    assert agent.completed == []
    assert lab.owned(ALICE) == {lab.task_id}
    assert ALICE in store.owners()
    assert not is_due_at_once(janitor)


@pytest.mark.parametrize("ending", [Ending.RETURNED, Ending.RETRIED])
def test_what_has_ended_after_all_leaves_the_index(janitor: Janitor, lab: Lab, ending: Ending) -> None:
    """An entry that is stale is taken off, and an owner without entries is forgotten."""
    lab.run("one")
    lab.finish("one", ending)
    if ending is Ending.RETURNED:
        lab.settle("one")
        lab.redis.sadd(lab.store.keys.owned(ALICE), lab.task_id)
        lab.redis.expire(lab.store.keys.owned(ALICE), 60)
    janitor.run()
    assert lab.owned(ALICE) == set()
    janitor.run()
    assert ALICE not in lab.store.owners()
