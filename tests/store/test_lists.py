"""The lists by state, name and worker: they follow the records, and stay small."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.control.listing import RecordPage, list_steps
from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.outcome import Ending
from celery_canceltoken.states import FINAL_STATES, State
from tests.store.conftest import ALICE, BOB, KEPT, Lab
from tests.support.orders import take

DAY = 86_400_000_000


def page(lab: Lab, **asked: object) -> RecordPage:
    """A page of a list, as an app reads it."""
    everything = {"state": None, "name": None, "worker": None, "limit": 100, "cursor": None}
    return take(lab.store, list_steps(lab.store.calls, **{**everything, **asked}))  # type: ignore[arg-type]


def ids(found: RecordPage) -> list[str]:
    return [record.task_id for record in found]


# Entries move with the state.


def test_a_task_is_in_the_list_of_its_state_and_no_other(lab: Lab) -> None:
    """From its queue to its end, through everything that may come in between."""
    seen = []

    def look(_: object = None) -> None:
        assert lab.states_listed == [lab.state]
        seen.append(lab.state)

    look(lab.enqueue(eta="9000000000000000"))
    look(lab.run("one", message=KEPT))
    look(lab.finish("one", Ending.RETRIED))
    look(lab.run("two", generation=1, message=KEPT))
    look(lab.finish("two", Ending.RAISED))
    look(lab.settle("two"))
    look(lab.request("requeue"))
    look(lab.request("requeue", "at a time", wanted_eta=9_000_000_000_000_000))
    look(lab.run("three", generation=3, message=KEPT))
    look(lab.recover())
    look(lab.settle("recovery", owner=BOB))
    look(lab.run("four", send="again"))
    assert seen == [
        *("SCHEDULED", "PROCESSING", "ENQUEUED", "PROCESSING", "FINISHING", "FAILED", "ENQUEUED"),
        *("SCHEDULED", "PROCESSING", "FINISHING", "FAILED", "PROCESSING"),
    ]


def test_a_requested_id_that_nobody_has_seen_is_in_no_list(lab: Lab) -> None:
    """It has no state."""
    lab.request()
    assert lab.states_listed == []
    assert ids(page(lab)) == []


def test_a_task_is_listed_by_its_name_and_worker(lab: Lab) -> None:
    """Whatever its state."""
    lab.run("one")
    assert lab.listed("name", "shop.export")
    assert lab.listed("worker", "celery@alice")
    lab.finish("one")
    lab.settle()
    assert ids(page(lab, name="shop.export")) == [lab.task_id]
    assert ids(page(lab, worker="celery@alice")) == [lab.task_id]
    assert ids(page(lab, worker="celery@bob")) == []


def test_a_body_that_ran_without_the_store_is_listed(lab: Lab) -> None:
    """What is written when the store is back enters the lists as well."""
    lab.start_without_the_store("one")
    lab.finish("one", unclaimed=True)
    assert lab.states_listed == ["FINISHING"]
    lab.settle("one")
    assert lab.states_listed == ["SUCCEEDED"]


@pytest.mark.parametrize("before", ["waiting", "ended"])
def test_a_body_that_ran_without_the_store_leaves_the_list_it_was_in(lab: Lab, before: str) -> None:
    """What its id was before, it is no more."""
    if before == "waiting":
        lab.enqueued(1)
        lab.start_without_the_store("two", generation=1)
    else:
        lab.final()
        lab.start_without_the_store("two", send="again")
    lab.finish("two", unclaimed=True)
    assert lab.states_listed == ["FINISHING"]


# Bounded.


def fill(lab: Lab, key: str, count: int, score: int) -> None:
    pipeline = lab.redis.pipeline()
    for start in range(0, count, 1000):
        entries = {f"old-{number}": score + number for number in range(start, min(count, start + 1000))}
        pipeline.zadd(key, entries)
    pipeline.pexpire(key, 100_000)
    pipeline.execute()


def now(lab: Lab) -> int:
    seconds, microseconds = lab.redis.time()
    return seconds * 1_000_000 + microseconds


@pytest.mark.parametrize(
    ("field", "value"),
    [("state", "SUCCEEDED"), ("name", "shop.export"), ("worker", "celery@alice")],
)
def test_a_list_holds_ten_thousand(lab: Lab, field: str, value: str) -> None:
    """The newest stay, the oldest make room."""
    key = lab.store.keys.listed(field, value)
    fill(lab, key, 10_000, now(lab) - 20_000)
    lab.final()
    assert lab.redis.zcard(key) == 10_000
    assert lab.listed(field, value)
    assert lab.redis.zscore(key, "old-0") is None
    assert lab.redis.zscore(key, "old-9999") is not None


def test_what_has_not_ended_is_not_pushed_out_so_soon(lab: Lab) -> None:
    """Work that waits or runs is found, be it a hundred thousand tasks."""
    key = lab.store.keys.listed("state", "PROCESSING")
    fill(lab, key, 11_000, now(lab) - 20_000)
    lab.run("one")
    assert lab.redis.zcard(key) == 11_001


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_what_has_expired_falls_off(lab: Lab, state: State) -> None:
    """An ended task's record is gone after `canceltoken_record_expires`, and so is its entry."""
    key = lab.store.keys.listed("state", state.value)
    lab.redis.zadd(key, {"gone": now(lab) - 101_000_000, "there": now(lab) - 50_000_000})
    lab.redis.pexpire(key, 50_000)
    lab.finishing()
    lab.settle(instead=state)
    assert lab.redis.zscore(key, "gone") is None
    assert lab.redis.zscore(key, "there") is not None


