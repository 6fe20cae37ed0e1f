"""What can be asked of a task: each bad argument is refused by name, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from redis import Redis

from celery_canceltoken import (
    delete,
    get_record,
    list_records,
    requeue,
    reschedule,
    revoke,
    revoke_many,
    revoke_where,
    withdraw,
)
from celery_canceltoken.configuration import client_store
from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.states import State
from tests.support.servers import EmbeddedServer
from tests.support.workers import unique_name

STATES = ", ".join(state.value for state in State)


@pytest.fixture
def prefix() -> str:
    """A key prefix that is this test's own."""
    return unique_name("prefix")


@pytest.fixture
def redis(valkey: EmbeddedServer) -> Iterator[Redis]:
    """Looks at the server past the store."""
    with Redis.from_url(valkey.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def app(valkey: EmbeddedServer, prefix: str) -> Iterator[Celery]:
    """An app whose store is the test's own."""
    app = Celery("shop", set_as_current=False, broker="memory://", backend=valkey.url)
    app.conf.canceltoken_prefix = prefix
    yield app
    client_store(app).close()
    app.close()


def stored(redis: Redis, prefix: str) -> list[str]:
    return sorted(redis.scan_iter(match=f"{prefix}*"))


BAD_IDS = [
    pytest.param(None, "must be a string or an AsyncResult, not None", id="none"),
    pytest.param(7, "must be a string or an AsyncResult, not 7", id="number"),
    pytest.param(b"id", "must be a string or an AsyncResult, not b'id'", id="bytes"),
    pytest.param(["id"], r"must be a string or an AsyncResult, not \['id'\]", id="list"),
    pytest.param("", "must not be empty", id="empty"),
    pytest.param("x" * 256, "has 256 characters; 255 is the limit", id="too-long"),
    pytest.param("a\nb", r"must not hold control characters: 'a\\nb'", id="newline"),
    pytest.param("a\0", r"must not hold control characters: 'a\\x00'", id="nul"),
    pytest.param("\x1b[31m", "must not hold control characters", id="escape"),
    pytest.param("a\u202eb", "must not hold control characters", id="bidi"),
    pytest.param("\ud800", "must not hold control characters", id="surrogate"),
]


@pytest.mark.parametrize(("task_id", "problem"), BAD_IDS)
def test_a_bad_id_cannot_be_revoked(
    app: Celery, redis: Redis, prefix: str, task_id: Any, problem: str
) -> None:
    """What cannot be a task id is refused with what is wrong with it."""
    with pytest.raises(InvalidArgumentError, match=f"^task_id: {problem}") as told:
        revoke(task_id, app=app)
    assert told.value.argument == "task_id"
    assert stored(redis, prefix) == []


@pytest.mark.parametrize(("task_id", "problem"), BAD_IDS)
def test_a_bad_id_cannot_be_read(app: Celery, task_id: Any, problem: str) -> None:
    """Reading is as strict as asking."""
    with pytest.raises(InvalidArgumentError, match=f"^task_id: {problem}"):
        get_record(task_id, app=app)


@pytest.mark.parametrize(
    "task_id", ["x", "x" * 255, "a b", "Auftrag-Ü-客-🚪", "{a}:*?[x]", "'; return 1 --", "../..", "%s%n"]
)
def test_any_printable_id_will_do(app: Celery, redis: Redis, prefix: str, task_id: str) -> None:
    """An id is data: whatever it looks like, it names one record and that record alone."""
    assert revoke(task_id, app=app)
    assert stored(redis, prefix) == [f"{prefix}:task:{task_id}"]
    record = get_record(task_id, app=app)
    assert record is not None
    assert record.task_id == task_id


BAD_TEXTS = [
    pytest.param(7, "must be a string, not 7", id="number"),
    pytest.param(b"why", "must be a string, not b'why'", id="bytes"),
    pytest.param(["why"], "must be a string", id="list"),
    pytest.param("x" * 1025, "has 1025 characters; 1024 is the limit: shorten it", id="too-long"),
    pytest.param("a\ud800b", "is not valid text", id="surrogate"),
]


@pytest.mark.parametrize("argument", ["reason", "actor"])
@pytest.mark.parametrize(("text", "problem"), BAD_TEXTS)
def test_a_bad_text_is_refused(
    app: Celery, redis: Redis, prefix: str, argument: str, text: Any, problem: str
) -> None:
    """A reason or actor that cannot be kept is refused with its name and the remedy."""
    with pytest.raises(InvalidArgumentError, match=f"^{argument}: {problem}") as told:
        revoke("id", **{argument: text}, app=app)
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


@pytest.mark.parametrize(
    "text", ["customer left", "x" * 1024, "客户走了 🚪", "a\nb\0c", "' .. os.exit() .. '"]
)
def test_any_other_text_is_kept_as_it_is(app: Celery, text: str) -> None:
    """Reason and actor are data, and come back unchanged."""
    assert revoke("id", reason=text, actor=text, app=app)
    record = get_record("id", app=app)
    assert record is not None
    assert (record.reason, record.actor) == (text, text)


@pytest.mark.parametrize("text", [None, ""], ids=repr)
def test_no_reason_is_none(app: Celery, text: str | None) -> None:
    """An empty reason is as good as none."""
    revoke("id", reason=text, actor=text, app=app)
    record = get_record("id", app=app)
    assert record is not None
    assert (record.reason, record.actor) == (None, None)


@pytest.mark.parametrize(
    "from_state",
    [
        "RUNNING",
        "processing",
        "",
        "PROCESSING,FAILED",
        5,
        b"FAILED",
        ["FAILED", "RUNNING"],
        [None],
        [5],
        object(),
    ],
    ids=lambda value: "object" if type(value) is object else repr(value),
)
def test_a_bad_from_state_is_refused(app: Celery, redis: Redis, prefix: str, from_state: Any) -> None:
    """What is no state is refused with the list of those there are."""
    with pytest.raises(InvalidArgumentError, match=f"must be one or several of {STATES}, not ") as told:
        revoke("id", from_state=from_state, app=app)
    assert told.value.argument == "from_state"
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("from_state", [[], (), set(), iter([])], ids=lambda value: type(value).__name__)
def test_an_empty_from_state_is_refused(app: Celery, redis: Redis, prefix: str, from_state: Any) -> None:
    """No state at all would mean any or none: the error says how to ask for any."""
    with pytest.raises(InvalidArgumentError, match="from_state: must name a state; leave it out"):
        revoke("id", from_state=from_state, app=app)
    assert stored(redis, prefix) == []


@pytest.mark.parametrize(
    "from_state",
    [
        State.PROCESSING,
        "PROCESSING",
        [State.PROCESSING],
        ("ENQUEUED", "PROCESSING"),
        {"FAILED", State.ENQUEUED},
        iter(["FAILED"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_from_state_that_does_not_hold_refuses_the_request(
    app: Celery, redis: Redis, prefix: str, from_state: Any
) -> None:
    """One state or several, by value or by name: an id in none of them is left alone."""
    handle = revoke("id", from_state=from_state, app=app)
    assert not handle
    assert handle.refusal == "the task is in another state than from_state accepts"
    assert stored(redis, prefix) == []


def test_an_unseen_id_that_must_exist_is_refused(app: Celery, redis: Redis, prefix: str) -> None:
    """With `must_exist` a typing error leaves nothing behind."""
    handle = revoke("id", must_exist=True, app=app)
    assert not handle.applied
    assert handle.previous is None
    assert handle.refusal == "nothing is known of this id"
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("timeout", ["5", True, -1, -0.001, math.nan, [1]], ids=repr)
def test_a_bad_timeout_is_refused(app: Celery, timeout: Any) -> None:
    """A wait wants a number of seconds, 0 or more."""
    handle = revoke("id", app=app)
    with pytest.raises(InvalidArgumentError, match=r"^timeout: must be a number of seconds, 0 or more, not "):
        handle.wait(timeout)


def test_a_wait_that_does_not_wait_times_out_at_once(app: Celery) -> None:
    """A timeout of 0 looks once."""
    handle = revoke("id", app=app)
    with pytest.raises(TimeoutError, match="nothing has come of it within 0"):
        handle.wait(0)


def test_an_applied_request_shows_as_such(app: Celery) -> None:
    """A handle is true if its request was applied, and says what it is about."""
    handle = revoke("id", app=app)
    assert handle
    assert (handle.applied, handle.previous, handle.refusal) == (True, None, None)
    assert repr(handle) == "<RequestHandle revoke id: applied>"


def test_a_second_request_leaves_the_first_ones_reason(app: Celery) -> None:
    """Of two requests the first one's words stay, and the second says why it was not applied."""
    first = revoke("id", reason="first", actor="alice", app=app)
    second = revoke("id", reason="second", actor="bob", app=app)
    assert first
    assert not second
    assert second.refusal == "the same, or more, has been asked of the task already"
    assert repr(second).endswith(f"id: {second.refusal}>")
    record = second.record()
    assert record is not None
    assert (record.reason, record.actor, record.request_id) == ("first", "alice", first.request_id)


# Through an app.


def test_an_async_result_will_do_for_an_id(app: Celery) -> None:
    """A result brings its id and its app along."""
    result: AsyncResult[Any] = app.AsyncResult("id")
    assert revoke(result, reason="why").task_id == "id"
    record = get_record(result)
    assert record is not None
    assert record.reason == "why"
    assert get_record("id", app=app) == record


def test_an_unknown_id_has_no_record(app: Celery) -> None:
    """Nobody has claimed it, and nobody has asked anything of it."""
    assert get_record("id", app=app) is None


@pytest.mark.parametrize(
    "bad", [{"task_id": "a\tb"}, {"reason": 5}, {"actor": "x" * 2000}, {"from_state": "X"}]
)
def test_the_public_function_is_as_strict(
    app: Celery, redis: Redis, prefix: str, bad: dict[str, Any]
) -> None:
    """`revoke` itself refuses bad arguments, by name, and writes nothing."""
    (argument,) = bad
    with pytest.raises(InvalidArgumentError) as told:
        revoke(**{"task_id": "id", **bad}, app=app)
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("must_exist", ["yes", None, [], 2.5], ids=repr)
def test_a_bad_must_exist_is_refused(app: Celery, must_exist: Any) -> None:
    """A flag that is neither true nor false is an error with its name."""
    with pytest.raises(InvalidArgumentError, match=r"^must_exist: "):
        revoke("id", must_exist=must_exist, app=app)


# All the others.

NOW = datetime.now(timezone.utc)
SOON = NOW + timedelta(hours=1)
ORDERS: dict[str, Callable[..., Any]] = {
    "delete": delete,
    "requeue": requeue,
    "reschedule": lambda task_id, **words: reschedule(task_id, **{"eta": SOON, **words}),
    "revoke_many": lambda task_id, **words: revoke_many([task_id], **words),
}
COMMON: list[tuple[str, Any]] = [
    ("reason", 5),
    ("reason", "x" * 1025),
    ("reason", "\ud800"),
    ("actor", b"bob"),
    ("actor", "x" * 1025),
    ("from_state", "RUNNING"),
    ("from_state", []),
    ("must_exist", "yes"),
    ("must_exist", 1),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("argument", "value"), COMMON, ids=lambda value: repr(value)[:20])
def test_every_order_is_as_strict(
    app: Celery, redis: Redis, prefix: str, order: str, argument: str, value: Any
) -> None:
    """What `revoke` refuses, all refuse, by name, and write nothing."""
    with pytest.raises(InvalidArgumentError) as told:
        ORDERS[order]("id", **{argument: value}, app=app)
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("order", ["delete", "requeue", "reschedule", "withdraw"])
@pytest.mark.parametrize("task_id", [None, 7, b"id", "", "x" * 256, "a\nb", "\ud800"], ids=ascii)
def test_every_order_wants_an_id(app: Celery, redis: Redis, prefix: str, order: str, task_id: Any) -> None:
    """Of one task."""
    call = {**ORDERS, "withdraw": withdraw}[order]
    with pytest.raises(InvalidArgumentError) as told:
        call(task_id, app=app)
    assert told.value.argument == "task_id"
    assert stored(redis, prefix) == []


BAD_TIMES: list[tuple[dict[str, Any], str]] = [
    ({}, "eta"),
    ({"eta": SOON, "countdown": 5}, "eta"),
    ({"eta": "tomorrow"}, "eta"),
    ({"eta": 5}, "eta"),
    ({"eta": datetime(2030, 1, 1)}, "eta"),
    ({"eta": datetime(1969, 12, 31, tzinfo=timezone.utc)}, "eta"),
    ({"eta": NOW + timedelta(days=3700)}, "eta"),
    ({"eta": datetime.max.replace(tzinfo=timezone.utc)}, "eta"),
    ({"countdown": -1}, "countdown"),
    ({"countdown": "5"}, "countdown"),
    ({"countdown": True}, "countdown"),
    ({"countdown": math.nan}, "countdown"),
    ({"countdown": math.inf}, "countdown"),
    ({"countdown": 1e300}, "countdown"),
    ({"countdown": 3700 * 86400}, "countdown"),
]


@pytest.mark.parametrize(("time", "argument"), BAD_TIMES)
def test_a_bad_time_is_refused(
    app: Celery, redis: Redis, prefix: str, time: dict[str, Any], argument: str
) -> None:
    """A task is rescheduled to one time, with its zone, within ten years."""
    with pytest.raises(InvalidArgumentError) as told:
        reschedule("id", **time, app=app)
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("from_state", ["RUNNING", [], 5], ids=repr)
def test_a_withdrawal_wants_a_state_that_is_one(
    app: Celery, redis: Redis, prefix: str, from_state: Any
) -> None:
    """Like every other order."""
    revoke("id", app=app)
    before = stored(redis, prefix)
    with pytest.raises(InvalidArgumentError) as told:
        withdraw("id", from_state=from_state, app=app)
    assert told.value.argument == "from_state"
    assert stored(redis, prefix) == before


@pytest.mark.parametrize(
    ("task_ids", "argument"),
    [
        ("id", "task_ids"),
        (b"id", "task_ids"),
        (7, "task_ids"),
        (None, "task_ids"),
        (["id", ""], "task_ids[1]"),
        (["id", "b", 5], "task_ids[2]"),
        ((one for one in ["a\nb"]), "task_ids[0]"),
        ([["id"]], "task_ids[0]"),
    ],
    ids=lambda value: "generator" if isinstance(value, Iterator) else repr(value),
)
def test_of_many_ids_the_bad_one_is_named(
    app: Celery, redis: Redis, prefix: str, task_ids: Any, argument: str
) -> None:
    """And nothing is asked of the good ones."""
    with pytest.raises(InvalidArgumentError) as told:
        revoke_many(task_ids, app=app)
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


def test_of_many_ids_each_has_one_handle(app: Celery) -> None:
    """In their order, and each once; a result is as good as its id."""
    handles = revoke_many(["b", "a", "b", app.AsyncResult("c")], reason="all", app=app)
    assert [handle.task_id for handle in handles] == ["b", "a", "c"]
    assert len(handles.applied) == 3
    assert revoke_many([], app=app).applied == []


BAD_CRITERIA: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": ""}, "name"),
    ({"name": 5}, "name"),
    ({"name": "x" * 256}, "name"),
    ({"queue": ""}, "queue"),
    ({"queue": b"reports"}, "queue"),
    ({"stamps": {}}, "stamps"),
    ({"stamps": "tenant"}, "stamps"),
    ({"stamps": {"tenant": [7]}}, "stamps"),
    ({"stamps": {7: "tenant"}}, "stamps"),
    ({"stamps": {"tenant": None}}, "stamps"),
    ({"stamps": {"tenant": math.nan}}, "stamps"),
    ({"stamps": {"tenant": math.inf}}, "stamps"),
    ({"stamps": {"tenant": "\ud800"}}, "stamps"),
    ({"stamps": {"tenant": "x" * 1025}}, "stamps"),
    ({"stamps": {f"stamp-{number}": 1 for number in range(21)}}, "stamps"),
    ({"where": "name"}, "where"),
    ({"name": "x", "until": NOW}, "until"),
    ({"name": "x", "until": datetime(2090, 1, 1)}, "until"),
    ({"name": "x", "until": NOW + timedelta(days=3700)}, "until"),
    ({"name": "x", "until": timedelta(0)}, "until"),
    ({"name": "x", "until": timedelta.min}, "until"),
    ({"name": "x", "until": timedelta.max}, "until"),
    ({"name": "x", "until": 5}, "until"),
    ({"where": bool, "until": timedelta(1)}, "until"),
    ({"name": "x", "dry_run": "yes"}, "dry_run"),
    ({"name": "x", "reason": 5}, "reason"),
    ({"name": "x", "actor": 5, "until": timedelta(1)}, "actor"),
]


@pytest.mark.parametrize(("criteria", "argument"), BAD_CRITERIA)
def test_a_bad_criterion_is_refused(
    app: Celery, redis: Redis, prefix: str, criteria: dict[str, Any], argument: str
) -> None:
    """Nobody is revoked, now or later, by words that are not understood."""
    with pytest.raises(InvalidArgumentError) as told:
        revoke_where(**criteria, app=app)
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [("state", "RUNNING"), ("name", ""), ("worker", 5), ("limit", 0), ("limit", 10_001), ("cursor", "x")],
)
def test_a_bad_list_is_refused(app: Celery, argument: str, value: Any) -> None:
    """Reading is as strict as asking."""
    with pytest.raises(InvalidArgumentError) as told:
        list_records(**{argument: value}, app=app)
    assert told.value.argument == argument


@pytest.mark.parametrize("value", ["ignore", None, True], ids=repr)
def test_a_bad_store_down_is_refused(app: Celery, redis: Redis, prefix: str, value: Any) -> None:
    """What to do without a store is one of two things."""
    with pytest.raises(InvalidArgumentError) as told:
        revoke("id", store_down=value, app=app)
    assert told.value.argument == "store_down"
    assert stored(redis, prefix) == []
