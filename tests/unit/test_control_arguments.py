"""What can be asked of a task: each bad argument is refused by name, and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from redis import Redis

from celery_canceltoken import get_record, revoke
from celery_canceltoken.configuration import client_store
from celery_canceltoken.control import RequestHandle, read_record, request_revoke
from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from celery_canceltoken.store.connect import ConnectionPlan
from celery_canceltoken.store.redis_store import RedisStore
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
def store(valkey: EmbeddedServer, prefix: str) -> Iterator[RedisStore]:
    """A client's store."""
    store = RedisStore(ConnectionPlan(valkey.url), Settings(prefix=prefix))
    yield store
    store.close()


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
    store: RedisStore, redis: Redis, prefix: str, task_id: Any, problem: str
) -> None:
    """What cannot be a task id is refused with what is wrong with it."""
    with pytest.raises(InvalidArgumentError, match=f"^task_id: {problem}") as told:
        request_revoke(store, task_id)
    assert told.value.argument == "task_id"
    assert stored(redis, prefix) == []


@pytest.mark.parametrize(("task_id", "problem"), BAD_IDS)
def test_a_bad_id_cannot_be_read(store: RedisStore, task_id: Any, problem: str) -> None:
    """Reading is as strict as asking."""
    with pytest.raises(InvalidArgumentError, match=f"^task_id: {problem}"):
        read_record(store, task_id)


@pytest.mark.parametrize(
    "task_id", ["x", "x" * 255, "a b", "Auftrag-Ü-客-🚪", "{a}:*?[x]", "'; return 1 --", "../..", "%s%n"]
)
def test_any_printable_id_will_do(store: RedisStore, redis: Redis, prefix: str, task_id: str) -> None:
    """An id is data: whatever it looks like, it names one record and that record alone."""
    assert request_revoke(store, task_id)
    assert stored(redis, prefix) == [f"{prefix}:task:{task_id}"]
    record = read_record(store, task_id)
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
    store: RedisStore, redis: Redis, prefix: str, argument: str, text: Any, problem: str
) -> None:
    """A reason or actor that cannot be kept is refused with its name and the remedy."""
    with pytest.raises(InvalidArgumentError, match=f"^{argument}: {problem}") as told:
        request_revoke(store, "id", **{argument: text})
    assert told.value.argument == argument
    assert stored(redis, prefix) == []


@pytest.mark.parametrize(
    "text", ["customer left", "x" * 1024, "客户走了 🚪", "a\nb\0c", "' .. os.exit() .. '"]
)
def test_any_other_text_is_kept_as_it_is(store: RedisStore, text: str) -> None:
    """Reason and actor are data, and come back unchanged."""
    assert request_revoke(store, "id", reason=text, actor=text)
    record = read_record(store, "id")
    assert record is not None
    assert (record.reason, record.actor) == (text, text)


@pytest.mark.parametrize("text", [None, ""], ids=repr)
def test_no_reason_is_none(store: RedisStore, text: str | None) -> None:
    """An empty reason is as good as none."""
    request_revoke(store, "id", reason=text, actor=text)
    record = read_record(store, "id")
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
def test_a_bad_from_state_is_refused(store: RedisStore, redis: Redis, prefix: str, from_state: Any) -> None:
    """What is no state is refused with the list of those there are."""
    with pytest.raises(InvalidArgumentError, match=f"must be one or several of {STATES}, not ") as told:
        request_revoke(store, "id", from_state=from_state)
    assert told.value.argument == "from_state"
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("from_state", [[], (), set(), iter([])], ids=lambda value: type(value).__name__)
def test_an_empty_from_state_is_refused(
    store: RedisStore, redis: Redis, prefix: str, from_state: Any
) -> None:
    """No state at all would mean any or none: the error says how to ask for any."""
    with pytest.raises(InvalidArgumentError, match="from_state: must name a state; leave it out"):
        request_revoke(store, "id", from_state=from_state)
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
    store: RedisStore, redis: Redis, prefix: str, from_state: Any
) -> None:
    """One state or several, by value or by name: an id in none of them is left alone."""
    handle = request_revoke(store, "id", from_state=from_state)
    assert not handle
    assert handle.refusal == "the task is in another state than from_state accepts"
    assert stored(redis, prefix) == []


def test_an_unseen_id_that_must_exist_is_refused(store: RedisStore, redis: Redis, prefix: str) -> None:
    """With `must_exist` a typing error leaves nothing behind."""
    handle = request_revoke(store, "id", must_exist=True)
    assert not handle.applied
    assert handle.previous is None
    assert handle.refusal == "no worker has seen this id"
    assert stored(redis, prefix) == []


@pytest.mark.parametrize("timeout", ["5", True, -1, -0.001, math.nan, [1]], ids=repr)
def test_a_bad_timeout_is_refused(store: RedisStore, timeout: Any) -> None:
    """A wait wants a number of seconds, 0 or more."""
    handle = request_revoke(store, "id")
    with pytest.raises(InvalidArgumentError, match=r"^timeout: must be a number of seconds, 0 or more, not "):
        handle.wait(timeout)


def test_a_wait_that_does_not_wait_times_out_at_once(store: RedisStore) -> None:
    """A timeout of 0 looks once."""
    handle = request_revoke(store, "id")
    with pytest.raises(TimeoutError, match="task id has not ended within 0"):
        handle.wait(0)


def test_an_applied_request_shows_as_such(store: RedisStore) -> None:
    """A handle is true if its request was applied, and says what it is about."""
    handle = request_revoke(store, "id")
    assert isinstance(handle, RequestHandle)
    assert handle
    assert (handle.applied, handle.previous, handle.refusal) == (True, None, None)
    assert repr(handle) == "<RequestHandle revoke id: applied>"


def test_a_second_request_leaves_the_first_ones_reason(store: RedisStore) -> None:
    """Of two requests the first one's words stay, and the second says why it was not applied."""
    first = request_revoke(store, "id", reason="first", actor="alice")
    second = request_revoke(store, "id", reason="second", actor="bob")
    assert first
    assert not second
    assert second.refusal == "the same, or more, has been asked of the task already"
    assert repr(second).endswith(f"id: {second.refusal}>")
    record = second.record()
    assert record is not None
    assert (record.reason, record.actor, record.request_id) == ("first", "alice", first.request_id)


# Through an app.


@pytest.fixture
def app(valkey: EmbeddedServer, prefix: str) -> Iterator[Celery]:
    """An app whose store is the test's own."""
    app = Celery("shop", set_as_current=False, broker="memory://", backend=valkey.url)
    app.conf.canceltoken_prefix = prefix
    yield app
    client_store(app).close()
    app.close()


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
def test_a_bad_must_exist_is_refused(store: RedisStore, must_exist: Any) -> None:
    """A flag that is neither true nor false is an error with its name."""
    with pytest.raises(InvalidArgumentError, match=r"^must_exist: "):
        request_revoke(store, "id", must_exist=must_exist)
