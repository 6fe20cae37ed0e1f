"""A message that comes to a worker which is stopping: when it is given back, and when it runs after all."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from celery_canceltoken.task import execution
from celery_canceltoken.task.endings import SentBack
from celery_canceltoken.task.execution import Execution
from tests.support.orders import MESSAGE
from tests.support.waiting import wait_until


class Beginning:
    """An execution that is about to begin, in a worker whose phase the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = SimpleNamespace(takes_work=False, is_closed=False)
        self.published: list[Any] = []
        self.looks = 0
        self.outcome: str | None = None
        monkeypatch.setattr(execution, "publish", lambda _, message: self.published.append(message))
        monkeypatch.setattr(execution.time, "sleep", self._look)
        task = SimpleNamespace(name="shop.export", app=None)
        self._execution: Any = Execution.__new__(Execution)
        self._execution.task, self._execution.request = task, SimpleNamespace(id="task-7")
        self._may_look = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._begin, daemon=True)

    def _look(self, _: float) -> None:
        self.looks += 1
        assert self._may_look.acquire(timeout=10)

    def _begin(self) -> None:
        try:
            self._execution._send_back_untouched(SimpleNamespace(port=self.port), MESSAGE)
        except SentBack:
            self.outcome = "given back"
        else:
            self.outcome = "runs"

    def start(self) -> None:
        self._thread.start()

    def look_again(self) -> None:
        """Let it look once more."""
        before = self.looks
        self._may_look.release()
        wait_until(lambda: self.looks > before or self.outcome, description="it has looked, or is through")

    def end(self) -> str | None:
        """Let it come to its end."""
        self._may_look.release()
        self._thread.join(10)
        return self.outcome


@pytest.fixture
def beginning(monkeypatch: pytest.MonkeyPatch) -> Beginning:
    """In a worker that is stopping and takes messages still."""
    return Beginning(monkeypatch)


def test_not_before_the_worker_takes_no_more(beginning: Beginning) -> None:
    """As long as this worker takes messages it would be given its own one back."""
    beginning.start()
    for _ in range(3):
        beginning.look_again()
        assert (beginning.published, beginning.outcome) == ([], None)
    beginning.port.is_closed = True
    assert beginning.end() == "given back"
    assert beginning.published == [MESSAGE]


def test_it_runs_where_the_worker_takes_work_again(beginning: Beginning) -> None:
    """A worker that was drained for a moment keeps what it has."""
    beginning.start()
    beginning.look_again()
    beginning.port.takes_work = True
    assert beginning.end() == "runs"
    assert beginning.published == []


def test_it_runs_where_it_cannot_be_given_back(beginning: Beginning, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather late than lost: without a broker the body runs, and is told of the shutdown like any other."""

    def fail(*_: Any) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(execution, "publish", fail)
    beginning.port.is_closed = True
    beginning.start()
    assert beginning.end() == "runs"
