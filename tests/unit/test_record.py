"""Reading a record back from its stored fields."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.errors import RecordUnreadableError
from celery_canceltoken.record import FORMAT, READ_FIELDS, Change, TaskRecord, parse_record
from celery_canceltoken.states import State

KEY = "canceltoken:task:7"

WHOLE = {
    "v": str(FORMAT),
    "state": "REVOKED",
    "name": "shop.export",
    "takes_token": "1",
    "cause": "REVOKED",
    "reason": "customer left",
    "actor": "alice",
    "request": "request-1",
    "kind": "revoke",
    "answer": "effective",
    "queue": "reports",
    "root": "root-1",
    "eta": "1700000000000006",
    "unkept": "too-large",
    "checkpoint": '{"row":7}',
    "shutdowns": "2",
    "worker": "celery@shop",
    "owner": "agent.2",
    "execution": "execution-1",
    "attempt": "3",
    "generation": "2",
    "value": "[1]",
    "error": "ValueError()",
    "started_at": "1700000000000001",
    "requested_at": "1700000000000002",
    "delivered_at": "1700000000000003",
    "observed_at": "1700000000000004",
    "stopped_at": "1700000000000005",
    "h0": '{"n":20,"at":"1700000000000004","state":"REVOKED","worker":"celery@shop","attempt":3,'
    '"cause":"REVOKED","reason":"customer left","actor":"alice","request":"request-1","kind":"revoke",'
    '"answer":"effective","completed":"1"}',
    "h19": '{"n":19,"at":"1700000000000003"}',
}
OPTIONAL = sorted(set(WHOLE) - {"v", "attempt", "generation", "shutdowns", "h0", "h19"})
ATTRIBUTES = {
    "request": "request_id",
    "kind": "request_kind",
    "execution": "execution_id",
    "root": "root_id",
    "unkept": "message_not_kept",
}


def read(fields: dict[str, str]) -> TaskRecord:
    return parse_record(KEY, "7", fields)


def test_every_field_is_read() -> None:
    """A record shows all that is stored of a task."""
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    assert read(WHOLE) == TaskRecord(
        task_id="7",
        state=State.REVOKED,
        name="shop.export",
        takes_token=True,
        cause=Cause.REVOKED,
        reason="customer left",
        actor="alice",
        request_id="request-1",
        request_kind="revoke",
        answer="effective",
        queue="reports",
        root_id="root-1",
        eta=moment + timedelta(microseconds=6),
        message_not_kept="too-large",
        checkpoint='{"row":7}',
        shutdown_requeues=2,
        worker="celery@shop",
        owner="agent.2",
        execution_id="execution-1",
        attempt=3,
        generation=2,
        value="[1]",
        error="ValueError()",
        started_at=moment + timedelta(microseconds=1),
        requested_at=moment + timedelta(microseconds=2),
        delivered_at=moment + timedelta(microseconds=3),
        observed_at=moment + timedelta(microseconds=4),
        stopped_at=moment + timedelta(microseconds=5),
        history=(
            Change(moment + timedelta(microseconds=3), None, None, 0, *[None] * 6, completed=False),
            Change(
                at=moment + timedelta(microseconds=4),
                state=State.REVOKED,
                worker="celery@shop",
                attempt=3,
                cause=Cause.REVOKED,
                reason="customer left",
                actor="alice",
                request_id="request-1",
                request_kind="revoke",
                answer="effective",
                completed=True,
            ),
        ),
    )


@pytest.mark.parametrize("field", OPTIONAL)
def test_an_absent_field_is_none(field: str) -> None:
    """What is not stored is None, and costs nothing else."""
    fields = {name: value for name, value in WHOLE.items() if name != field}
    record, whole = read(fields), read(WHOLE)
    attribute = ATTRIBUTES.get(field, field)
    assert getattr(record, attribute) is None
    assert dataclasses.replace(record, **{attribute: getattr(whole, attribute)}) == whole


def test_a_request_alone_is_a_record_without_a_state() -> None:
    """An id that nobody has run shows its request, no attempt, and generation 0."""
    record = read({"v": "1", "request": "request-1", "cause": "REVOKED", "answer": "pending"})
    assert (record.state, record.attempt, record.generation) == (None, 0, 0)
    assert (record.request_id, record.cause) == ("request-1", Cause.REVOKED)


@pytest.mark.parametrize(
    ("answer", "too_late"), [("pending", False), ("effective", False), ("too-late", True), (None, False)]
)
def test_only_a_late_answer_came_too_late(answer: str | None, too_late: bool) -> None:
    """A record tells whether its request was heeded."""
    fields = {name: value for name, value in WHOLE.items() if name != "answer"}
    if answer is not None:
        fields["answer"] = answer
    assert read(fields).came_too_late is too_late


@pytest.mark.parametrize(("stored", "takes"), [("1", True), ("0", False)])
def test_a_task_without_a_token_parameter_is_marked(stored: str, takes: bool) -> None:
    """Whoever revokes can see that a body does not look."""
    assert read({**WHOLE, "takes_token": stored}).takes_token is takes


def test_times_keep_their_microseconds() -> None:
    """Times far from the epoch are exact."""
    record = read({**WHOLE, "stopped_at": "9007199254740993"})
    assert record.stopped_at == datetime(2255, 6, 5, 23, 47, 34, 740993, tzinfo=timezone.utc)


def test_an_older_format_is_read() -> None:
    """A record of an earlier release is understood."""
    assert read({**WHOLE, "v": "0"}).state is State.REVOKED


def test_a_newer_format_is_refused_by_name() -> None:
    """A record of a later release is left alone, and the error says both formats."""
    with pytest.raises(
        RecordUnreadableError, match=f"format {FORMAT + 1}; this release reads {FORMAT}"
    ) as told:
        read({**WHOLE, "v": str(FORMAT + 1)})
    assert told.value.key == KEY


@pytest.mark.parametrize(
    "damage",
    [
        {"v": None},
        {"v": "one"},
        {"v": ""},
        {"state": "PAUSED"},
        {"state": ""},
        {"cause": "BOREDOM"},
        {"attempt": "few"},
        {"generation": "1.5"},
        {"generation": "nan"},
        {"started_at": "yesterday"},
        {"requested_at": "1.5"},
        {"delivered_at": "9" * 30},
        {"observed_at": ""},
        {"stopped_at": "inf"},
        {"eta": "soon"},
        {"h0": ""},
        {"h0": "[]"},
        {"h0": "{"},
        {"h0": '{"n":1}'},
        {"h0": '{"n":1,"at":"x"}'},
        {"h0": '{"n":1,"at":5,"state":"PAUSED"}'},
        {"h0": '{"at":"5"}'},
    ],
    ids=str,
)
def test_a_damaged_field_is_a_typed_error(damage: dict[str, str | None]) -> None:
    """A record that makes no sense is refused with its key and a remedy."""
    fields = {name: value for name, value in {**WHOLE, **damage}.items() if value is not None}
    with pytest.raises(RecordUnreadableError, match="delete the key to start afresh") as told:
        read(fields)
    assert told.value.key == KEY
    assert KEY in str(told.value)


def test_an_unknown_field_is_left_alone() -> None:
    """What a later release of the same format adds does no harm."""
    assert read({**WHOLE, "colour": "red"}) == read(WHOLE)


def test_a_record_is_a_value() -> None:
    """A record is a picture of one moment, and nobody changes it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(WHOLE).state = None  # type: ignore[misc]


