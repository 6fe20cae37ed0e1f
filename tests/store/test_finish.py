"""The body has ended: the outcome is decided, or somebody else's to decide."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending, MessageFate, Verdict, decide
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import ClaimVerdict, Enqueued, FinishAnswer
from tests.store.conftest import ALICE, BOB, Lab

ENDINGS = pytest.mark.parametrize("ending", list(Ending), ids=lambda ending: ending.value)
NOT_MINE = FinishAnswer(recorded=False)
WANTED = Cancellation(Cause.REVOKED, "customer left", "alice")


def expect(lab: Lab, verdict: Verdict, generation: int = 0) -> None:
    """The record is what the verdict says."""
    fields = lab.fields
    assert verdict.state is not None
    if verdict.state is State.ENQUEUED:
        assert fields["state"] == "ENQUEUED"
        assert "outcome" not in fields
        assert fields["generation"] == str(generation + verdict.next_generation)
    else:
        assert (fields["state"], fields["outcome"]) == ("FINISHING", verdict.state.value)
        assert fields["generation"] == str(generation)
    assert "stopped_at" in fields


@ENDINGS
def test_each_ending_without_a_cause(lab: Lab, ending: Ending) -> None:
    """With nothing asked, the record becomes what the outcome table says for the ending."""
    lab.run("one", generation=4)
    verdict = decide(ending, None, observed=False)
    assert lab.finish("one", ending) == FinishAnswer(recorded=True, verdict=verdict)
    expect(lab, verdict, generation=4)


@ENDINGS
@pytest.mark.parametrize("observed", [False, True], ids=["unseen", "observed"])
@pytest.mark.parametrize(
    ("kind", "cause"),
    [("revoke", Cause.REVOKED), ("delete", Cause.DELETED), ("requeue", Cause.REQUEUED)],
)
def test_each_ending_with_a_pending_request(
    lab: Lab, kind: str, cause: Cause, observed: bool, ending: Ending
) -> None:
    """What is asked of a task by its end picks the row and is answered by it, delivered or not."""
    lab.run("one")
    lab.request(kind)
    verdict = decide(ending, cause, observed)
    answer = lab.finish("one", ending, observed=observed)
    outbox = Enqueued(1) if verdict.message is MessageFate.REPUBLISH else None
    assert answer == FinishAnswer(True, False, verdict, Cancellation(cause, "customer left", "alice"), outbox)
    expect(lab, verdict)
    expected = {"carried": "pending"}.get(verdict.answer.value, verdict.answer.value)
    assert lab.fields["answer"] == expected


@ENDINGS
def test_the_same_end_is_told_again(lab: Lab, ending: Ending) -> None:
    """A finish whose answer was lost may be repeated, and changes nothing the second time."""
    lab.run("one")
    first = lab.finish("one", ending, value="[1]", observed_ago=0.5)
    with lab.unchanged():
        assert lab.finish("one", ending, value="[1]", observed_ago=0.5) == first


@ENDINGS
def test_the_same_end_of_a_revoked_task_is_told_again(lab: Lab, ending: Ending) -> None:
    """A repeated finish does not answer a request twice, and picks the same row."""
    lab.run("one")
    lab.request()
    first = lab.finish("one", ending, cause=Cause.REVOKED, observed=True, cancellation=WANTED)
    with lab.unchanged():
        again = lab.finish("one", ending, cause=Cause.REVOKED, observed=True, cancellation=WANTED)
        assert again == first


@ENDINGS
def test_the_same_end_of_a_task_that_was_not_told_is_told_again(lab: Lab, ending: Ending) -> None:
    """The row that an undelivered request has picked is picked again, though the body knew of nothing."""
    lab.run("one")
    lab.request()
    first = lab.finish("one", ending)
    with lab.unchanged():
        assert lab.finish("one", ending) == first


def test_an_end_that_is_told_again_sticks_to_its_row(lab: Lab) -> None:
    """A decided outcome is not decided otherwise by a second, different account of it."""
    lab.run("one")
    lab.finish("one", Ending.RETURNED)
    with lab.unchanged():
        lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, value="[2]")
    assert lab.fields["outcome"] == "SUCCEEDED"


# Fencing.


@ENDINGS
def test_only_the_owner_finishes(lab: Lab, ending: Ending) -> None:
    """An execution that was taken over writes nothing, however it ends."""
    lab.run("one")
    lab.run("two", owner=BOB, generation=1)
    with lab.unchanged():
        assert lab.finish("one", ending) == NOT_MINE


@ENDINGS
def test_a_stranger_finishes_nothing(lab: Lab, ending: Ending) -> None:
    """An execution that never claimed the id writes nothing."""
    lab.run("one")
    with lab.unchanged():
        assert lab.finish("stranger", ending) == NOT_MINE


@pytest.mark.parametrize("settled", [False, True])
def test_an_end_does_not_follow_an_end(lab: Lab, settled: bool) -> None:
    """After another execution has ended the id, nobody else's end counts."""
    lab.finishing()
    if settled:
        lab.settle("one")
    with lab.unchanged():
        assert lab.finish("stranger") == NOT_MINE


