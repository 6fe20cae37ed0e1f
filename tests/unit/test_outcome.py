"""The outcome table: what a task becomes, whatever the cause and however its body ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Answer, Ending, MessageFate, ResultFate, Verdict, decide, rows
from celery_canceltoken.states import State

EVERY_CAUSE: tuple[Cause | None, ...] = (None, *Cause)
EVERY_COMBINATION = list(itertools.product(EVERY_CAUSE, Ending, (False, True), (False, True)))

SUCCEEDED = Verdict(State.SUCCEEDED, ResultFate.CELERY, MessageFate.CELERY, Answer.TOO_LATE)
FAILED = Verdict(State.FAILED, ResultFate.CELERY, MessageFate.CELERY, Answer.TOO_LATE)
STRAY = Verdict(State.FAILED, ResultFate.FAILED, MessageFate.CELERY, Answer.TOO_LATE)
TIMED_OUT = Verdict(State.FAILED, ResultFate.TIMED_OUT, MessageFate.CELERY, Answer.TOO_LATE)
IGNORED = Verdict(State.IGNORED, ResultFate.CELERY, MessageFate.CELERY, Answer.TOO_LATE)
REJECTED = Verdict(State.REJECTED, ResultFate.CELERY, MessageFate.CELERY, Answer.TOO_LATE)
KILLED = Verdict(State.REVOKED, ResultFate.CELERY, MessageFate.CELERY, Answer.TOO_LATE)
GIVEN_BACK = Verdict(State.ENQUEUED, ResultFate.CELERY, MessageFate.CELERY, Answer.CARRIED)
CONTINUED = Verdict(State.ENQUEUED, ResultFate.CELERY, MessageFate.CELERY, Answer.CARRIED, True)
REVOKED = Verdict(State.REVOKED, ResultFate.REVOKED, MessageFate.ACK, Answer.EFFECTIVE)
DELETED = Verdict(State.DELETED, ResultFate.REVOKED, MessageFate.ACK, Answer.EFFECTIVE)
QUEUED_AGAIN = Verdict(State.ENQUEUED, ResultFate.NOTHING, MessageFate.REPUBLISH, Answer.EFFECTIVE, True)
COMPLETED = Verdict(
    State.ENQUEUED, ResultFate.NOTHING, MessageFate.REPUBLISH, Answer.EFFECTIVE, True, completed=True
)
SENT_AGAIN = Verdict(State.ENQUEUED, ResultFate.CELERY, MessageFate.CELERY, Answer.EFFECTIVE, True)
SHUT_DOWN = Verdict(State.FAILED, ResultFate.SHUT_DOWN, MessageFate.CELERY, Answer.TOO_LATE)
NOTHING = Verdict(None, ResultFate.NOTHING, MessageFate.ACK, Answer.TOO_LATE)


@dataclass(frozen=True)
class Row:
    """One line of the table; a pair of flags that is not listed does not belong to it."""

    cause: Cause | None
    ending: Ending
    verdict: Verdict
    when: str = "always"

    def holds(self, observed: bool, disregarded: bool) -> bool:
        heeded = observed and not disregarded
        return {"always": True, "heeded": heeded, "not heeded": not heeded}[self.when]


AS_CELERY = {
    Ending.RETURNED: SUCCEEDED,
    Ending.RAISED: FAILED,
    Ending.RETRIED: CONTINUED,
    Ending.REPLACED: CONTINUED,
    Ending.IGNORED: IGNORED,
    Ending.REJECTED: REJECTED,
    Ending.REJECTED_BACK: GIVEN_BACK,
    Ending.TIME_LIMIT: FAILED,
    Ending.TERMINATED: KILLED,
    Ending.CHILD_LOST: FAILED,
    Ending.CHILD_LOST_BACK: GIVEN_BACK,
    Ending.EVICTED: SHUT_DOWN,
}
GONE = (Ending.TIME_LIMIT, Ending.TERMINATED, Ending.CHILD_LOST, Ending.CHILD_LOST_BACK)


def table() -> Iterator[Row]:
    """The whole table, in the order of the causes."""
    yield Row(None, Ending.CANCELLED, STRAY)
    for ending, verdict in AS_CELERY.items():
        yield Row(None, ending, verdict)

    yield Row(Cause.REVOKED, Ending.CANCELLED, REVOKED)
    for ending in (Ending.RETURNED, Ending.RAISED, Ending.IGNORED, Ending.REJECTED):
        yield Row(Cause.REVOKED, ending, REVOKED, "heeded")
        yield Row(Cause.REVOKED, ending, AS_CELERY[ending], "not heeded")
    yield Row(Cause.REVOKED, Ending.RETRIED, REVOKED)
    yield Row(Cause.REVOKED, Ending.REJECTED_BACK, REVOKED)
    yield Row(Cause.REVOKED, Ending.EVICTED, REVOKED)

    yield Row(Cause.DELETED, Ending.CANCELLED, DELETED)
    yield Row(Cause.DELETED, Ending.RETURNED, DELETED)
    yield Row(Cause.DELETED, Ending.RAISED, DELETED)
    yield Row(Cause.DELETED, Ending.RETRIED, DELETED)
    yield Row(Cause.DELETED, Ending.IGNORED, DELETED)
    yield Row(Cause.DELETED, Ending.REJECTED, DELETED)
    yield Row(Cause.DELETED, Ending.REJECTED_BACK, DELETED)
    yield Row(Cause.DELETED, Ending.EVICTED, DELETED)

    yield Row(Cause.REQUEUED, Ending.CANCELLED, QUEUED_AGAIN)
    yield Row(Cause.REQUEUED, Ending.RETURNED, QUEUED_AGAIN, "heeded")
    yield Row(Cause.REQUEUED, Ending.RETURNED, COMPLETED, "not heeded")
    yield Row(Cause.REQUEUED, Ending.RAISED, QUEUED_AGAIN)
    yield Row(Cause.REQUEUED, Ending.RETRIED, SENT_AGAIN)
    yield Row(Cause.REQUEUED, Ending.IGNORED, QUEUED_AGAIN)
    yield Row(Cause.REQUEUED, Ending.REJECTED, QUEUED_AGAIN)
    yield Row(Cause.REQUEUED, Ending.REJECTED_BACK, QUEUED_AGAIN)
    yield Row(Cause.REQUEUED, Ending.EVICTED, QUEUED_AGAIN)

    yield Row(Cause.SHUTDOWN, Ending.CANCELLED, QUEUED_AGAIN)
    yield Row(Cause.SHUTDOWN, Ending.RETURNED, QUEUED_AGAIN, "heeded")
    yield Row(Cause.SHUTDOWN, Ending.RETURNED, SUCCEEDED, "not heeded")
    yield Row(Cause.SHUTDOWN, Ending.EVICTED, QUEUED_AGAIN)
    for ending in (Ending.RAISED, Ending.RETRIED, Ending.IGNORED, Ending.REJECTED, Ending.REJECTED_BACK):
        yield Row(Cause.SHUTDOWN, ending, AS_CELERY[ending])

    yield Row(Cause.TIMEOUT, Ending.CANCELLED, TIMED_OUT)
    for ending, verdict in AS_CELERY.items():
        if ending not in (*GONE, Ending.REPLACED):
            yield Row(Cause.TIMEOUT, ending, verdict)

    # Nothing runs any more in a child that is gone, and what replaced a task is on its way already. A
    # message that comes again is answered by its claim.
    yield Row(Cause.REVOKED, Ending.TERMINATED, REVOKED)
    for ending in (Ending.TIME_LIMIT, Ending.TERMINATED, Ending.CHILD_LOST):
        yield Row(Cause.DELETED, ending, DELETED)
    listed = [(Cause.REVOKED, Ending.TERMINATED)]
    listed += [(Cause.DELETED, ending) for ending in GONE if ending is not Ending.CHILD_LOST_BACK]
    for cause in (Cause.REVOKED, Cause.DELETED, Cause.REQUEUED, Cause.SHUTDOWN, Cause.TIMEOUT):
        for ending in (*GONE, Ending.REPLACED):
            if (cause, ending) not in listed:
                yield Row(cause, ending, AS_CELERY[ending])

    for cause in (Cause.SUPERSEDED, Cause.LEASE_LOST):
        for ending in Ending:
            yield Row(cause, ending, NOTHING)


def cases() -> Iterator[object]:
    """Every row with every pair of flags for which it holds."""
    for row in table():
        for observed, disregarded in itertools.product((False, True), repeat=2):
            if row.holds(observed, disregarded):
                flags = f"{'observed' if observed else 'unseen'}{'-disregarded' if disregarded else ''}"
                name = f"{row.cause or 'none'}-{row.ending.value}-{flags}"
                yield pytest.param(row.cause, row.ending, observed, disregarded, row.verdict, id=name)


@pytest.mark.parametrize(("cause", "ending", "observed", "disregarded", "verdict"), list(cases()))
def test_each_row(
    cause: Cause | None, ending: Ending, observed: bool, disregarded: bool, verdict: Verdict
) -> None:
    """Record, result, message, answer and generation are what the table's row says."""
    assert decide(ending, cause, observed, disregarded) == verdict


