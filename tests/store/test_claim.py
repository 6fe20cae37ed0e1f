"""The claim table: may this copy of the message run?"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.store.answers import ClaimAnswer, ClaimVerdict, DeliveryVerdict
from tests.store.conftest import ALICE, BOB, Lab

HISTORY = re.compile(r"h\d+$|changes$")
KNOWN = 3
"""The generation of the record that a copy meets, where there is one."""
COPIES = {"lower": KNOWN - 1, "equal": KNOWN, "higher": KNOWN + 1}


def nothing(lab: Lab) -> None:
    """Nobody has seen the id."""


def enqueued(lab: Lab) -> None:
    lab.enqueued(KNOWN)


def enqueued_with_outbox(lab: Lab) -> None:
    lab.enqueued(KNOWN)
    lab.set(outbox="1")


def processing(lab: Lab) -> None:
    lab.run("one", generation=KNOWN)


def finishing(lab: Lab) -> None:
    lab.finishing(generation=KNOWN)


def final(lab: Lab) -> None:
    lab.final(generation=KNOWN)


def run(generation: int, attempt: int) -> ClaimAnswer:
    return ClaimAnswer(ClaimVerdict.RUN, attempt=attempt, generation=generation)


def skip(why: str) -> ClaimAnswer:
    return ClaimAnswer(ClaimVerdict.SKIP, why=why)


OWNED = ClaimAnswer(ClaimVerdict.OWNED, execution_id="one", owner=ALICE)
SUCCESSOR = run(KNOWN + 1, 2)
DEAD = ("one", ALICE)

TABLE = [
    (nothing, "lower", run(KNOWN - 1, 1)),
    (nothing, "equal", run(KNOWN, 1)),
    (nothing, "higher", run(KNOWN + 1, 1)),
    (enqueued, "lower", skip("stale")),
    (enqueued, "equal", run(KNOWN, 2)),
    (enqueued, "higher", run(KNOWN + 1, 2)),
    (enqueued_with_outbox, "lower", run(KNOWN, 2)),
    (enqueued_with_outbox, "equal", run(KNOWN, 2)),
    (enqueued_with_outbox, "higher", run(KNOWN + 1, 2)),
    (processing, "lower", OWNED),
    (processing, "equal", OWNED),
    (processing, "higher", SUCCESSOR),
    (finishing, "lower", skip("finishing")),
    (finishing, "equal", skip("finishing")),
    (finishing, "higher", skip("finishing")),
    (final, "lower", skip("final")),
    (final, "equal", skip("final")),
    (final, "higher", skip("final")),
]
ROWS = pytest.mark.parametrize(
    ("meet", "copy", "answer"), [pytest.param(*row, id=f"{row[0].__name__}-{row[1]}") for row in TABLE]
)
RUNNING_ROWS = pytest.mark.parametrize(
    ("meet", "copy"),
    [
        pytest.param(meet, copy, id=f"{meet.__name__}-{copy}")
        for meet, copy, answer in TABLE
        if answer.verdict is ClaimVerdict.RUN
    ],
)
Meet = Callable[[Lab], None]


@ROWS
def test_each_row(lab: Lab, meet: Meet, copy: str, answer: ClaimAnswer) -> None:
    """A copy of the same send is answered as the table says."""
    meet(lab)
    assert lab.claim("two", owner=BOB, generation=COPIES[copy]) == answer


@ROWS
def test_the_same_claim_gets_the_same_answer(lab: Lab, meet: Meet, copy: str, answer: ClaimAnswer) -> None:
    """A claim whose answer was lost may be made again, and changes nothing the second time."""
    meet(lab)
    lab.claim("two", owner=BOB, generation=COPIES[copy])
    with lab.unchanged():
        assert lab.claim("two", owner=BOB, generation=COPIES[copy]) == answer


@ROWS
def test_who_has_the_id_afterwards(lab: Lab, meet: Meet, copy: str, answer: ClaimAnswer) -> None:
    """An execution that may run owns the record; one that may not leaves it as it was."""
    meet(lab)
    before = lab.fields
    lab.claim("two", owner=BOB, generation=COPIES[copy])
    if answer.verdict is ClaimVerdict.RUN:
        fields = lab.fields
        assert (fields["state"], fields["execution"], fields["owner"]) == ("PROCESSING", "two", BOB)
        assert (fields["generation"], fields["attempt"]) == (str(answer.generation), str(answer.attempt))
        assert "outbox" not in fields
        assert lab.task_id in lab.owned(BOB)
    else:
        assert lab.fields == before
        assert lab.owned(BOB) == set()


@RUNNING_ROWS
@pytest.mark.parametrize(
    ("kind", "cause", "outcome"),
    [("revoke", Cause.REVOKED, "REVOKED"), ("delete", Cause.DELETED, "DELETED")],
)
def test_a_pending_request_denies(
    lab: Lab, meet: Meet, copy: str, kind: str, cause: Cause, outcome: str
) -> None:
    """Wherever the table says run, a task that was revoked or deleted before does not start."""
    meet(lab)
    assert lab.request(kind).applied
    denied = lab.claim("two", owner=BOB, generation=COPIES[copy])
    assert denied == ClaimAnswer(
        ClaimVerdict.DENIED, cancellation=Cancellation(cause, "customer left", "alice")
    )
    fields = lab.fields
    assert (fields["state"], fields["outcome"], fields["answer"]) == ("FINISHING", outcome, "effective")
    assert (fields["execution"], fields["owner"]) == ("two", BOB)
    assert "stopped_at" in fields
    assert lab.task_id in lab.owned(BOB)


@RUNNING_ROWS
def test_a_denial_is_repeated(lab: Lab, meet: Meet, copy: str) -> None:
    """A denied execution that asks again is denied again, and nothing else changes."""
    meet(lab)
    lab.request()
    first = lab.claim("two", owner=BOB, generation=COPIES[copy])
    with lab.unchanged():
        assert lab.claim("two", owner=BOB, generation=COPIES[copy]) == first


def test_a_denied_task_denies_its_other_copies(lab: Lab) -> None:
    """Once refused, no copy of the message runs, before or after the end is settled."""
    lab.request()
    lab.claim("one")
    assert lab.claim("two", owner=BOB) == skip("finishing")
    lab.settle("one")
    assert lab.claim("two", owner=BOB) == skip("final")
    assert lab.state == "REVOKED"


@RUNNING_ROWS
def test_a_pending_requeue_does_not_deny(lab: Lab, meet: Meet, copy: str) -> None:
    """A wish to start again is met by starting."""
    meet(lab)
    if lab.request("requeue").applied:
        lab.run("two", owner=BOB, generation=COPIES[copy])
        assert "request" not in lab.fields


# A dead owner.


@pytest.mark.parametrize("copy", COPIES)
def test_a_dead_owner_is_taken_over_from(lab: Lab, copy: str) -> None:
    """Whoever has seen the owner dead runs as the record's next generation, whatever its copy's own."""
    processing(lab)
    assert lab.claim("two", owner=BOB, generation=COPIES[copy], take_over_from=DEAD) == SUCCESSOR
    fields = lab.fields
    assert (fields["state"], fields["execution"], fields["owner"]) == ("PROCESSING", "two", BOB)


def test_a_takeover_is_repeated(lab: Lab) -> None:
    """A takeover whose answer was lost may be tried again, and is not counted twice."""
    processing(lab)
    lab.claim("two", owner=BOB, generation=KNOWN, take_over_from=DEAD)
    with lab.unchanged():
        assert lab.claim("two", owner=BOB, generation=KNOWN, take_over_from=DEAD) == SUCCESSOR


@pytest.mark.parametrize(
    "seen", [("one", "alice.2"), ("one", BOB), ("other", ALICE), ("one", ""), ("", ALICE)]
)
def test_a_takeover_from_anybody_else_is_refused(lab: Lab, seen: tuple[str, str]) -> None:
    """Execution and owner must both still be the ones that were seen to be dead."""
    processing(lab)
    with lab.unchanged():
        assert lab.claim("two", owner=BOB, generation=KNOWN, take_over_from=seen) == OWNED


def test_a_takeover_comes_too_late_for_an_adopted_execution(lab: Lab) -> None:
    """An owner that came back under a new incarnation keeps what nobody had taken."""
    processing(lab)
    assert lab.adopt("one", ALICE, "alice.2")
    answer = lab.claim("two", owner=BOB, generation=KNOWN, take_over_from=DEAD)
    assert (answer.verdict, answer.owner) == (ClaimVerdict.OWNED, "alice.2")


def test_of_two_takeovers_one_succeeds(lab: Lab) -> None:
    """Two that have seen the same owner dead do not both run."""
    processing(lab)
    lab.run("two", owner=BOB, generation=KNOWN, take_over_from=DEAD)
    third = lab.claim("three", owner="carol.1", generation=KNOWN, take_over_from=DEAD)
    assert (third.verdict, third.execution_id, third.owner) == (ClaimVerdict.OWNED, "two", BOB)


@pytest.mark.parametrize(("kind", "outcome"), [("revoke", "REVOKED"), ("delete", "DELETED")])
def test_a_takeover_of_a_revoked_task_is_denied(lab: Lab, kind: str, outcome: str) -> None:
    """What a dead worker was asked to stop is not started again by another."""
    processing(lab)
    lab.request(kind)
    answer = lab.claim("two", owner=BOB, generation=KNOWN, take_over_from=DEAD)
    assert answer.verdict is ClaimVerdict.DENIED
    assert lab.fields["outcome"] == outcome


@pytest.mark.parametrize("meet", [finishing, final])
def test_what_has_ended_is_not_taken_over(lab: Lab, meet: Meet) -> None:
    """A decided outcome is completed by others, never run again."""
    meet(lab)
    with lab.unchanged():
        answer = lab.claim("two", owner=BOB, generation=KNOWN, take_over_from=DEAD)
    assert answer.verdict is ClaimVerdict.SKIP


# Another send: a new life of the id.


@pytest.mark.parametrize("generation", [0, KNOWN, KNOWN + 1])
def test_an_ended_id_that_is_sent_again_has_a_new_life(lab: Lab, generation: int) -> None:
    """The same id sent again on purpose runs, and its attempts are counted from 1."""
    final(lab)
    assert lab.claim("two", owner=BOB, send="again", generation=generation) == run(generation, 1)
    assert lab.fields["send"] == "again"


@pytest.mark.parametrize("ending", [Ending.RETURNED, Ending.RAISED, Ending.IGNORED, Ending.REJECTED])
def test_every_final_state_may_be_followed_by_a_new_life(lab: Lab, ending: Ending) -> None:
    """However an id ended, a new send of it runs, and a stale copy of the old one does not."""
    lab.final(ending)
    assert lab.claim("two") == skip("final")
    assert lab.claim("two", send="again") == run(0, 1)


def test_a_new_life_knows_nothing_of_the_old_one(lab: Lab) -> None:
    """Request, times, value and error of the earlier life are gone; only its history remembers them."""
    lab.run("one")
    lab.request()
    lab.deliver("one")
    lab.observe("one")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, value="[1]", error="ValueError()")
    lab.settle("one")
    started = lab.fields["started_at"]
    lab.run("two", send="again")
    fields = {name: value for name, value in lab.fields.items() if not HISTORY.match(name)}
    assert fields.pop("started_at") >= started
    assert fields == {
        "v": "1",
        "state": "PROCESSING",
        "execution": "two",
        "owner": ALICE,
        "worker": "celery@alice",
        "name": "shop.export",
        "takes_token": "1",
        "late_ack": "0",
        "send": "again",
        "generation": "0",
        "attempt": "1",
    }


def test_an_enqueued_id_that_is_sent_again_has_a_new_life(lab: Lab) -> None:
    """A new send overtakes a retry that waits; its generations are counted by its own messages."""
    enqueued(lab)
    assert lab.claim("two", send="again") == run(0, 1)
    assert lab.claim("three", generation=KNOWN).verdict is ClaimVerdict.OWNED


def test_a_new_life_waits_for_the_running_one(lab: Lab) -> None:
    """While the old life runs, a new send is told who has the id, and that it is another life."""
    processing(lab)
    answer = lab.claim("two", owner=BOB, send="again", generation=KNOWN + 1)
    assert answer == ClaimAnswer(ClaimVerdict.OWNED, execution_id="one", owner=ALICE, same_send=False)


def test_a_new_life_waits_for_the_end_to_be_settled(lab: Lab) -> None:
    """A body that has ended keeps its id until its result is written."""
    finishing(lab)
    with lab.unchanged():
        answer = lab.claim("two", owner=BOB, send="again", take_over_from=DEAD)
    assert answer == ClaimAnswer(ClaimVerdict.OWNED, execution_id="one", owner=ALICE, same_send=False)


def test_a_new_life_may_take_over_from_a_dead_owner(lab: Lab) -> None:
    """A dead worker does not keep an id for ever from whoever sends it again."""
    processing(lab)
    assert lab.claim("two", owner=BOB, send="again", take_over_from=DEAD) == run(0, 1)


def test_a_pending_revoke_is_used_up_by_a_new_life(lab: Lab) -> None:
    """A revoke of an id that waits denies whichever message comes first, once."""
    enqueued(lab)
    lab.request()
    assert lab.claim("two", send="again").verdict is ClaimVerdict.DENIED
    lab.settle("two")
    lab.run("three", send="once more")


# No header: another program has published the message.


def test_a_message_without_a_header_runs(lab: Lab) -> None:
    """What another program has sent is as good as our own."""
    assert lab.claim("one", send="") == run(0, 1)
    assert "send" not in lab.fields


def test_an_ended_id_without_a_header_runs_again(lab: Lab) -> None:
    """Sent again without a header, an id has a new life."""
    lab.final(send="")
    assert lab.claim("two", send="") == run(0, 1)


@pytest.mark.parametrize("earlier", ["", "send"])
def test_a_redelivered_copy_without_a_header_is_stale(lab: Lab, earlier: str) -> None:
    """On an ended id the broker's word is all there is to tell a copy from a new life."""
    lab.final(send=earlier)
    with lab.unchanged():
        assert lab.claim("two", send="", redelivered=True) == skip("final")