def test_what_runs_for_long_does_not_fall_off(lab: Lab) -> None:
    """A running task's record is kept as long as it runs."""
    key = lab.store.keys.listed("state", "PROCESSING")
    lab.redis.zadd(key, {"long": now(lab) - 10 * DAY})
    lab.run("one")
    assert lab.redis.zscore(key, "long") is not None


def test_what_runs_for_long_is_kept_on_its_list(lab: Lab) -> None:
    """The agent that keeps a running task's record keeps the list that it is found by."""
    lab.run("one")
    key = lab.store.keys.listed("state", "PROCESSING")
    lab.redis.pexpire(key, 5_000)
    lab.store.keep(ALICE, [lab.task_id])
    assert lab.redis.pttl(key) > 50_000


# Repaired by being read.


def test_a_record_that_is_gone_is_taken_off(lab: Lab) -> None:
    """Whoever reads a list tidies it."""
    lab.final()
    lab.remove()
    assert ids(page(lab, state="SUCCEEDED")) == []
    assert not lab.listed("state", "SUCCEEDED")


def test_a_record_in_another_state_is_taken_off(lab: Lab) -> None:
    """And is not shown as what it is not."""
    lab.run("one")
    key = lab.store.keys.listed("state", "FAILED")
    lab.redis.zadd(key, {lab.task_id: now(lab)})
    lab.redis.pexpire(key, 50_000)
    assert ids(page(lab, state="FAILED")) == []
    assert lab.states_listed == ["PROCESSING"]


@pytest.mark.parametrize("damage", [{"v": "2"}, {"state": "PAUSED"}], ids=str)
def test_a_record_that_cannot_be_read_does_not_spoil_the_page(lab: Lab, damage: dict[str, str]) -> None:
    """The others are shown."""
    other = lab.other("other")
    lab.final()
    other.final()
    lab.set(**damage)
    assert ids(page(lab, state="SUCCEEDED")) == ["other"]


def entry(lab: Lab, key: str) -> tuple[str, str]:
    ((task_id, score),) = lab.redis.zrange(key, 0, -1, withscores=True)
    return task_id, f"{score:.0f}"


def test_an_entry_is_taken_off_only_as_it_was_read(lab: Lab) -> None:
    """What has been listed anew since is not taken off."""
    lab.run("one")
    key = lab.store.keys.listed("state", "PROCESSING")
    read = entry(lab, key)
    lab.finish("one", Ending.RETRIED)
    lab.run("two", generation=1)
    assert lab.store.ask(lab.store.calls.unlist(key, [read])) == 0
    assert lab.states_listed == ["PROCESSING"]
    assert lab.store.ask(lab.store.calls.unlist(key, [entry(lab, key)])) == 1
    assert lab.states_listed == []


def test_taking_off_what_is_not_there_is_harmless(lab: Lab) -> None:
    """Two readers may find the same."""
    key = lab.store.keys.listed("state", "PROCESSING")
    assert lab.store.ask(lab.store.calls.unlist(key, [("nobody", "1"), ("other", "2")])) == 0
    assert lab.redis.exists(key) == 0


# Pages.


