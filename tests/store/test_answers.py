"""An order that was applied is answered, whatever is asked of the task after it."""

from __future__ import annotations

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.record import Change
from celery_canceltoken.states import State
from tests.store.conftest import Lab


def answers_to(lab: Lab, request_id: str) -> list[Change]:
    """What the history says became of a request."""
    record = lab.store.get(lab.task_id)
    assert record is not None
    return [one for one in record.history if one.request_id == request_id and one.answer != "pending"]


@pytest.mark.parametrize(
    ("ending", "answer", "state"),
    [
        (Ending.CANCELLED, "effective", State.REVOKED),
        (Ending.RETURNED, "too-late", State.SUCCEEDED),
        (Ending.RAISED, "too-late", State.FAILED),
    ],
)
def test_a_requeue_in_between_does_not_swallow_the_answer(
    lab: Lab, ending: Ending, answer: str, state: State
) -> None:
    """A requeue that comes between the end of a body and its settlement leaves the revoke its answer."""
    lab.run("one")
    lab.set(message="{}")
    lab.request("revoke", "first", reason="first")
    lab.finish("one", ending, cause=Cause.REVOKED, observed=ending is Ending.CANCELLED)
    assert lab.request("requeue", "second").applied
    (change,) = answers_to(lab, "first")
    assert (change.answer, change.state, change.reason) == (answer, state, "first")
    lab.settle("one")
    assert [one.answer for one in answers_to(lab, "second")] == ["effective"]
    assert lab.state == "ENQUEUED"
