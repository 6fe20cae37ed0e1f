"""Every answer to a request is announced, so that whoever waits need not look."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_canceltoken.cause import Cause
from celery_canceltoken.outcome import Ending
from tests.store.conftest import KEPT, Lab


def revoked_and_told(lab: Lab) -> None:
    lab.run("one", message=KEPT)
    lab.request()
    lab.finish("one", Ending.CANCELLED, cause=Cause.REVOKED, observed=True)


def asked_to_requeue(lab: Lab) -> None:
    lab.run("one", message=KEPT)
    lab.request("requeue")


def asked_to_revoke(lab: Lab) -> None:
    lab.run("one")
    lab.request()


@pytest.mark.parametrize(
    ("meet", "answers", "announced"),
    [
        (asked_to_revoke, lambda lab: lab.withdraw(), "withdrawn"),
        (asked_to_revoke, lambda lab: lab.request("delete", "second"), "overruled"),
        (asked_to_requeue, lambda lab: lab.run("two", generation=1), "effective"),
        (asked_to_requeue, lambda lab: lab.finish("one"), "effective"),
        (asked_to_requeue, lambda lab: lab.finish("one", Ending.RETRIED), "effective"),
        (asked_to_requeue, lambda lab: lab.recover(), "effective"),
        (revoked_and_told, lambda lab: lab.request("requeue", "second"), "effective"),
        (revoked_and_told, lambda lab: lab.settle(), "effective"),
    ],
    ids=["withdraw", "overrule", "claim", "finish", "retry", "recover", "requeue", "settle"],
)
def test_every_answer_is_announced(
    lab: Lab, meet: Callable[[Lab], object], answers: Callable[[Lab], object], announced: str
) -> None:
    """Whoever waits hears of it at once, and need not look."""
    meet(lab)
    assert lab.heard_of(lambda: answers(lab)) == [announced]


def test_a_wait_begins_when_the_server_has_heard_of_it(lab: Lab) -> None:
    """What is announced from then on by anybody is heard: the record is read no sooner."""
    channel = lab.store.keys.stopped(lab.task_id)
    for _ in range(50):
        with lab.store.end_of(lab.task_id):
            assert lab.redis.pubsub_numsub(channel) == [(channel, 1)]
