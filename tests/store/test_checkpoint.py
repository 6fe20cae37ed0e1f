"""Checkpoints in the store: whose are saved, how long they stay, and what they do to the cap on requeues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending, ResultFate
from celery_canceltoken.settings import Settings
from celery_canceltoken.states import State
from tests.store.conftest import ALICE, BOB, KEPT, Lab

SHUTDOWN = Cancellation(Cause.SHUTDOWN, "its worker is stopping")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Shutdowns may send a task back twice in a row."""
    return replace(settings, max_shutdown_requeues=2)


def save(lab: Lab, execution: str = "one", text: str = '{"row":7}') -> str:
    """Save a checkpoint."""
    answer: str = lab.store.checkpoint(lab.task_id, execution, text)
    return answer


def stop(lab: Lab, execution: str, ending: Ending = Ending.CANCELLED) -> Any:
    """A shutdown has stopped the execution."""
    return lab.finish(execution, ending, cause=Cause.SHUTDOWN, observed=True, cancellation=SHUTDOWN)


def run_again(lab: Lab, execution: str) -> Any:
    """The message that went back is claimed."""
    return lab.run(execution, generation=int(lab.fields["generation"]), message=KEPT)


def test_saved_and_handed_to_the_next_attempt(lab: Lab) -> None:
    """The last one counts."""
    lab.run("one", message=KEPT)
    assert save(lab, text="1") == "saved"
    assert save(lab, text="[2]") == "saved"
    assert lab.record.checkpoint == "[2]"
    stop(lab, "one")
    assert run_again(lab, "two").checkpoint == "[2]"


def test_first_attempt_has_none(lab: Lab) -> None:
    """There is nothing to go on from."""
    assert lab.run("one").checkpoint == ""


def test_claim_that_is_asked_again_tells_it_again(lab: Lab) -> None:
    """A claim whose answer was lost is answered with the checkpoint as well."""
    lab.run("one", message=KEPT)
    save(lab)
    stop(lab, "one")
    run_again(lab, "two")
    assert lab.claim("two", generation=1).checkpoint == '{"row":7}'


def test_saving_twice_is_saving_once(lab: Lab) -> None:
    """A call whose answer was lost may be made again."""
    lab.run("one")
    save(lab)
    with lab.unchanged():
        assert save(lab) == "saved"


@pytest.mark.parametrize("state", ["overtaken", "enqueued", "finishing", "final"])
def test_only_the_run_that_owns_the_id_saves(lab: Lab, state: str) -> None:
    """Nobody saves who was overtaken or has ended, and the record stays as it is."""
    if state == "overtaken":
        lab.run("one")
        lab.run("two", generation=1)
    else:
        {"enqueued": lab.enqueued, "finishing": lab.finishing, "final": lab.final}[state]()
    with lab.unchanged():
        assert save(lab, "one") == "superseded"


def test_no_record(lab: Lab) -> None:
    """Where there is no record none is made."""
    assert save(lab) == "untracked"
    assert lab.fields == {}


def test_request_alone_is_no_record_of_a_run(lab: Lab) -> None:
    """An id that nobody runs has nobody who may save."""
    lab.request("revoke")
    with lab.unchanged():
        assert save(lab) == "untracked"


def test_damaged_record(lab: Lab) -> None:
    """A record that cannot be read is left alone."""
    lab.redis.set(lab.key, "rot", ex=60)
    assert save(lab) == "untracked"
    assert lab.redis.get(lab.key) == "rot"


@pytest.mark.parametrize("ending", [Ending.RETRIED, Ending.REJECTED_BACK], ids=lambda ending: ending.value)
def test_kept_where_the_work_goes_on(lab: Lab, ending: Ending) -> None:
    """The next attempt is the same work."""
    lab.run("one")
    save(lab)
    lab.finish("one", ending)
    generation = int(lab.fields["generation"])
    assert lab.run("two", generation=generation, redelivered=True).checkpoint == '{"row":7}'


def test_kept_by_a_recovery(lab: Lab) -> None:
    """A worker that died takes nothing along: whoever runs its task next goes on where it was."""
    lab.run("one", message=KEPT, late_ack=True)
    save(lab)
    lab.dies(ALICE)
    lab.recover(by=BOB)
    owner = lab.fields["owner"]
    answer = lab.claim(
        "two", generation=int(lab.fields["generation"]), owner=BOB, take_over_from=("one", owner)
    )
    assert answer.checkpoint == '{"row":7}'


