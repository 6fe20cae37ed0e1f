"""Every key expires, at its own time; `conftest` sees to it that none of any test stays for ever."""

from __future__ import annotations

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.settings import Settings
from celery_canceltoken.store import AgentStore
from tests.store.conftest import ALICE, BOB, KEPT, Lab

RECORD, REQUEST = 100.0, 1000.0
"""Seconds; what `settings` in `conftest` says."""


def about(seconds: float) -> object:
    """That many seconds, less what a slow machine may take for a test."""
    return pytest.approx(seconds - 10, abs=10.001)


def ttl(lab: Lab, key: str) -> float:
    return float(lab.redis.pttl(key)) / 1000


def test_the_times_are_those_of_the_settings(settings: Settings) -> None:
    """These tests measure what the settings say."""
    assert (settings.record_expires, settings.request_expires) == (RECORD, REQUEST)


def test_a_claimed_record_expires(lab: Lab) -> None:
    """The record of a running task is kept for `canceltoken_record_expires`."""
    lab.run("one")
    assert lab.ttl == about(RECORD)


def test_a_request_for_an_unseen_id_expires_later(lab: Lab) -> None:
    """What waits for a message is kept for `canceltoken_request_expires`."""
    lab.request()
    assert lab.ttl == about(REQUEST)


def test_a_request_keeps_the_record_it_is_made_of(lab: Lab) -> None:
    """A record lives as long as what was asked of its task."""
    lab.enqueued(1)
    lab.request()
    assert lab.ttl == about(REQUEST)


def test_a_refused_request_keeps_nothing(lab: Lab) -> None:
    """A request that was not applied does not prolong anything."""
    lab.final()
    lab.request()
    assert lab.ttl == about(RECORD)


def test_a_repeated_request_keeps_nothing_longer(lab: Lab) -> None:
    """Asking again with the same id changes no expiry."""
    lab.request()
    lab.redis.pexpire(lab.key, 500_000)
    lab.request()
    assert lab.ttl == about(500.0)


def test_a_claim_does_not_shorten_a_requests_time(lab: Lab) -> None:
    """A record that holds a request lives no shorter for being claimed."""
    lab.request()
    lab.claim("one")
    assert lab.ttl == about(REQUEST)


def test_a_claim_prolongs_what_would_expire_before(lab: Lab) -> None:
    """Each execution has the record's whole time before it."""
    lab.enqueued(1)
    lab.redis.pexpire(lab.key, 5_000)
    lab.run("two", generation=1)
    assert lab.ttl == about(RECORD)


def test_a_finish_prolongs_what_would_expire_before(lab: Lab) -> None:
    """An end has the record's whole time before it."""
    lab.run("one")
    lab.redis.pexpire(lab.key, 5_000)
    lab.finish("one")
    assert lab.ttl == about(RECORD)


def test_a_finish_does_not_shorten_a_requests_time(lab: Lab) -> None:
    """A request that is carried over waits its full time."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.REPLACED)
    assert lab.ttl == about(REQUEST)


def test_a_vanished_record_that_is_written_again_expires(lab: Lab) -> None:
    """A repaired record has an expiry like any other."""
    lab.run("one")
    lab.remove()
    lab.finish("one")
    assert lab.ttl == about(RECORD)


@pytest.mark.parametrize("asked", [False, True])
def test_a_final_record_expires(lab: Lab, asked: bool) -> None:
    """An ended task is remembered for `canceltoken_record_expires`, whatever was asked of it."""
    lab.run("one")
    if asked:
        lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)
    lab.settle("one")
    assert lab.ttl == about(RECORD)


def test_settling_again_keeps_nothing_longer(lab: Lab) -> None:
    """A repeated settlement does not prolong anything."""
    lab.final()
    lab.redis.pexpire(lab.key, 50_000)
    lab.settle("one")
    assert lab.ttl == about(50.0)


def test_a_recovered_record_expires(lab: Lab) -> None:
    """What a janitor has taken over is not kept for ever."""
    lab.run("one")
    lab.recover()
    assert lab.ttl == about(RECORD)
    assert ttl(lab, lab.store.keys.owned(BOB)) == about(RECORD)


def test_an_adopted_record_expires(lab: Lab) -> None:
    """Nor is what an agent has kept."""
    lab.run("one")
    lab.adopt("one")
    assert lab.ttl == about(RECORD)


def test_an_index_expires(lab: Lab) -> None:
    """What an agent owns is forgotten after it, if nobody looks."""
    lab.run("one")
    assert ttl(lab, lab.store.keys.owned(ALICE)) == about(RECORD)


def test_a_lease_expires_with_its_duration(lab: Lab, settings: Settings) -> None:
    """Announcing and beating give a lease its whole duration."""
    lease = lab.store.keys.lease(ALICE)
    lab.store.announce(ALICE)
    assert ttl(lab, lease) == about(settings.lease_duration)
    lab.redis.pexpire(lease, 3_000)
    assert lab.store.beat(ALICE)
    assert ttl(lab, lease) == about(settings.lease_duration)


def test_the_list_of_owners_expires(lab: Lab) -> None:
    """A deployment that is gone leaves nothing behind."""
    lab.store.announce(ALICE)
    assert ttl(lab, lab.store.keys.owners) == about(RECORD)


def test_an_inbox_expires(lab: Lab, settings: Settings) -> None:
    """So does the stream of an agent that is gone."""
    inbox = lab.store.inbox_of(ALICE)
    inbox.read()
    inbox.close()
    assert ttl(lab, lab.store.keys.inbox(ALICE)) == about(RECORD)


def test_a_wake_up_leaves_the_inbox_its_expiry(lab: Lab) -> None:
    """What a client appends changes nothing of the stream's time."""
    inbox = lab.store.inbox_of(ALICE)
    inbox.read()
    inbox.close()
    lab.redis.pexpire(lab.store.keys.inbox(ALICE), 50_000)
    lab.run("one")
    lab.request()
    assert lab.redis.xlen(lab.store.keys.inbox(ALICE)) == 2
    assert ttl(lab, lab.store.keys.inbox(ALICE)) == about(50.0)


