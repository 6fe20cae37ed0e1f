"""What is asked of tasks that are still to come: of a whole workflow, or of all of a kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Ending
from celery_canceltoken.store.answers import ClaimAnswer, ClaimVerdict
from tests.store.conftest import ALICE, BOB, KEPT, Lab

ALL_OF_IT = ClaimAnswer(ClaimVerdict.DENIED, cancellation=Cancellation(Cause.REVOKED, "all of it", "alice"))
UNTIL_THEN = ClaimAnswer(ClaimVerdict.DENIED, cancellation=Cancellation(Cause.REVOKED, "until then", "alice"))


# A mark on a workflow.


def test_a_marked_workflow_does_not_start_another_task(lab: Lab) -> None:
    """Whatever of it is claimed after the mark is denied, with the mark's words."""
    lab.mark()
    assert lab.claim("one", root="root") == ALL_OF_IT
    fields = lab.fields
    assert (fields["state"], fields["outcome"]) == ("FINISHING", "REVOKED")
    assert (fields["request"], fields["answer"]) == ("mark", "effective")


def test_a_marked_task_ends_like_one_that_was_asked_itself(lab: Lab) -> None:
    """Its record and history say by what."""
    lab.mark("delete")
    lab.claim("one", root="root")
    lab.settle()
    assert lab.history == ["DELETED mark:effective"]


def test_a_denial_by_a_mark_is_repeated(lab: Lab) -> None:
    """A lost answer is told again."""
    lab.mark()
    first = lab.claim("one", root="root")
    with lab.unchanged():
        assert lab.claim("one", root="root") == first


@pytest.mark.parametrize("root", ["other", "", "task-7"])
def test_other_workflows_start(lab: Lab, root: str) -> None:
    """A mark concerns one root."""
    lab.mark()
    lab.run("one", root=root)


def test_the_root_itself_is_marked(lab: Lab) -> None:
    """A workflow whose first task has not started does not start."""
    lab.mark(root=lab.task_id)
    assert lab.claim("one", root=lab.task_id) == ALL_OF_IT


def test_a_task_without_a_root_is_its_own(lab: Lab) -> None:
    """A message that names no workflow is one by itself."""
    lab.mark(root=lab.task_id)
    assert lab.claim("one") == ALL_OF_IT


def test_a_running_task_is_not_denied_by_a_mark(lab: Lab) -> None:
    """A body that runs already is told by a request of its own, not denied when its record is repaired."""
    lab.run("one", root="root")
    lab.mark()
    lab.remove()
    lab.run("one", root="root", running_attempt=1)


def test_a_retry_of_a_marked_task_does_not_run(lab: Lab) -> None:
    """The next execution of what was claimed before the mark is a claim like any other."""
    lab.run("one", root="root")
    lab.mark()
    lab.finish("one", Ending.RETRIED)
    assert lab.claim("two", root="root", generation=1) == ALL_OF_IT


def test_a_task_that_was_asked_itself_keeps_its_own_words(lab: Lab) -> None:
    """A request of its own comes before what is asked of all."""
    lab.mark("delete")
    lab.request("revoke", reason="just this", actor="bob")
    answer = lab.claim("one", root="root")
    assert answer.cancellation == Cancellation(Cause.REVOKED, "just this", "bob")


def test_a_mark_overrules_a_requeue_that_was_not_heeded(lab: Lab) -> None:
    """Whoever waits for the requeue learns it."""
    lab.run("one", root="root")
    lab.request("requeue")
    lab.mark()
    assert lab.claim("two", owner=BOB, root="root", generation=1) == ALL_OF_IT
    lab.settle("two", owner=BOB)
    assert lab.history[-2:] == ["PROCESSING request:overruled", "REVOKED mark:effective"]


@pytest.mark.parametrize(
    ("first", "second", "holds"),
    [
        ("revoke", "revoke", "first"),
        ("revoke", "delete", "second"),
        ("delete", "revoke", "first"),
        ("delete", "delete", "first"),
    ],
)
def test_of_two_marks_the_first_stays_unless_more_is_wanted(
    lab: Lab, first: str, second: str, holds: str
) -> None:
    """As of two requests, and the answer says which one holds."""
    assert lab.mark(first, "first") == "first"
    assert lab.mark(second, "second") == holds
    lab.claim("one", root="root")
    assert lab.fields["request"] == holds


def test_the_same_mark_gets_the_same_answer(lab: Lab) -> None:
    """A lost answer may be asked for again."""
    lab.mark()
    before = lab.redis.get(lab.store.keys.mark("root"))
    assert lab.mark() == "mark"
    assert lab.redis.get(lab.store.keys.mark("root")) == before


# What lifts it.