def test_all_that_is_shown_is_asked_for() -> None:
    """What a reader needs is among the fields that it reads."""
    assert set(WHOLE) <= set(READ_FIELDS)
    assert [name for name in READ_FIELDS if name.startswith("h")] == [f"h{place}" for place in range(20)]
    assert len(set(READ_FIELDS)) == len(READ_FIELDS)


def test_a_history_is_in_the_order_of_its_numbers() -> None:
    """Wherever the lines are stored: each takes the place of the one twenty before it."""
    lines = {f"h{n % 20}": f'{{"n":{n},"at":"{n}","attempt":{n}}}' for n in range(7, 27)}
    history = read({"v": "1", **lines}).history
    assert [change.attempt for change in history] == list(range(7, 27))


@pytest.mark.parametrize(
    ("requested", "stopped", "seconds"),
    [
        ("1000000", "3500000", 2.5),
        ("1000000", "1000000", 0.0),
        (None, "1000000", None),
        ("1000000", None, None),
        ("3000000", "1000000", None),
    ],
)
def test_the_seconds_to_stop(requested: str | None, stopped: str | None, seconds: float | None) -> None:
    """From the request to the end of the body; a request that came after it stopped nothing."""
    fields = {"v": "1", "requested_at": requested, "stopped_at": stopped}
    record = read({name: value for name, value in fields.items() if value is not None})
    assert record.seconds_to_stop == seconds
