"""Damaged records, and those of a later release: left alone, and no harm to any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from celery_canceltoken.errors import CancelTokenError, RecordUnreadableError, StoreUnavailableError
from celery_canceltoken.outcome import Ending
from celery_canceltoken.record import FORMAT
from celery_canceltoken.settings import Settings
from celery_canceltoken.store import AgentStore, ConnectionPlan
from celery_canceltoken.store.answers import (
    ClaimVerdict,
    Delivery,
    DeliveryVerdict,
    Ended,
    FinishAnswer,
)
from tests.store.conftest import ALICE, BOB, Lab
from tests.support.orders import get_record, revoke
from tests.support.servers import EmbeddedServer

Damage = Callable[[Lab], None]


def as_string(lab: Lab) -> None:
    lab.redis.set(lab.key, "not a hash", px=60_000)


def as_list(lab: Lab) -> None:
    lab.redis.delete(lab.key)
    lab.redis.rpush(lab.key, "not a hash")
    lab.redis.pexpire(lab.key, 60_000)


def without_version(lab: Lab) -> None:
    lab.remove("v")


def empty_version(lab: Lab) -> None:
    lab.set(v="")


def version_in_words(lab: Lab) -> None:
    lab.set(v="one")


def unknown_state(lab: Lab) -> None:
    lab.set(state="PAUSED")


def state_in_lower_case(lab: Lab) -> None:
    lab.set(state="processing")


def bad_generation(lab: Lab) -> None:
    lab.set(generation="many")


def bad_attempt(lab: Lab) -> None:
    lab.set(attempt="x")


def newer(lab: Lab) -> None:
    lab.set(v=str(FORMAT + 1))


def much_newer(lab: Lab) -> None:
    lab.set(v="1000000", state="HIBERNATING", generation="@")


DAMAGED = [
    as_string,
    as_list,
    without_version,
    empty_version,
    version_in_words,
    unknown_state,
    state_in_lower_case,
    bad_generation,
    bad_attempt,
]
NEWER = [newer, much_newer]
EVERY_DAMAGE = pytest.mark.parametrize("damage", [*DAMAGED, *NEWER], ids=lambda damage: damage.__name__)


@pytest.fixture
def broken(lab: Lab, damage: Damage) -> Lab:
    """An id that ran, of which something was asked, and whose record then went bad."""
    lab.run("one")
    lab.request()
    damage(lab)
    return lab


@EVERY_DAMAGE
def test_a_claim_is_told_why_it_is_untracked(broken: Lab, damage: Damage) -> None:
    """A task with such a record runs untracked, and the answer says why."""
    with broken.unchanged():
        answer = broken.claim("two", owner=BOB)
    assert answer.verdict is ClaimVerdict.UNTRACKED
    assert answer.why == ("newer" if damage in NEWER else "damaged")


@EVERY_DAMAGE
def test_a_repair_is_untracked_as_well(broken: Lab, damage: Damage) -> None:
    """A body that runs already does not write over what it cannot read."""
    with broken.unchanged():
        assert broken.claim("one", running_attempt=1).verdict is ClaimVerdict.UNTRACKED


@EVERY_DAMAGE
def test_a_takeover_is_untracked_as_well(broken: Lab, damage: Damage) -> None:
    """Nobody takes over what cannot be read."""
    with broken.unchanged():
        answer = broken.claim("two", owner=BOB, take_over_from=("one", ALICE))
    assert answer.verdict is ClaimVerdict.UNTRACKED


@EVERY_DAMAGE
def test_an_untracked_task_enters_no_index(broken: Lab, damage: Damage) -> None:
    """What an agent does not own is not put among what it does."""
    broken.claim("two", owner=BOB)
    assert broken.owned(BOB) == set()


@EVERY_DAMAGE
def test_a_request_is_refused_as_unreadable(broken: Lab, damage: Damage) -> None:
    """Whoever asks something is told that the record cannot be read, and what to do."""
    remedy = "newer release" if damage in NEWER else "delete the key to start afresh"
    with broken.unchanged(), pytest.raises(RecordUnreadableError, match=remedy) as told:
        broken.request("delete", "another")
    assert told.value.key == broken.key


@EVERY_DAMAGE
def test_a_revoke_is_refused_as_unreadable(broken: Lab, damage: Damage) -> None:
    """The same through the call that an app makes."""
    with broken.unchanged(), pytest.raises(RecordUnreadableError):
        revoke(broken.store, broken.task_id)


@EVERY_DAMAGE
def test_reading_is_refused_as_unreadable(broken: Lab, damage: Damage) -> None:
    """A record that makes no sense is not shown as one that does."""
    with pytest.raises(RecordUnreadableError) as told:
        get_record(broken.store, broken.task_id)
    assert told.value.key == broken.key


@EVERY_DAMAGE
def test_a_delivery_is_untracked(broken: Lab, damage: Damage) -> None:
    """No token trips on the word of such a record."""
    with broken.unchanged():
        assert broken.deliver("one") == Delivery(DeliveryVerdict.UNTRACKED)


@EVERY_DAMAGE
def test_an_observation_is_dropped(broken: Lab, damage: Damage) -> None:
    """Nothing is added to it."""
    with broken.unchanged():
        broken.observe("one")


@EVERY_DAMAGE
def test_a_finish_is_untracked(broken: Lab, damage: Damage) -> None:
    """The end of a task is told from having been superseded, and not written."""
    with broken.unchanged():
        assert broken.finish("one") == FinishAnswer(recorded=False, untracked=True)


@EVERY_DAMAGE
def test_a_settlement_changes_nothing(broken: Lab, damage: Damage) -> None:
    """It does not become final."""
    with broken.unchanged():
        broken.settle("one")


@EVERY_DAMAGE
def test_an_adoption_changes_nothing(broken: Lab, damage: Damage) -> None:
    """An agent that comes back does not take its body for superseded."""
    with broken.unchanged():
        assert broken.adopt("one")


@EVERY_DAMAGE
def test_a_recovery_changes_nothing(lab: Lab, damage: Damage) -> None:
    """A janitor that had read the record before it went bad leaves it."""
    lab.run("one")
    record = lab.store.get(lab.task_id)
    assert record is not None
    damage(lab)
    with lab.unchanged():
        assert lab.store.recover(record, owner=BOB, worker="w", recovery_id="recovery") is None
    assert lab.owned(BOB) == set()


@EVERY_DAMAGE
def test_others_of_its_batch_are_settled(broken: Lab, damage: Damage) -> None:
    """A damaged record does not keep those before and behind it from their ends."""
    before, behind = broken.other("before"), broken.other("behind")
    before.finishing()
    behind.finishing()
    batch = [Ended("one", one.task_id) for one in (before, broken, behind)]
    with broken.unchanged():
        broken.store.settle(ALICE, batch)
    assert (before.state, behind.state) == ("SUCCEEDED", "SUCCEEDED")


@EVERY_DAMAGE
def test_others_of_its_check_are_delivered(broken: Lab, damage: Damage) -> None:
    """A damaged record does not keep other executions from being told."""
    before, behind = broken.other("before"), broken.other("behind")
    for one in (before, behind):
        one.run("one")
        one.request()
    asked = [(one.task_id, "one") for one in (before, broken, behind)]
    verdicts = [delivery.verdict for delivery in broken.store.deliver_many(asked)]
    assert verdicts[0] is verdicts[2] is DeliveryVerdict.DELIVER
    assert verdicts[1] in (DeliveryVerdict.UNTRACKED, DeliveryVerdict.NONE)


def test_deleting_the_key_starts_afresh(lab: Lab) -> None:
    """The remedy of the error message works."""
    as_string(lab)
    lab.remove()
    lab.run("one")


def test_a_task_without_a_damaged_record_is_not_affected(lab: Lab) -> None:
    """An owner's other tasks go on."""
    as_string(lab)
    other = lab.other("other")
    other.run("one")
    other.request()
    assert other.deliver("one").verdict is DeliveryVerdict.DELIVER