def test_a_living_agent_keeps_its_keys(lab: Lab) -> None:
    """Now and then an agent pushes the expiry of its own keys and of its records away again."""
    inbox = lab.store.inbox_of(ALICE)
    inbox.read()
    inbox.close()
    lab.store.announce(ALICE)
    lab.run("one")
    keys = lab.store.keys
    kept = [lab.key, keys.inbox(ALICE), keys.owned(ALICE), keys.owners]
    for key in kept:
        lab.redis.pexpire(key, 5_000)
    lab.store.keep(ALICE, [lab.task_id])
    assert [ttl(lab, key) for key in kept] == [about(RECORD)] * 4


def test_keeping_makes_no_keys(lab: Lab) -> None:
    """What is gone is not brought back empty."""
    lab.dies(ALICE)
    lab.dies(BOB)
    lab.store.keep(ALICE, [lab.task_id])
    assert lab.redis.keys(f"{lab.store.keys.prefix}*") == []


def test_a_damaged_record_is_kept_from_nobody(lab: Lab) -> None:
    """A key that holds something else does not keep the others of its agent from being kept."""
    lab.redis.set(lab.key, "not a hash", px=50_000)
    other = lab.other("other")
    other.run("one")
    other.redis.pexpire(other.key, 5_000)
    lab.store.keep(ALICE, [lab.task_id, "missing", other.task_id])
    assert other.ttl == about(RECORD)


def test_an_agent_that_leaves_takes_its_lease_and_inbox_along(lab: Lab) -> None:
    """Leaving in order shows at once, and nobody writes to an agent that has left."""
    inbox = lab.store.inbox_of(ALICE)
    inbox.read()
    lab.store.announce(ALICE)
    lab.run("one")
    lab.store.retire(ALICE)
    inbox.remove()
    inbox.close()
    keys = lab.store.keys
    assert lab.redis.exists(keys.lease(ALICE), keys.inbox(ALICE)) == 0
    assert lab.store.dead([ALICE]) == [ALICE]
    assert lab.owned(ALICE) == {lab.task_id}


def test_a_new_incarnation_has_a_lease_of_its_own(lab: Lab) -> None:
    """An agent that comes back does not revive the lease that had lapsed."""
    lab.store.announce("alice.1")
    lab.redis.delete(lab.store.keys.lease("alice.1"))
    lab.store.announce("alice.2")
    assert lab.store.dead(["alice.1", "alice.2"]) == ["alice.1"]


def test_all_keys_are_the_prefixes(store: AgentStore) -> None:
    """Whatever is stored lies under the configured prefix."""
    keys = store.keys
    names = [
        keys.record("7"),
        keys.lease(ALICE),
        keys.inbox(ALICE),
        keys.owned(ALICE),
        keys.owners,
        keys.stopped("7"),
        keys.mark("7"),
        keys.members("7"),
        keys.standing_orders,
        keys.outbox,
        keys.listed("state", "7"),
        keys.listed("name", "7"),
    ]
    assert all(name.startswith(f"{keys.prefix}:") for name in names)
    assert len(set(names)) == len(names)


def test_keeping_does_not_shorten_a_requests_time(lab: Lab) -> None:
    """A heartbeat never makes a record expire sooner."""
    lab.run("one")
    lab.request()
    lab.store.keep(ALICE, [lab.task_id])
    assert lab.ttl == about(REQUEST)


# What waits, and what is asked of those to come.


@pytest.mark.parametrize("way", ["tracked", "retried", "requeued", "rescheduled"])
def test_what_waits_for_its_message_is_kept_as_long_as_a_request(lab: Lab, way: str) -> None:
    """A task that is in its queue for days has a record when a worker comes to it."""
    if way == "tracked":
        lab.enqueue()
    elif way == "retried":
        lab.enqueued(1)
    else:
        lab.final(Ending.RAISED, message=KEPT)
        lab.request("requeue", wanted_eta=1 if way == "rescheduled" else None)
    assert lab.ttl == about(REQUEST)