def test_a_recovered_execution_finishes_nothing(lab: Lab) -> None:
    """A body that its janitor has buried does not come back to life."""
    lab.run("one")
    lab.recover()
    with lab.unchanged():
        assert lab.finish("one") == NOT_MINE


def test_a_predecessor_finishes_nothing_after_its_successors_retry(lab: Lab) -> None:
    """A waiting id is not its former owner's any more."""
    lab.run("one")
    lab.run("two", owner=BOB, generation=1)
    lab.finish("two", Ending.RETRIED)
    with lab.unchanged():
        assert lab.finish("one") == NOT_MINE


@pytest.mark.parametrize("later", [Ending.RETURNED, Ending.RETRIED])
def test_an_execution_of_an_earlier_life_finishes_nothing(lab: Lab, later: Ending) -> None:
    """Who has lost its id to a new life does not come back when that one has ended, or waits for a retry."""
    lab.run("one")
    lab.run("two", owner=BOB, send="again", take_over_from=("one", ALICE))
    lab.finish("two", later)
    lab.settle("two", owner=BOB)
    with lab.unchanged():
        assert lab.finish("one") == NOT_MINE


def test_the_owner_finishes_even_where_its_lease_has_lapsed(lab: Lab) -> None:
    """As long as nobody has taken the id, its owner's word counts."""
    lab.run("one", owner="nobody.9")
    assert lab.finish("one").recorded


@pytest.mark.parametrize("cause", [Cause.SUPERSEDED, Cause.LEASE_LOST])
def test_an_execution_that_was_told_to_leave_writes_nothing(lab: Lab, cause: Cause) -> None:
    """Who knows that the id is another's leaves even a record that still names it alone."""
    lab.run("one")
    with lab.unchanged():
        assert lab.finish("one", Ending.CANCELLED, cause=cause) == NOT_MINE


# Details of what is written.


def test_value_and_error_are_kept(lab: Lab) -> None:
    """What a body returned or raised goes into the record."""
    lab.run("one")
    lab.finish("one", value='{"rows": 7}', error="ValueError('no')")
    record = lab.store.get(lab.task_id)
    assert record is not None
    assert (record.value, record.error) == ('{"rows": 7}', "ValueError('no')")


def test_a_large_value_of_any_script_is_kept(lab: Lab) -> None:
    """Size and letters make no difference."""
    lab.run("one")
    value = json.dumps("客🚪" * 10_000, ensure_ascii=False)
    lab.finish("one", value=value)
    assert lab.fields["value"] == value


@pytest.mark.parametrize("ago", [0.0, 0.25, 3.0, 4000.0])
def test_the_time_of_an_observation_is_counted_back(lab: Lab, ago: float) -> None:
    """When the body saw its token is told in the store's time, exactly."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, observed_ago=ago)
    fields = lab.fields
    assert int(fields["stopped_at"]) - int(fields["observed_at"]) == int(ago * 1_000_000)


def test_an_observation_that_is_known_keeps_its_time(lab: Lab) -> None:
    """What was written as it happened is better than what is counted back."""
    lab.run("one")
    lab.request()
    lab.observe("one")
    observed = lab.fields["observed_at"]
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, observed_ago=5.0)
    assert lab.fields["observed_at"] == observed


def test_what_was_not_observed_has_no_time(lab: Lab) -> None:
    """A body that never looked leaves no mark."""
    lab.run("one")
    lab.request()
    lab.finish("one")
    assert "observed_at" not in lab.fields


def test_a_cancellation_of_the_workers_is_written(lab: Lab) -> None:
    """Where no request explains the end, the record says what tripped the token."""
    lab.run("one")
    why = Cancellation(Cause.TIMEOUT, "after 5 s", "celery@alice")
    answer = lab.finish("one", Ending.CANCELLED, cause=Cause.TIMEOUT, observed=True, cancellation=why)
    assert answer.cancellation == why
    record = lab.store.get(lab.task_id)
    assert record is not None
    assert (record.cause, record.reason, record.actor) == (Cause.TIMEOUT, "after 5 s", "celery@alice")


def test_a_request_explains_the_end_before_the_worker_does(lab: Lab) -> None:
    """Where something was asked, its words stay, whatever tripped the token first."""
    lab.run("one")
    lab.request()
    local = Cancellation(Cause.TIMEOUT, "after 5 s")
    answer = lab.finish("one", Ending.CANCELLED, cause=Cause.TIMEOUT, observed=True, cancellation=local)
    assert answer.cancellation == WANTED
    assert lab.fields["cause"] == "REVOKED"
    assert lab.fields["outcome"] == "REVOKED"


def test_an_ordinary_end_has_no_cause(lab: Lab) -> None:
    """A task that nobody stopped shows none."""
    lab.run("one")
    assert lab.finish("one").cancellation is None
    assert "cause" not in lab.fields


def test_a_retry_makes_room_for_the_next_execution(lab: Lab) -> None:
    """After a retry the id waits as the next generation, and the retry's copy runs."""
    lab.run("one")
    lab.finish("one", Ending.RETRIED)
    assert (lab.state, lab.fields["generation"]) == ("ENQUEUED", "1")
    assert lab.claim("stale").why == "stale"
    lab.run("two", generation=1)