@pytest.mark.parametrize("key", ["owned", "owners", "inbox"])
def test_a_damaged_list_is_an_error_of_the_store(lab: Lab, key: str) -> None:
    """A key of ours that holds something else is refused with a typed error, not taken for empty."""
    name = {
        "owned": lab.store.keys.owned(ALICE),
        "owners": lab.store.keys.owners,
        "inbox": lab.store.keys.inbox(ALICE),
    }[key]
    lab.redis.set(name, "not ours", px=60_000)
    calls: dict[str, Callable[[], Any]] = {
        "owned": lambda: lab.store.owned_by(ALICE, 10),
        "owners": lab.store.owners,
        "inbox": lambda: lab.store.inbox_of(ALICE).read(),
    }
    with pytest.raises(CancelTokenError):
        calls[key]()


def test_a_request_survives_a_damaged_inbox(lab: Lab) -> None:
    """What was asked is applied although the wake-up could not be left."""
    lab.run("one")
    lab.redis.set(lab.store.keys.inbox(ALICE), "not a stream", px=60_000)
    assert lab.request().applied
    assert lab.deliver("one").verdict is DeliveryVerdict.DELIVER


# Damage within a record that looks whole.


def delivered_or_untracked(lab: Lab) -> None:
    assert lab.deliver("one") == Delivery(DeliveryVerdict.UNTRACKED)