def test_a_requeued_task_is_pardoned(lab: Lab) -> None:
    """Who asks for one task of a marked workflow to run again means it."""
    lab.mark()
    lab.claim("one", root="root", message=KEPT)
    lab.settle()
    assert lab.request("requeue").applied
    lab.run("two", root="root", generation=1)


def test_a_pardon_holds_for_its_retries(lab: Lab) -> None:
    """The whole life of the id is pardoned."""
    lab.mark()
    lab.claim("one", root="root", message=KEPT)
    lab.settle()
    lab.request("requeue")
    lab.run("two", root="root", generation=1)
    lab.finish("two", Ending.RETRIED)
    lab.run("three", root="root", generation=2)


@pytest.mark.parametrize("way", ["finish", "settle", "recover", "lost"])
def test_every_way_of_a_requeue_pardons(lab: Lab, way: str) -> None:
    """Whoever carries the requeue out, the task is meant to run."""
    lab.run("one", root="root", message=KEPT)
    lab.mark()
    if way == "settle":
        lab.finish("one")
    elif way == "lost":
        lab.dies(ALICE)
    assert lab.request("requeue").applied
    if way == "finish":
        lab.finish("one", Ending.CANCELLED, cause=Cause.REQUEUED, observed=True)
    elif way == "settle":
        lab.settle()
    elif way == "recover":
        lab.recover()
    assert lab.state == "ENQUEUED"
    lab.run("two", root="root", generation=1)


@pytest.mark.parametrize("tracked", [False, True])
def test_a_new_life_is_not_pardoned(lab: Lab, tracked: bool) -> None:
    """The same id sent again is another task of the marked workflow."""
    lab.mark()
    lab.claim("one", root="root", message=KEPT)
    lab.settle()
    lab.request("requeue")
    lab.run("two", root="root", generation=1)
    lab.finish("two")
    lab.settle("two")
    if tracked:
        lab.enqueue(send="again", root="root")
    assert lab.claim("three", send="again", root="root") == ALL_OF_IT


@pytest.mark.parametrize("tracked", [False, True])
def test_a_root_that_is_sent_again_lifts_its_mark(lab: Lab, tracked: bool) -> None:
    """The workflow begins anew, and so do its tasks; also where its sender tracks it."""
    root, member = lab, lab.other("member")
    root.run("one", root=root.task_id)
    root.mark(root=root.task_id)
    root.finish("one")
    root.settle()
    if tracked:
        root.enqueue(send="again", root=root.task_id)
    root.run("two", send="again", root=root.task_id)
    member.run("three", root=root.task_id)


def test_a_member_that_is_sent_again_lifts_nothing(lab: Lab) -> None:
    """Only the root is the workflow."""
    lab.final(root="root")
    lab.mark()
    assert lab.claim("two", send="again", root="root") == ALL_OF_IT


def test_a_root_that_retries_lifts_nothing(lab: Lab) -> None:
    """A retry is the same life."""
    lab.run("one", root=lab.task_id)
    lab.mark(root=lab.task_id)
    lab.finish("one", Ending.RETRIED)
    assert lab.claim("two", generation=1, root=lab.task_id) == ALL_OF_IT


def test_a_marked_root_that_nobody_has_seen_does_not_lift_its_mark(lab: Lab) -> None:
    """Its first message is what the mark was for."""
    lab.mark(root=lab.task_id)
    assert lab.claim("one", root=lab.task_id) == ALL_OF_IT
    assert lab.redis.exists(lab.store.keys.mark(lab.task_id)) == 1


# Members.


def test_the_members_of_a_workflow_are_known_once_claimed(lab: Lab) -> None:
    """In the order of their first claim, and without the root."""
    lab.other("root").run("one", root="root")
    for name in ("b", "a"):
        lab.other(name).run("one", root="root")
    assert lab.store.ask(lab.store.calls.members("root")) == ["b", "a"]


def test_a_denied_member_is_one(lab: Lab) -> None:
    """Having been refused does not make it another workflow's."""
    lab.mark()
    lab.claim("one", root="root")
    assert lab.store.ask(lab.store.calls.members("root")) == [lab.task_id]


# Standing orders.

FITTING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "shop.export"}, {}),
    ({"queue": "reports"}, {"queue": "reports"}),
    ({"name": "shop.export", "queue": "reports"}, {"queue": "reports"}),
    ({"stamps": {"tenant": 7}}, {"stamps": {"tenant": [7]}}),
    ({"stamps": {"tenant": "a"}}, {"stamps": {"tenant": ["b", "a"], "other": [1]}}),
    ({"stamps": {"tenant": "a", "batch": 1.5}}, {"stamps": {"tenant": ["a"], "batch": [1.5]}}),
    ({"stamps": {"test": True}}, {"stamps": {"test": [True]}}),
    ({"name": "shop.export", "stamps": {"tenant": 7}}, {"stamps": {"tenant": [7]}}),
]
OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "shop.import"}, {}),
    ({"queue": "reports"}, {}),
    ({"queue": "reports"}, {"queue": "mails"}),
    ({"name": "shop.export", "queue": "reports"}, {"queue": "mails"}),
    ({"name": "shop.import", "queue": "reports"}, {"queue": "reports"}),
    ({"stamps": {"tenant": 7}}, {}),
    ({"stamps": {"tenant": 7}}, {"stamps": {"tenant": []}}),
    ({"stamps": {"tenant": 7}}, {"stamps": {"tenant": ["7"]}}),
    ({"stamps": {"tenant": 7, "batch": 1}}, {"stamps": {"tenant": [7]}}),
    ({"name": "shop.export", "stamps": {"tenant": 7}}, {"stamps": {"tenant": [8]}}),
]