@pytest.mark.parametrize("ending", [Ending.REJECTED_BACK, Ending.CHILD_LOST_BACK])
def test_a_message_that_goes_back_to_the_broker_runs_again(lab: Lab, ending: Ending) -> None:
    """Where the broker delivers the very same message again, its generation is still wanted."""
    lab.run("one")
    lab.finish("one", ending)
    lab.run("two", redelivered=True)


@pytest.mark.parametrize("ending", [Ending.REJECTED_BACK, Ending.CHILD_LOST_BACK])
@pytest.mark.parametrize("way", ["takeover", "new life"])
def test_a_message_with_a_lower_generation_that_goes_back_to_the_broker_runs_again(
    lab: Lab, ending: Ending, way: str
) -> None:
    """A copy taken over from the dead, or run in place of a retry, is still wanted when it comes back."""
    if way == "takeover":
        send = "send"
        lab.run("one", late_ack=True)
        lab.run("two", owner=BOB, redelivered=True, late_ack=True, take_over_from=("one", ALICE))
    else:
        send = "again"
        lab.enqueued(1)
        lab.run("two", owner=BOB, send=send)
    lab.finish("two", ending)
    assert lab.claim("three", send=send, redelivered=True).verdict is ClaimVerdict.RUN


def test_a_revoked_retry_does_not_run_again(lab: Lab) -> None:
    """A body that retries instead of stopping has its copy dropped."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.RETRIED)
    assert lab.fields["outcome"] == "REVOKED"
    assert lab.claim("two", generation=1).why == "finishing"


def test_a_carried_request_denies_the_next_execution(lab: Lab) -> None:
    """A request that a lost child could not heed is kept for the message's return."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.CHILD_LOST_BACK)
    assert lab.claim("two").cancellation == WANTED


# A record that has vanished.

KNOWN_OF_A_TASK: dict[str, Any] = {
    "v": "1",
    "name": "shop.export",
    "takes_token": "1",
    "worker": "celery@alice",
    "owner": "alice.1",
    "send": "send",
    "execution": "one",
}


def test_a_vanished_record_is_written_again(lab: Lab) -> None:
    """Data loss while a task ran costs its record nothing but the past."""
    lab.enqueued(1)
    lab.run("two", generation=1)
    lab.remove()
    assert lab.finish("two") == FinishAnswer(True, False, decide(Ending.RETURNED, None, False), None)
    fields = lab.fields
    assert {name: fields[name] for name in KNOWN_OF_A_TASK} == {**KNOWN_OF_A_TASK, "execution": "two"}
    assert (fields["state"], fields["outcome"]) == ("FINISHING", "SUCCEEDED")
    assert (fields["generation"], fields["attempt"]) == ("1", "2")


def test_a_vanished_record_of_a_retry_is_written_again(lab: Lab) -> None:
    """The retry's copy still finds the generation that it carries wanted, and a stale one does not."""
    lab.run("one", generation=4)
    lab.remove()
    lab.finish("one", Ending.RETRIED)
    assert lab.claim("stale", generation=4).why == "stale"
    lab.run("two", generation=5)


def test_a_request_made_since_is_answered(lab: Lab) -> None:
    """A request that found no record is answered by the task that was running all the while."""
    lab.run("one")
    lab.remove()
    lab.request()
    answer = lab.finish("one", Ending.RETURNED)
    assert answer.verdict == decide(Ending.RETURNED, Cause.REVOKED, False)
    assert (lab.fields["answer"], lab.fields["outcome"]) == ("too-late", "SUCCEEDED")


def test_a_finish_of_a_vanished_record_is_repeated(lab: Lab) -> None:
    """Writing it again is idempotent as well."""
    lab.run("one")
    lab.remove()
    first = lab.finish("one")
    with lab.unchanged():
        assert lab.finish("one") == first