def check_goes_on(lab: Lab) -> None:
    other = lab.other("other")
    other.run("one")
    other.request()
    answers = lab.store.deliver_many([(lab.task_id, "one"), (other.task_id, "one")])
    assert answers[1].verdict is DeliveryVerdict.DELIVER


def finish_is_untracked(lab: Lab) -> None:
    assert lab.finish("one").untracked


def request_is_unreadable(lab: Lab) -> None:
    with pytest.raises(RecordUnreadableError):
        lab.request("delete", "another")


def claim_is_untracked(lab: Lab) -> None:
    assert lab.claim("two", generation=1).verdict is ClaimVerdict.UNTRACKED


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        ({"cause": "BOREDOM"}, delivered_or_untracked),
        ({"cause": "BOREDOM"}, check_goes_on),
        ({"cause": "BOREDOM"}, finish_is_untracked),
        ({"cause": "BOREDOM"}, claim_is_untracked),
        ({"cause": None}, delivered_or_untracked),
        ({"cause": None}, check_goes_on),
        ({"cause": None}, claim_is_untracked),
        ({"kind": "pause"}, finish_is_untracked),
        ({"kind": "pause"}, request_is_unreadable),
        ({"kind": None}, finish_is_untracked),
        ({"kind": None}, request_is_unreadable),
        ({"generation": "nan"}, claim_is_untracked),
        ({"generation": "inf"}, claim_is_untracked),
        ({"generation": "1.5"}, claim_is_untracked),
        ({"v": "nan"}, claim_is_untracked),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_request_that_makes_no_sense_is_damage(
    lab: Lab, harm: dict[str, str | None], check: Callable[[Lab], None]
) -> None:
    """A pending request, or a number, that cannot be understood makes its record a damaged one."""
    lab.run("one")
    lab.request()
    for field, value in harm.items():
        lab.remove(field) if value is None else lab.set(**{field: value})
    check(lab)


def test_an_end_without_an_outcome_does_not_hold_up_its_batch(lab: Lab) -> None:
    """A FINISHING record that does not say as what is damaged, and the others of its batch are settled."""
    lab.run("one")
    lab.request()
    lab.finish("one")
    lab.remove("outcome")
    other = lab.other("other")
    other.finishing()
    lab.store.settle(ALICE, [Ended("one", lab.task_id), Ended("one", other.task_id)])
    assert other.state == "SUCCEEDED"


@pytest.mark.parametrize("outcome", [None, "BROKEN"])
def test_an_end_without_an_outcome_is_left_by_the_janitor(lab: Lab, outcome: str | None) -> None:
    """A FINISHING record that does not say as what is nobody's to complete, and no error to a janitor."""
    lab.finishing(Ending.RETURNED)
    lab.remove("outcome") if outcome is None else lab.set(outcome=outcome)
    assert lab.recover() is None


def test_a_refused_read_is_not_damage(lab: Lab, valkey: EmbeddedServer) -> None:
    """A server that may not or cannot answer a read is an outage, and no reason to delete anything."""
    lab.run("one")
    with Redis(port=valkey.port) as admin:
        user = lab.store.keys.prefix
        admin.acl_setuser(user, enabled=True, nopass=True, commands=["+@all", "-hmget"], keys=["*"])
        store = AgentStore(
            ConnectionPlan(f"redis://{user}:x@{valkey.host}:{valkey.port}/0"), Settings(prefix=user)
        )
        try:
            with pytest.raises(CancelTokenError) as told:
                store.get(lab.task_id)
        finally:
            store.close()
            admin.acl_deluser(user)
    assert isinstance(told.value, StoreUnavailableError)