def test_leaving_a_final_state_keeps_the_record(lab: Lab) -> None:
    """A record that was about to expire is not lost when its task is requeued."""
    lab.final(Ending.RAISED, message=KEPT)
    lab.redis.pexpire(lab.key, 5_000)
    lab.request("requeue")
    assert lab.ttl == about(REQUEST)


def test_a_new_life_of_an_ended_id_keeps_the_record(lab: Lab) -> None:
    """So when it is sent again."""
    lab.final()
    lab.redis.pexpire(lab.key, 5_000)
    lab.run("two", send="again")
    assert lab.ttl == about(RECORD)


FAR = 5000.0
"""Seconds; further ahead than anything is kept."""


def ahead(lab: Lab) -> int:
    return int(lab.redis.time()[0] + FAR) * 1_000_000


@pytest.mark.parametrize("way", ["tracked", "rescheduled", "finished", "settled", "recovered"])
def test_what_waits_for_a_time_is_kept_until_then(lab: Lab, way: str) -> None:
    """And for the time that a record is kept after that."""
    if way == "tracked":
        lab.enqueue(eta=str(ahead(lab)))
    elif way == "rescheduled":
        lab.final(Ending.RAISED, message=KEPT)
        lab.request("requeue", wanted_eta=ahead(lab))
    else:
        lab.run("one", message=KEPT)
        if way == "settled":
            lab.finish("one")
        lab.request("requeue", wanted_eta=ahead(lab))
        if way == "finished":
            lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
        elif way == "settled":
            lab.settle()
        else:
            lab.recover()
    assert lab.state == "SCHEDULED"
    assert lab.ttl == about(FAR + RECORD)


def test_a_request_of_what_waits_for_a_time_is_kept_beyond_it(lab: Lab) -> None:
    """A request never expires before the task to which it was made may start."""
    lab.enqueue(eta=str(ahead(lab)))
    lab.request()
    assert lab.ttl == about(FAR + REQUEST)


def test_a_time_that_is_over_prolongs_nothing(lab: Lab) -> None:
    """An eta in the past is as good as none."""
    lab.enqueue(eta="1")
    assert lab.ttl == about(REQUEST)


def test_an_end_is_kept_for_the_records_time(lab: Lab) -> None:
    """However long the task had waited before."""
    lab.enqueue(eta=str(ahead(lab)))
    lab.run("one")
    lab.finish("one")
    lab.settle()
    assert lab.ttl == about(RECORD)


def test_marks_and_members_are_kept_as_long_as_a_request(lab: Lab) -> None:
    """What is asked of a workflow waits as long for its tasks as what is asked of one task."""
    lab.mark()
    lab.other("sent").enqueue(root="root")
    lab.other("denied").claim("one", root="root")
    assert ttl(lab, lab.store.keys.mark("root")) == about(REQUEST)
    assert ttl(lab, lab.store.keys.members("root")) == about(REQUEST)


def test_standing_orders_are_kept_as_long_as_the_longest(lab: Lab) -> None:
    """A short one does not end those that were given before."""
    lab.stand("long", name="shop.export", seconds=600)
    lab.stand("short", name="shop.export", seconds=60)
    assert ttl(lab, lab.store.keys.standing_orders) == about(600)


def test_the_outbox_is_kept_as_long_as_what_is_in_it(lab: Lab) -> None:
    """What is to be sent is found until its record is gone."""
    lab.requeued()
    assert ttl(lab, lab.store.keys.outbox) == about(REQUEST)
    other = lab.other("other")
    other.final(Ending.RAISED, message=KEPT)
    other.request("requeue", wanted_eta=ahead(lab))
    assert ttl(lab, lab.store.keys.outbox) == about(FAR + RECORD)


def test_lists_are_kept_as_long_as_what_is_in_them(lab: Lab) -> None:
    """By state, name and worker."""
    lab.run("one")
    keys = lab.store.keys
    for field, value in (("state", "PROCESSING"), ("name", "shop.export"), ("worker", "celery@alice")):
        assert ttl(lab, keys.listed(field, value)) == about(RECORD)
    lab.other("other").enqueue(eta=str(ahead(lab)))
    assert ttl(lab, keys.listed("state", "SCHEDULED")) == about(FAR + RECORD)
    assert ttl(lab, keys.listed("name", "shop.export")) == about(FAR + RECORD)


def test_a_list_is_not_cut_short_by_what_enters_it_later(lab: Lab) -> None:
    """The longest that was promised holds."""
    lab.enqueue(eta=str(ahead(lab)))
    lab.other("other").run("one")
    assert ttl(lab, lab.store.keys.listed("name", "shop.export")) == about(FAR + RECORD)