@pytest.mark.parametrize("meet", [nothing, enqueued, processing])
def test_the_redelivered_flag_plays_no_part_otherwise(lab: Lab, meet: Meet) -> None:
    """Only an ended id without a header looks at what the broker says."""
    meet(lab)
    known = int(lab.fields.get("generation", 0))
    twin = lab.other("twin")
    meet(twin)
    plain = lab.claim("two", generation=known)
    assert twin.claim("two", generation=known, redelivered=True) == plain


def test_a_redelivered_new_life_runs(lab: Lab) -> None:
    """With a header, a redelivered first copy of a new send is not mistaken for a stale one."""
    final(lab)
    assert lab.claim("two", send="again", redelivered=True) == run(0, 1)


def test_a_second_message_without_a_header_meets_the_running_one(lab: Lab) -> None:
    """Without headers two messages cannot be told apart: the second is a duplicate."""
    lab.run("one", send="")
    assert lab.claim("two", owner=BOB, send="") == OWNED


# What a claim writes.


def test_a_claim_tells_who_runs_what(lab: Lab) -> None:
    """The record names task, worker, owner and execution, and since when."""
    lab.run("one", owner=BOB, late_ack=True)
    record = lab.store.get(lab.task_id)
    assert record is not None
    assert (record.name, record.worker, record.owner) == ("shop.export", "celery@bob", BOB)
    assert (record.execution_id, record.takes_token) == ("one", True)
    assert record.started_at is not None
    assert lab.fields["late_ack"] == "1"


