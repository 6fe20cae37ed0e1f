"""Lists of records, from indexes that are repaired by being read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from celery_canceltoken.control.arguments import checked_count, checked_name, checked_states
from celery_canceltoken.control.orders import FromState
from celery_canceltoken.control.steps import Ask, Steps
from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.record import TaskRecord
from celery_canceltoken.states import State
from celery_canceltoken.store.calls import Calls

__all__ = ["Listed", "RecordPage", "list_steps", "scan_steps"]

_MOST = 10_000
_PAGE = 200


@dataclass(frozen=True)
class RecordPage(Sequence[TaskRecord]):
    """A part of a list of records, those that changed last first."""

    records: tuple[TaskRecord, ...]
    cursor: str | None
    """Where the next part begins; None: there is none."""

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self.records[place]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(self.records)


class _Position(NamedTuple):
    """The entry after which to go on: those of one score come by their ids, backwards."""

    score: str = "+inf"
    task_id: str = ""

    def is_before(self, task_id: str, score: str) -> bool:
        """Tell whether an entry comes after this position in the list."""
        return score != self.score or not self.task_id or task_id.encode() < self.task_id.encode()


class Listed(NamedTuple):
    """An entry of a list, and the record it names."""

    record: TaskRecord
    position: _Position


def list_steps(
    calls: Calls,
    *,
    state: FromState,
    name: str | None,
    worker: str | None,
    limit: int,
    cursor: str | None,
) -> Steps[RecordPage]:
    """Read one page of the records that are in one of the states, of one task name, on one worker."""
    states = checked_states(state, "state")
    name, worker = checked_name("name", name), checked_name("worker", worker)
    limit = checked_count("limit", limit, _MOST)
    lists = _lists(calls, states, name, worker)
    place, position = _read_cursor(cursor, len(lists))
    found: list[TaskRecord] = []
    for at in range(place, len(lists)):
        key, listed_state = lists[at]
        while True:
            entries, complete = yield from _page(calls, key, listed_state, position)
            for record, where in entries:
                if states and record.state not in states:
                    continue
                if (name and record.name != name) or (worker and record.worker != worker):
                    continue
                found.append(record)
                if len(found) == limit:
                    return RecordPage(tuple(found), f"{at}:{where.score}:{where.task_id}")
            if complete is None:
                break
            position = complete
        position = _Position()
    return RecordPage(tuple(found), None)


def scan_steps(calls: Calls, states: Sequence[State]) -> Steps[list[TaskRecord]]:
    """Read all records that are in one of *states*."""
    found: dict[str, TaskRecord] = {}
    for state in states:
        position: _Position | None = _Position()
        while position is not None:
            key = calls.keys.listed("state", state.value)
            entries, position = yield from _page(calls, key, state, position)
            found.update((entry.record.task_id, entry.record) for entry in entries)
    return list(found.values())


def _page(
    calls: Calls, key: str, state: State | None, position: _Position
) -> Steps[tuple[list[Listed], _Position | None]]:
    """Read the entries after *position*, and say where to go on (None: that was all).

    Entries without a record, or in the wrong list, are taken off it.
    """
    skip = 0
    while True:
        (raw,) = yield Ask([calls.listed(key, position.score, skip, _PAGE)])
        entries = [(task_id, score) for task_id, score in raw if position.is_before(task_id, score)]
        if entries or len(raw) < _PAGE:
            break
        # More entries of one moment than a page holds, and all of them read before.
        skip += _PAGE
    if not entries:
        return [], None
    answers = yield Ask([calls.read_or_none(task_id) for task_id, _ in entries])
    listed, wrong = [], []
    for (task_id, score), record in zip(entries, answers, strict=True):
        if record is None or (state is not None and record.state is not state):
            wrong.append((task_id, score))
        else:
            listed.append(Listed(record, _Position(score, task_id)))
    if wrong:
        yield Ask([calls.unlist(key, wrong)])
    task_id, score = entries[-1]
    return listed, (_Position(score, task_id) if len(raw) == _PAGE else None)


def _lists(
    calls: Calls, states: Sequence[State], name: str | None, worker: str | None
) -> list[tuple[str, State | None]]:
    if states:
        return [(calls.keys.listed("state", one.value), one) for one in dict.fromkeys(states)]
    if worker:
        return [(calls.keys.listed("worker", worker), None)]
    if name:
        return [(calls.keys.listed("name", name), None)]
    return [(calls.keys.listed("state", one.value), one) for one in State]


def _read_cursor(cursor: object, lists: int) -> tuple[int, _Position]:
    if cursor is None:
        return 0, _Position()
    try:
        place, score, task_id = str(cursor).split(":", 2)
        if not isinstance(cursor, str) or not 0 <= int(place) < lists or not score.isdecimal():
            raise ValueError
    except ValueError:
        raise InvalidArgumentError("cursor", f"must be that of an earlier page, not {cursor!r}") from None
    return int(place), _Position(score, task_id)
