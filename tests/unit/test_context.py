"""What a body may know and say of its own execution."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_canceltoken import (
    CancelTokenError,
    InvalidArgumentError,
    StoreUnavailableError,
    SupersededError,
    current_execution,
)
from celery_canceltoken.task.context import CHECKPOINT_LIMIT, CurrentExecution


class Shelf:
    """Where checkpoints go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.saved: list[str] = []
        self._error = error

    def save(self, text: str) -> None:
        if self._error is not None:
            raise self._error
        self.saved.append(text)


def execution(shelf: Shelf | None = None, resume_text: str = "") -> CurrentExecution:
    """The third run of an id."""
    return CurrentExecution("task", "execution", 3, resume_text, shelf.save if shelf is not None else None)


def test_it_knows_who_it_is() -> None:
    """Ids and attempt are what the execution was made with."""
    mine = execution()
    assert (mine.task_id, mine.execution_id, mine.attempt) == ("task", "execution", 3)


def test_without_a_checkpoint() -> None:
    """Nothing to go on from."""
    mine = execution()
    assert mine.resume_data is None
    assert mine.is_resumed is False


@pytest.mark.parametrize("text", ["0", "false", '""', "[]", "{}"])
def test_a_checkpoint_that_looks_empty_is_one(text: str) -> None:
    """That an earlier attempt has saved something does not hang on what it was."""
    assert execution(resume_text=text).is_resumed is True


def test_resume_data_is_a_new_object_with_each_look() -> None:
    """What one part of a body does to it is not seen by another."""
    mine = execution(resume_text='{"rows": [1, 2]}')
    mine.resume_data["rows"].append(3)
    assert mine.resume_data == {"rows": [1, 2]}


def test_what_is_saved_now_is_for_the_next_attempt() -> None:
    """A checkpoint does not change what this attempt was resumed from."""
    shelf = Shelf()
    mine = execution(shelf, resume_text="1")
    mine.checkpoint(2)
    assert mine.resume_data == 1
    assert shelf.saved == ["2"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (0, "0"),
        (False, "false"),
        ("", '""'),
        ([], "[]"),
        ({"row": 7, "file": "a"}, '{"row":7,"file":"a"}'),
        ([None, "ä"], '[null,"\\u00e4"]'),
    ],
    ids=["zero", "false", "empty", "list", "dict", "nested"],
)
def test_what_json_holds_is_saved(data: Any, text: str) -> None:
    """As compact JSON, what looks empty included."""
    shelf = Shelf()
    execution(shelf).checkpoint(data)
    assert shelf.saved == [text]


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _pit() -> list[Any]:
    pit: list[Any] = []
    for _ in range(100_000):
        pit = [pit]
    return pit


@pytest.mark.parametrize(
    "data",
    [None, object(), {1, 2}, b"bytes", float("nan"), float("inf"), {(1, 2): 3}, _circle(), _pit()],
    ids=["none", "object", "set", "bytes", "nan", "infinity", "tuple-key", "circle", "deep"],
)
def test_what_json_does_not_hold_is_refused(data: Any) -> None:
    """With the argument's name, and nothing is written."""
    shelf = Shelf()
    with pytest.raises(InvalidArgumentError, match="data"):
        execution(shelf).checkpoint(data)
    assert shelf.saved == []


@pytest.mark.parametrize("letter", ["x", "\u00e4"], ids=["ascii", "escaped"])
def test_size_is_bounded(letter: str) -> None:
    """The limit is that of the JSON as it is written, to the byte."""
    shelf = Shelf()
    width = 1 if letter == "x" else 6
    fits = letter * ((CHECKPOINT_LIMIT - 2) // width)
    execution(shelf).checkpoint(fits)
    assert len(shelf.saved[0]) <= CHECKPOINT_LIMIT
    with pytest.raises(InvalidArgumentError, match="65536"):
        execution(shelf).checkpoint(fits + letter)
    assert len(shelf.saved) == 1


@pytest.mark.parametrize("error", [SupersededError("gone"), StoreUnavailableError("down")], ids=repr)
def test_the_body_hears_why_it_was_not_saved(error: Exception) -> None:
    """What the store says comes out as it is."""
    with pytest.raises(type(error)):
        execution(Shelf(error)).checkpoint(1)


def test_nowhere_to_save() -> None:
    """A run that is not recorded cannot save, and says so; what is wrong with the data is said first."""
    with pytest.raises(CancelTokenError, match="not recorded") as raised:
        execution().checkpoint(1)
    assert not isinstance(raised.value, InvalidArgumentError)
    with pytest.raises(InvalidArgumentError):
        execution().checkpoint(None)


def test_outside_a_task() -> None:
    """There is no execution where no task runs, in other threads neither."""
    with pytest.raises(CancelTokenError, match="no task"):
        current_execution()
    seen: list[Exception] = []

    def ask() -> None:
        try:
            current_execution()
        except CancelTokenError as error:
            seen.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(seen) == 1