@pytest.mark.parametrize(("about", "claim"), FITTING, ids=str)
def test_a_task_that_fits_does_not_start(lab: Lab, about: dict[str, Any], claim: dict[str, Any]) -> None:
    """Name, queue and stamps: where all that is said of them fits, the claim is denied."""
    assert lab.stand(**about)
    assert lab.claim("one", **claim) == UNTIL_THEN
    assert lab.fields["request"] == "standing"


@pytest.mark.parametrize(("about", "claim"), OTHERS, ids=str)
def test_a_task_that_does_not_fit_starts(lab: Lab, about: dict[str, Any], claim: dict[str, Any]) -> None:
    """Where one of them does not, nothing is asked."""
    assert lab.stand(**about)
    lab.run("one", **claim)


def end(lab: Lab, request_id: str) -> None:
    """Let a standing order be over, by writing its end anew behind the store's back."""
    key = lab.store.keys.standing_orders
    order = json.loads(lab.redis.hget(key, request_id) or "{}")
    lab.redis.hset(key, request_id, json.dumps({**order, "until": str(lab.redis.time()[0] * 1_000_000)}))


def test_an_order_that_is_over_denies_nobody(lab: Lab) -> None:
    """And the first claim that finds it takes it away."""
    lab.stand(name="shop.export")
    end(lab, "standing")
    lab.run("one")
    assert lab.redis.exists(lab.store.keys.standing_orders) == 0


def test_an_order_stands_until_its_time(lab: Lab) -> None:
    """As long as was said, by the store's clock."""
    before = lab.redis.time()[0]
    lab.stand(name="shop.export", seconds=50.5)
    order = json.loads(lab.redis.hget(lab.store.keys.standing_orders, "standing") or "{}")
    assert 50_000_000 <= int(order["until"]) - before * 1_000_000 < 80_000_000
    assert int(order["until"]) - int(order["requested_at"]) == 50_500_000


def test_another_order_stands_beside_one_that_is_over(lab: Lab) -> None:
    """What is over hides nothing that is not."""
    lab.stand("first", name="shop.export")
    lab.stand("second", name="shop.export")
    end(lab, "first")
    assert lab.claim("one") == UNTIL_THEN
    assert lab.fields["request"] == "second"


def test_a_requeued_task_is_pardoned_of_standing_orders(lab: Lab) -> None:
    """As of marks."""
    lab.stand(name="shop.export")
    lab.claim("one", message=KEPT)
    lab.settle()
    lab.request("requeue")
    lab.run("two", generation=1)


def test_there_are_no_more_than_a_hundred_orders(lab: Lab) -> None:
    """Each claim reads them all; one too many is refused, and stands when another is over."""
    for number in range(100):
        assert lab.stand(f"order-{number}", name="shop.import")
    assert not lab.stand("one too many", name="shop.import")
    assert lab.redis.hlen(lab.store.keys.standing_orders) == 100
    end(lab, "order-50")
    assert lab.stand("one too many", name="shop.import")


def test_the_same_order_stands_once(lab: Lab) -> None:
    """Asked again after a lost answer it stands already, though there is room for no other."""
    for number in range(100):
        assert lab.stand(f"order-{number}", name="shop.import")
    assert lab.stand("order-99", name="shop.import")
    assert lab.redis.hlen(lab.store.keys.standing_orders) == 100


# What is denied before it has begun shows nothing of what was before.


def test_a_denied_new_life_knows_nothing_of_the_old_one(lab: Lab) -> None:
    """Value, error and times of a life that has ended are not those of one that never began."""
    lab.run("one")
    lab.request()
    lab.finish("one", Ending.RAISED, cause=Cause.REVOKED, observed=True, value="[1]", error="ValueError()")
    lab.settle()
    lab.stand(name="shop.export")
    assert lab.claim("two", send="again") == UNTIL_THEN
    lab.settle("two")
    record = lab.record
    assert (record.value, record.error, record.started_at, record.attempt) == (None, None, None, 0)
    assert (record.delivered_at, record.observed_at) == (None, None)