def test_the_last_to_change_comes_first(lab: Lab) -> None:
    """Of one state, in that order."""
    for name in ("a", "c", "b"):
        lab.other(name).run("one")
    assert ids(page(lab, state="PROCESSING")) == ["b", "c", "a"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("same_moment", [False, True])
def test_pages_show_each_record_once(lab: Lab, limit: int, same_moment: bool) -> None:
    """Also where many records have changed in the same microsecond."""
    for number in range(7):
        lab.other(f"task-{number}").run("one")
    if same_moment:
        key = lab.store.keys.listed("state", "PROCESSING")
        lab.redis.zadd(key, {f"task-{number}": 1_700_000_000_000_000 for number in range(7)})
    found, cursor = [], None
    while True:
        part = page(lab, state=["ENQUEUED", "PROCESSING"], limit=limit, cursor=cursor)
        found += ids(part)
        assert len(part) <= limit
        cursor = part.cursor
        if cursor is None:
            break
    assert sorted(found) == [f"task-{number}" for number in range(7)]


def test_more_records_of_one_moment_than_are_read_at_once(lab: Lab) -> None:
    """A crowd that changed together is shown whole."""
    names = [f"task-{number:03}" for number in range(450)]
    pipeline = lab.redis.pipeline()
    for name in names:
        pipeline.hset(lab.store.keys.record(name), mapping={"v": "1", "state": "PROCESSING"})
        pipeline.pexpire(lab.store.keys.record(name), 60_000)
    key = lab.store.keys.listed("state", "PROCESSING")
    pipeline.zadd(key, dict.fromkeys(names, 1_700_000_000_000_000))
    pipeline.pexpire(key, 60_000)
    pipeline.execute()
    first = page(lab, state="PROCESSING", limit=300)
    rest = page(lab, state="PROCESSING", limit=300, cursor=first.cursor)
    assert ids(first) + ids(rest) == sorted(names, reverse=True)
    assert rest.cursor is None


CRITERIA: list[tuple[dict[str, object], set[str]]] = [
    ({}, {"runs", "waits", "ended", "import"}),
    ({"state": "PROCESSING"}, {"runs", "import"}),
    ({"state": ["ENQUEUED", "SUCCEEDED"]}, {"waits", "ended"}),
    ({"name": "shop.import"}, {"import"}),
    ({"worker": "celery@bob"}, {"import"}),
    ({"state": "PROCESSING", "name": "shop.export"}, {"runs"}),
    ({"state": "PROCESSING", "worker": "celery@alice"}, {"runs"}),
    ({"name": "shop.export", "worker": "celery@bob"}, set()),
    ({"state": "FAILED"}, set()),
]


@pytest.mark.parametrize(("asked", "found"), CRITERIA)
def test_every_criterion_counts(lab: Lab, asked: dict[str, object], found: set[str]) -> None:
    """A page shows what fits all that was said."""
    lab.other("runs").run("one")
    lab.other("waits").enqueue()
    lab.other("ended").final()
    lab.other("import").run("one", owner=BOB, name="shop.import")
    assert set(ids(page(lab, **asked))) == found


BAD: list[tuple[str, object]] = [
    *(("limit", bad) for bad in (0, -1, 10_001, "10", True, 1.5, None)),
    *(("state", bad) for bad in ("RUNNING", [], 5)),
    *(("name", bad) for bad in ("", 5, b"x", "x" * 256, "\ud800")),
    *(("worker", bad) for bad in ("", 5, "x" * 256)),
    *(("cursor", bad) for bad in ("", "x", "0:1", "99:1:x", "-1:1:x", "0:x:y", "0:1.5:y", 5, b"0:1:x")),
]


@pytest.mark.parametrize(("argument", "value"), BAD, ids=repr)
def test_a_bad_criterion_is_refused(lab: Lab, argument: str, value: object) -> None:
    """By its name."""
    with pytest.raises(InvalidArgumentError) as told:
        page(lab, **{argument: value})
    assert told.value.argument == argument


def test_a_page_is_a_sequence(lab: Lab) -> None:
    """It is read like a list."""
    lab.run("one")
    found = page(lab)
    assert (len(found), found[0].task_id, [*found], found.cursor) == (1, lab.task_id, [found[0]], None)


# Keys.


def every_script(lab: Lab) -> None:
    """Make every kind of key there is."""
    lab.enqueue(root="root")
    lab.mark()
    lab.stand(name="shop.import")
    lab.request()
    lab.claim("one", root="root", message=KEPT)
    lab.settle()
    lab.request("requeue", "again")
    lab.store.announce(ALICE)
    other = lab.other("other")
    other.run("one", owner=BOB, message=KEPT)
    other.request()
    other.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)


def test_every_key_of_every_script_expires(lab: Lab) -> None:
    """Whatever a script makes goes away by itself."""
    every_script(lab)
    prefix = lab.store.keys.prefix
    lives = {key.removeprefix(prefix): lab.redis.pttl(key) for key in lab.redis.scan_iter(f"{prefix}*")}
    kinds = {key.split(":")[1] for key in lives}
    assert kinds == {
        "task",
        "list",
        "outbox",
        "mark",
        "members",
        "standing-orders",
        "owned",
        "owners",
        "lease",
    }
    assert {key for key, milliseconds in lives.items() if milliseconds < 0} == set()


Look = Callable[[Lab], str]


@pytest.mark.parametrize(
    "key",
    [
        lambda lab: lab.store.keys.outbox,
        lambda lab: lab.store.keys.listed("state", "ENQUEUED"),
    ],
    ids=["outbox", "list"],
)
def test_what_waits_is_found_as_long_as_its_record_is_there(lab: Lab, key: Look) -> None:
    """A list lives no shorter than the records in it."""
    lab.requeued()
    assert lab.redis.pttl(key(lab)) >= lab.redis.pttl(lab.key) - 1_000
    assert lab.redis.pttl(lab.key) > 900_000