def test_gone_after_success(lab: Lab) -> None:
    """What was done need not be gone on with."""
    lab.run("one")
    save(lab)
    lab.finish("one", Ending.RETURNED)
    lab.settle("one")
    assert lab.state == "SUCCEEDED"
    assert lab.record.checkpoint is None


@pytest.mark.parametrize("ending", [Ending.RAISED, Ending.TIME_LIMIT], ids=lambda ending: ending.value)
def test_kept_after_failure(lab: Lab, ending: Ending) -> None:
    """A task that has failed may be asked to run again, and goes on then."""
    lab.run("one", message=KEPT)
    save(lab)
    lab.finish("one", ending)
    lab.settle("one")
    assert lab.request("requeue").applied
    assert run_again(lab, "two").checkpoint == '{"row":7}'


@pytest.mark.parametrize("ending", [Ending.RETURNED, Ending.RAISED], ids=lambda ending: ending.value)
def test_new_life_starts_without(lab: Lab, ending: Ending) -> None:
    """An id that is sent again is new work."""
    lab.run("one", message=KEPT)
    save(lab)
    lab.finish("one", ending)
    lab.settle("one")
    answer = lab.run("two", send="another")
    assert (answer.attempt, answer.checkpoint) == (1, "")
    assert lab.record.checkpoint is None
    assert lab.record.shutdown_requeues == 0


# -- the cap


def test_cap_is_counted_in_a_row(lab: Lab) -> None:
    """What shutdowns have sent back as often as allowed fails the next time."""
    lab.run("one", message=KEPT)
    for number, (execution, following) in enumerate([("one", "two"), ("two", "three")], 1):
        assert stop(lab, execution).outbox is not None
        assert lab.record.shutdown_requeues == number
        run_again(lab, following)
    answer = stop(lab, "three")
    assert answer.verdict.result is ResultFate.SHUT_DOWN
    assert answer.verdict.state is State.FAILED
    assert answer.outbox is None
    lab.settle("three")
    assert lab.state == "FAILED"


def test_asked_again_it_is_counted_once(lab: Lab) -> None:
    """A finish whose answer was lost does not count twice."""
    lab.run("one", message=KEPT)
    stop(lab, "one")
    with lab.unchanged():
        stop(lab, "one")
    assert lab.record.shutdown_requeues == 1


def test_checkpoint_resets_the_count(lab: Lab) -> None:
    """Progress was made."""
    lab.run("one", message=KEPT)
    for number in range(5):
        save(lab, text=str(number), execution=_name(number))
        assert stop(lab, _name(number)).outbox is not None
        assert lab.record.shutdown_requeues == 1
        run_again(lab, _name(number + 1))


def _name(number: int) -> str:
    return ["one", "two", "three", "four", "five", "six"][number]


def test_others_do_not_count(lab: Lab) -> None:
    """A requeue that was asked for, and a retry, are no shutdowns."""
    lab.run("one", message=KEPT)
    lab.request("requeue")
    lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    run_again(lab, "two")
    lab.finish("two", Ending.RETRIED)
    assert lab.record.shutdown_requeues == 0


def test_request_outranks_the_shutdown(lab: Lab) -> None:
    """A task that is to run again because somebody asked does, however often shutdowns have sent it back."""
    lab.run("one", message=KEPT)
    stop(lab, "one")
    run_again(lab, "two")
    stop(lab, "two")
    run_again(lab, "three")
    lab.request("requeue")
    assert stop(lab, "three").outbox is not None
    run_again(lab, "four")
    lab.request("revoke", "later")
    stop(lab, "four")
    lab.settle("four")
    assert lab.state == "REVOKED"


def test_evicted_is_counted_as_well(lab: Lab) -> None:
    """What a shutdown has killed is sent back as often as what heeded, and no oftener."""
    lab.run("one", message=KEPT)
    for execution, following in (("one", "two"), ("two", "three")):
        stop(lab, execution, Ending.EVICTED)
        run_again(lab, following)
    stop(lab, "three", Ending.EVICTED)
    lab.settle("three")
    assert lab.state == "FAILED"


def test_what_completes_during_a_shutdown_is_not_capped(lab: Lab) -> None:
    """A body that finishes after all has succeeded, whatever the count."""
    lab.run("one", message=KEPT)
    for execution, following in (("one", "two"), ("two", "three")):
        stop(lab, execution)
        run_again(lab, following)
    lab.finish("three", Ending.RETURNED, cause=Cause.SHUTDOWN, observed=False, cancellation=SHUTDOWN)
    lab.settle("three")
    assert lab.state == "SUCCEEDED"