def test_the_table_is_whole() -> None:
    """Each combination of cause, ending and flags stands in exactly one row."""
    found = [
        (row.cause, row.ending, observed, disregarded)
        for row in table()
        for observed, disregarded in itertools.product((False, True), repeat=2)
        if row.holds(observed, disregarded)
    ]
    assert sorted(map(str, found)) == sorted(map(str, EVERY_COMBINATION))


def test_every_combination_has_a_verdict() -> None:
    """No cause, ending or flag leaves a task without an outcome."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        assert isinstance(decide(ending, cause, observed, disregarded), Verdict)


def test_a_body_that_was_not_asked_to_disregard_heeds() -> None:
    """Without a word of the body's, what it has seen counts."""
    assert decide(Ending.RETURNED, Cause.REVOKED, True) == REVOKED


def test_a_superseded_execution_never_writes() -> None:
    """Where somebody else owns the id, no ending leads to a state, a result or another message."""
    verdicts = {
        decide(ending, cause, observed, disregarded)
        for cause, ending, observed, disregarded in EVERY_COMBINATION
        if cause in (Cause.SUPERSEDED, Cause.LEASE_LOST)
    }
    assert verdicts == {NOTHING}


def test_only_unfinished_work_gets_a_next_generation() -> None:
    """The generation rises only where the record says that the id is wanted again."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        verdict = decide(ending, cause, observed, disregarded)
        assert verdict.state is State.ENQUEUED or not verdict.next_generation


def test_a_message_is_published_again_only_as_a_next_generation() -> None:
    """What goes back to its queue can be told from the copy that is already out."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        verdict = decide(ending, cause, observed, disregarded)
        assert verdict.message is not MessageFate.REPUBLISH or verdict.next_generation


