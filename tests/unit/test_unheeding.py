"""The log names a task that was told to stop and goes on."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from celery_canceltoken.store.answers import Claim, Delivery, DeliveryVerdict
from celery_canceltoken.worker import check
from celery_canceltoken.worker.agent import LiveExecution
from celery_canceltoken.worker.check import Check


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The check's clock."""
    clock = Clock()
    monkeypatch.setattr(check, "time", clock)
    return clock


def execution(*, told_at: float | None = None, takes_token: bool = True) -> LiveExecution:
    """A run of task `shop.export`."""
    claim = Claim(
        task_id="task-7",
        execution_id="one",
        owner="alice.1",
        worker="celery@alice",
        send="send",
        generation=0,
        redelivered=False,
        name="shop.export",
        takes_token=takes_token,
        late_ack=False,
    )
    return LiveExecution(claim, 0, 1, lambda _: None, tripped=told_at is not None, told_at=told_at)


def lines_after(
    clock: Clock, caplog: pytest.LogCaptureFixture, live: LiveExecution, *seconds: float
) -> list[str]:
    """What is logged by checks that are made so long after the execution was told."""
    agent: Any = SimpleNamespace(
        live=lambda: [live], obey=lambda *_: None, settings=SimpleNamespace(check_interval=5.0)
    )
    store: Any = SimpleNamespace(deliver_many=lambda asked: [Delivery(DeliveryVerdict.NONE) for _ in asked])
    looking = Check(agent, store)
    caplog.set_level(logging.WARNING, "celery_canceltoken")
    for after in seconds:
        clock.now = 1000.0 + after
        looking.work()
    return [record.getMessage() for record in caplog.records]


def test_it_is_named_with_its_id_and_how_long(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Who it is, and for how long it has been asked."""
    (line,) = lines_after(clock, caplog, execution(told_at=1000.0), 12.0)
    assert line == "task shop.export[task-7] was told to stop 12 s ago and goes on"


def test_one_that_cannot_look_is_told_apart(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A task without a token parameter can hardly heed."""
    (line,) = lines_after(clock, caplog, execution(told_at=1000.0, takes_token=False), 12.0)
    assert line.endswith("goes on: it takes no token")


def test_a_body_is_left_some_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """One that winds down is not complained of."""
    assert lines_after(clock, caplog, execution(told_at=1000.0), 1.0, 5.0, 9.9) == []


def test_complaints_become_rarer(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Ten seconds, twenty, forty: a body that takes hours does not fill the log."""
    lines = lines_after(clock, caplog, execution(told_at=1000.0), *range(0, 100, 5))
    assert [line.split()[6] for line in lines] == ["10", "20", "40", "80"]


def test_who_was_not_told_is_not_named(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """However long it runs."""
    assert lines_after(clock, caplog, execution(told_at=None), 5000.0) == []