def test_attempts_are_counted(lab: Lab) -> None:
    """Each further execution of a send is one attempt more."""
    lab.run("one")
    for generation, execution, before in ((1, "two", "one"), (2, "three", "two"), (3, "four", "three")):
        lab.finish(before, Ending.RETRIED)
        assert lab.claim(execution, generation=generation).attempt == generation + 1


def test_a_successor_before_its_predecessors_end_takes_over(lab: Lab) -> None:
    """A retry's copy that is claimed before the body has ended owns the id from then on."""
    lab.run("one")
    lab.run("two", owner=BOB, generation=1)
    assert not lab.finish("one", Ending.RETRIED).recorded
    assert lab.fields["execution"] == "two"


def test_a_retrys_next_run_begins_with_a_clean_record(lab: Lab) -> None:
    """How the execution before ended does not show in the record of the one that runs."""
    lab.run("one")
    lab.finish("one", Ending.RETRIED, value="[1]", error="ValueError()", observed_ago=0.1)
    lab.run("two", generation=1)
    assert {name for name in lab.fields if not HISTORY.match(name)} == {
        *("v", "state", "execution", "owner", "worker", "name", "takes_token", "late_ack", "send"),
        *("generation", "attempt", "started_at"),
    }


def test_a_successor_clears_the_way_for_its_own_ladder(lab: Lab) -> None:
    """What an earlier execution of the send was asked does not show in the next."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.RETURNED)
    lab.settle("one")
    lab.run("two", send="again")
    assert lab.deliver("two").verdict is DeliveryVerdict.NONE


# A body that runs already.


def test_a_lost_record_is_written_again(lab: Lab) -> None:
    """A running body whose record has vanished owns the id again."""
    lab.run("one", generation=KNOWN)
    lab.remove()
    assert lab.claim("one", generation=KNOWN, running_attempt=1) == run(KNOWN, 1)
    assert (lab.state, lab.fields["execution"]) == ("PROCESSING", "one")


@pytest.mark.parametrize(("kind", "cause"), [("revoke", Cause.REVOKED), ("delete", Cause.DELETED)])
def test_a_running_body_is_not_denied_but_told(lab: Lab, kind: str, cause: Cause) -> None:
    """A request made while the record was lost is kept for the body that runs."""
    lab.run("one")
    lab.remove()
    lab.request(kind)
    lab.run("one", running_attempt=1)
    assert lab.deliver("one").cancellation == Cancellation(cause, "customer left", "alice")


def test_writing_again_what_is_there_changes_nothing(lab: Lab) -> None:
    """The record of a running body is not touched by a needless repair."""
    lab.run("one")
    lab.request()
    lab.deliver("one")
    with lab.unchanged():
        lab.run("one", running_attempt=1)


def test_a_running_body_does_not_take_the_id_from_another(lab: Lab) -> None:
    """A repair that comes too late is told whose the id is."""
    lab.run("two", owner=BOB)
    with lab.unchanged():
        answer = lab.claim("one", running_attempt=1)
    assert (answer.verdict, answer.execution_id, answer.owner) == (ClaimVerdict.OWNED, "two", BOB)


def test_a_body_that_started_without_the_store_is_written_over_a_retry(lab: Lab) -> None:
    """The copy that a retry had sent, started while the store was away, gets the record when it is back."""
    lab.enqueued(1)
    assert lab.claim("two", owner=BOB, generation=1, running_attempt=1) == run(1, 2)


def test_a_lost_record_is_written_again_with_its_attempt(lab: Lab) -> None:
    """After data loss the third attempt is still the third."""
    lab.enqueued(1)
    assert lab.run("two", generation=1).attempt == 2
    lab.remove()
    assert lab.claim("two", generation=1, running_attempt=2).attempt == 2


@pytest.mark.parametrize("meet", [processing, finishing, final, enqueued])
def test_a_running_body_does_not_take_back_what_it_has_lost(lab: Lab, meet: Meet) -> None:
    """A body that others have overtaken does not get its id again by a repair, wherever the id is by now."""
    meet(lab)
    with lab.unchanged():
        answer = lab.claim("zero", generation=KNOWN - 1, running_attempt=1)
    assert answer.verdict in (ClaimVerdict.OWNED, ClaimVerdict.SKIP)


def test_a_running_body_without_a_header_does_not_take_back_what_has_ended(lab: Lab) -> None:
    """Without a header as well, what another execution has ended stays ended."""
    lab.run("one", send="")
    lab.run("two", owner=BOB, send="", take_over_from=("one", ALICE))
    lab.finish("two")
    lab.settle("two", owner=BOB)
    with lab.unchanged():
        lab.claim("one", send="", running_attempt=1)


def test_a_retry_of_a_message_without_a_header_runs(lab: Lab) -> None:
    """What another program has sent may be retried: the copy of the next generation is wanted."""
    lab.run("one", send="")
    lab.finish("one", Ending.RETRIED)
    assert lab.claim("two", send="", generation=1) == run(1, 2)