def test_a_carried_request_has_a_next_execution() -> None:
    """A request is left unanswered only where the id will be run again."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        verdict = decide(ending, cause, observed, disregarded)
        assert verdict.answer is not Answer.CARRIED or verdict.state is State.ENQUEUED


@pytest.mark.parametrize(
    ("kind", "pending"),
    [("revoke", Cause.REVOKED), ("delete", Cause.DELETED), ("requeue", Cause.REQUEUED)],
)
def test_a_pending_request_outranks_the_cause(kind: str, pending: Cause) -> None:
    """What somebody still wants by the end decides, whatever the token was tripped by."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        expected = decide(ending, pending, observed, disregarded)
        assert rows(ending, cause, observed, disregarded)[kind] == expected


def test_without_a_pending_request_the_cause_decides() -> None:
    """The row for no request is that of the cause which tripped the token."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        assert rows(ending, cause, observed, disregarded)["none"] == decide(
            ending, cause, observed, disregarded
        )


def test_there_is_a_row_for_every_kind_of_request() -> None:
    """The store finds a row for whatever may be pending in a record."""
    kinds = {"none", "revoke", "delete", "requeue", "capped"}
    assert set(rows(Ending.RETURNED, None, False, False)) == kinds


def test_what_was_sent_back_too_often_fails() -> None:
    """The row beyond the cap is a failure that says why, however the body ended."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        assert rows(ending, cause, observed, disregarded)["capped"] == SHUT_DOWN


def test_the_policy_fail_fails_what_a_shutdown_has_stopped_and_nothing_else() -> None:
    """Where "requeue" sends a task back for a shutdown, "fail" fails it; all other rows are the same."""
    for cause, ending, observed, disregarded in EVERY_COMBINATION:
        sent_back = decide(ending, cause, observed, disregarded, "requeue")
        failed = decide(ending, cause, observed, disregarded, "fail")
        stopped = cause is Cause.SHUTDOWN and sent_back == QUEUED_AGAIN
        assert failed == (SHUT_DOWN if stopped else sent_back)


def test_only_what_goes_back_to_its_queue_has_completed() -> None:
    """Of an end it says nothing: what ended, ended."""
    completed = [
        (cause, ending)
        for cause, ending, observed, disregarded in EVERY_COMBINATION
        if decide(ending, cause, observed, disregarded).completed
    ]
    assert set(completed) == {(Cause.REQUEUED, Ending.RETURNED)}


def test_a_deleted_task_is_never_anything_else_at_its_end() -> None:
    """Whoever deleted it was told REVOKED at once; nothing that ends may say otherwise."""
    for ending, observed, disregarded in itertools.product(Ending, (False, True), (False, True)):
        verdict = decide(ending, Cause.DELETED, observed, disregarded)
        assert verdict.state in (State.DELETED, State.ENQUEUED)
        assert verdict.state is State.DELETED or verdict.answer is Answer.CARRIED


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [(REVOKED, True), (DELETED, True), (QUEUED_AGAIN, True), (COMPLETED, True), (SENT_AGAIN, False)]
    + [(verdict, False) for verdict in (SUCCEEDED, FAILED, STRAY, TIMED_OUT, KILLED, CONTINUED, NOTHING)],
    ids=str,
)
def test_what_counts_as_a_cancellation(verdict: Verdict, expected: bool) -> None:
    """A run that ended as it was told to, rather than in a way of its own."""
    assert verdict.is_cancellation is expected