def test_a_vanished_record_is_settled_like_any_other(lab: Lab) -> None:
    """What was written again comes to its end."""
    lab.run("one")
    lab.remove()
    lab.finish("one")
    lab.settle("one")
    assert lab.state == "SUCCEEDED"


@pytest.mark.parametrize("cause", [Cause.SUPERSEDED, Cause.LEASE_LOST])
def test_a_superseded_execution_does_not_write_a_vanished_record(lab: Lab, cause: Cause) -> None:
    """An execution that has lost its id writes no record, not even where there is none."""
    lab.run("one")
    lab.remove()
    assert lab.finish("one", Ending.CANCELLED, cause=cause) == NOT_MINE
    left, _ = lab.fields, lab.remove()
    assert left == {}


@pytest.mark.parametrize("before", ["waiting", "ended"])
def test_a_body_that_started_without_the_store_is_recorded(lab: Lab, before: str) -> None:
    """A wanted copy that could not claim, and whose id nobody else has claimed, is recorded by its finish."""
    if before == "waiting":
        lab.enqueued(1)
        lab.start_without_the_store("two", owner=BOB, generation=1)
    else:
        lab.final()
        lab.start_without_the_store("two", owner=BOB, send="again")
    assert lab.finish("two", unclaimed=True).recorded


@pytest.mark.parametrize("before", ["waiting", "ended"])
def test_what_was_recorded_without_a_claim_is_told_again(lab: Lab, before: str) -> None:
    """The finish of a body that could not claim is idempotent like any other."""
    if before == "waiting":
        lab.enqueued(1)
        lab.start_without_the_store("two", owner=BOB, generation=1)
    else:
        lab.final()
        lab.start_without_the_store("two", owner=BOB, send="again")
    first = lab.finish("two", unclaimed=True)
    with lab.unchanged():
        assert lab.finish("two", unclaimed=True) == first
    assert lab.ttl > 0


def test_what_was_recorded_without_a_claim_knows_nothing_of_the_life_before(lab: Lab) -> None:
    """What was asked of a life that has ended does not show in the next, claimed or not."""
    lab.run("one")
    lab.request()
    lab.deliver("one")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True, observed_ago=0.1, error="x")
    lab.settle("one")
    lab.start_without_the_store("two", owner=BOB, send="again")
    assert lab.finish("two", unclaimed=True).cancellation is None
    assert lab.states_listed == ["FINISHING"]
    left = {"request", "kind", "cause", "reason", "actor", "answer", "requested_at", "observed_at", "error"}
    assert left & set(lab.fields) == set()
    assert lab.fields["outcome"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("situation", "copy"),
    [
        ("another runs", {"generation": 0}),
        ("another has ended", {"generation": 0}),
        ("it was settled", {"generation": 0}),
        ("a later one waits", {"generation": 0}),
    ],
)
def test_a_body_that_started_without_the_store_does_not_overrun_others(
    lab: Lab, situation: str, copy: dict[str, int]
) -> None:
    """A copy that would not have been let run writes nothing, though nobody could tell it so at its start."""
    if situation == "another runs":
        lab.run("one")
    elif situation == "another has ended":
        lab.finishing()
    elif situation == "it was settled":
        lab.final()
    else:
        lab.enqueued(1)
    lab.start_without_the_store("two", owner=BOB, **copy)
    with lab.unchanged():
        assert not lab.finish("two", unclaimed=True).recorded


def test_a_body_that_started_without_the_store_answers_what_was_asked(lab: Lab) -> None:
    """A revoke that was applied to a waiting retry is answered by the copy that could not be denied."""
    lab.enqueued(1)
    assert lab.request().applied
    lab.start_without_the_store("two", owner=BOB, generation=1)
    lab.finish("two", Ending.RETURNED, unclaimed=True)
    assert (lab.fields.get("request"), lab.fields.get("answer")) == ("request", "too-late")


def test_a_vanished_record_is_found_in_the_index_again(lab: Lab) -> None:
    """What was written again is looked after like what was claimed."""
    lab.run("one")
    lab.remove()
    lab.redis.delete(lab.store.keys.owned(ALICE))
    lab.finish("one")
    assert lab.state == "FINISHING"
    assert lab.owned(ALICE) == {lab.task_id}


def test_a_retry_of_a_body_that_started_without_the_store_runs(lab: Lab) -> None:
    """A new life that began in an outage, over a retry of the old one, may be retried as well."""
    lab.enqueued(3)
    lab.start_without_the_store("two", owner=BOB, send="again")
    assert lab.claim("two", owner=BOB, send="again", running_attempt=1).verdict is ClaimVerdict.RUN
    lab.finish("two", Ending.RETRIED, unclaimed=True)
    assert lab.claim("three", send="again", generation=1).verdict is ClaimVerdict.RUN
