"""What a body sees of a token: checks, waits, what it may do with it, and `none`."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import weakref
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

import celery_canceltoken
from celery_canceltoken.cancelled import TaskCancelled
from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.token import CancellationSource, CancellationToken

PATIENCE = 10.0
LONGER_THAN_ANY_TEST = 600.0

RealEvent = threading.Event


class SpyEvent(RealEvent):
    """Waits for real, and tells the test that somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = RealEvent()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.set()
        return super().wait(timeout)


class InstantEvent(RealEvent):
    """Notes how long it was asked to wait, and does not."""

    limits: list[float | None]

    def wait(self, timeout: float | None = None) -> bool:
        self.limits.append(timeout)
        return self.is_set()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The limits of all waits on events made from now on; the waits themselves return at once."""
    seen: list[float | None] = []
    monkeypatch.setattr(InstantEvent, "limits", seen, raising=False)
    monkeypatch.setattr(threading, "Event", InstantEvent)
    return seen


def spied_source(monkeypatch: pytest.MonkeyPatch) -> tuple[CancellationSource, SpyEvent]:
    events: list[SpyEvent] = []

    def make() -> SpyEvent:
        events.append(SpyEvent())
        return events[-1]

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", make)
        source = CancellationSource()
    (event,) = events
    return source, event


def cancelled_token() -> CancellationToken:
    source = CancellationSource()
    source.cancel()
    return source.token


class TestChecks:
    def test_a_new_token_is_not_cancelled(self) -> None:
        """A new token answers False and gives no cause, reason or actor."""
        token = CancellationSource().token
        assert token.cancel_requested is False
        assert (token.cause, token.reason, token.actor) == (None, None, None)

    def test_a_new_token_does_not_raise(self) -> None:
        """raise_if_cancelled lets a body go on whose token is not cancelled."""
        CancellationSource().token.raise_if_cancelled()

    def test_a_cancelled_token_says_so(self) -> None:
        """A cancelled token answers True, and with the cause, the reason and the actor."""
        source = CancellationSource()
        source.cancel(Cause.DELETED, "customer left", "alice")
        assert source.token.cancel_requested is True
        assert (source.token.cause, source.token.reason, source.token.actor) == (
            Cause.DELETED,
            "customer left",
            "alice",
        )

    def test_a_cancelled_token_raises(self) -> None:
        """raise_if_cancelled raises TaskCancelled with the cause and the reason, every time."""
        source = CancellationSource()
        source.cancel(Cause.SHUTDOWN, "deploy")
        for _ in range(2):
            with pytest.raises(TaskCancelled) as caught:
                source.token.raise_if_cancelled()
            assert (caught.value.cause, caught.value.reason) == (Cause.SHUTDOWN, "deploy")

    def test_the_check_of_a_live_token_is_a_slot(self) -> None:
        """The class has a bare slot for cancel_requested, as anything else would be many times slower."""
        assert type(CancellationSource().token) is CancellationToken
        assert isinstance(CancellationToken.__dict__["cancel_requested"], types.MemberDescriptorType)

    def test_loops_that_checked_many_times_still_see_it(self) -> None:
        """A check that the interpreter has specialized for the live class notices the trip."""
        source = CancellationSource()
        token = source.token
        answers = []
        for round_ in range(2000):
            if round_ == 1000:
                source.cancel()
            answers.append(token.cancel_requested)
        assert answers == [False] * 1000 + [True] * 1000

    def test_can_be_cancelled(self) -> None:
        """A token with a source can be cancelled, and still could once it is."""
        source = CancellationSource()
        assert source.token.can_be_cancelled
        source.cancel()
        assert source.token.can_be_cancelled

    def test_it_stays_a_token(self) -> None:
        """A token is an instance of CancellationToken, and the same object, before and after."""
        source = CancellationSource()
        token = source.token
        assert isinstance(token, CancellationToken)
        source.cancel()
        assert isinstance(token, CancellationToken)
        assert source.token is token

    def test_repr(self) -> None:
        """A token shows itself as a CancellationToken, with the cause once it has one."""
        source = CancellationSource()
        assert repr(source.token) == "<CancellationToken live>"
        source.cancel(Cause.TIMEOUT)
        assert repr(source.token) == "<CancellationToken TIMEOUT>"

    def test_it_outlives_its_source(self) -> None:
        """A token whose source is gone answers as before, in whatever state it was left."""
        live = CancellationSource().token
        tripped = cancelled_token()
        assert not live.cancel_requested
        assert not live.wait(0)
        live.disregard()
        assert tripped.cancel_requested
        assert tripped.cause is Cause.REVOKED
        tripped.disregard()
        with pytest.raises(TaskCancelled):
            tripped.raise_if_cancelled()


class TestWaits:
    def test_wait_returns_false_after_its_timeout(self, limits: list[float | None]) -> None:
        """A wait on a token that stays live lasts as long as asked and answers False."""
        assert CancellationSource().token.wait(2.5) is False
        assert limits == [2.5]

    def test_wait_without_timeout_has_no_limit(self, limits: list[float | None]) -> None:
        """A wait without timeout waits as long as it takes."""
        CancellationSource().token.wait()
        assert limits == [None]

    def test_sleep_returns_after_its_time(self, limits: list[float | None]) -> None:
        """A sleep of a token that stays live lasts as long as asked and returns."""
        CancellationSource().token.sleep(2.5)
        assert limits == [2.5]

    def test_a_real_wait_lasts(self) -> None:
        """A wait that nobody ends lasts no less than its timeout."""
        began = time.monotonic()
        assert CancellationSource().token.wait(0.05) is False
        assert time.monotonic() - began >= 0.049

    def test_cancelling_ends_a_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wait under way returns True as soon as somebody cancels."""
        source, event = spied_source(monkeypatch)
        answers: list[bool] = []
        waiter = threading.Thread(target=lambda: answers.append(source.token.wait(LONGER_THAN_ANY_TEST)))
        waiter.start()
        assert event.waiting.wait(PATIENCE), "nobody waits"
        source.cancel()
        waiter.join(PATIENCE)
        assert answers == [True]

    def test_cancelling_ends_a_sleep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sleep under way raises as soon as somebody cancels."""
        source, event = spied_source(monkeypatch)
        raised: list[TaskCancelled] = []

        def body() -> None:
            try:
                source.token.sleep(LONGER_THAN_ANY_TEST)
            except TaskCancelled as cancelled:
                raised.append(cancelled)

        sleeper = threading.Thread(target=body)
        sleeper.start()
        assert event.waiting.wait(PATIENCE), "nobody sleeps"
        source.cancel(Cause.SHUTDOWN, "deploy")
        sleeper.join(PATIENCE)
        assert [(one.cause, one.reason) for one in raised] == [(Cause.SHUTDOWN, "deploy")]

    def test_a_cancelled_token_does_not_wait(self) -> None:
        """A wait on a token that is cancelled already returns True at once."""
        assert cancelled_token().wait() is True

    def test_a_cancelled_token_does_not_sleep(self) -> None:
        """A sleep of a token that is cancelled already raises at once."""
        with pytest.raises(TaskCancelled):
            cancelled_token().sleep(LONGER_THAN_ANY_TEST)

    def test_a_tripped_token_does_not_wait_for_the_wake(self, limits: list[float | None]) -> None:
        """A token that was tripped, but nobody woken yet, neither waits nor sleeps."""
        source = CancellationSource()
        source.trip(Cancellation(Cause.REVOKED))
        assert source.token.wait(1) is True
        with pytest.raises(TaskCancelled):
            source.token.sleep(1)
        assert limits == []

    def test_a_trip_during_the_wait_counts_even_if_nobody_wakes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wait that runs into its timeout still answers True if the token was tripped meanwhile."""
        source = CancellationSource()

        def trip_and_time_out(timeout: float | None) -> bool:
            source.trip(Cancellation(Cause.REVOKED))
            return False

        monkeypatch.setattr(source.token._event, "wait", trip_and_time_out)
        assert source.token.wait(1) is True

    @pytest.mark.parametrize("seconds", [math.inf, 1e300, 10**400])
    def test_longer_than_the_platform_can_wait(self, limits: list[float | None], seconds: float) -> None:
        """A time beyond what a lock can wait, infinity included, is no error but no limit."""
        CancellationSource().token.wait(seconds)
        CancellationSource().token.sleep(seconds)
        assert limits == [None, None]

    @pytest.mark.parametrize("seconds", [0, -0.0, 1, 0.5, Fraction(1, 2), Decimal("0.5")])
    def test_any_number_of_seconds(self, limits: list[float | None], seconds: float) -> None:
        """Whatever is a number and not negative is a time."""
        CancellationSource().token.wait(seconds)
        assert limits == [float(seconds)]
        assert type(limits[0]) is float

    @pytest.mark.parametrize("token", [CancellationSource().token, cancelled_token(), CancellationToken.none])
    @pytest.mark.parametrize(
        "seconds", [-1, -0.001, math.nan, Decimal("nan"), "1", 1j, timedelta(seconds=1), [1]]
    )
    def test_anything_else_is_refused(self, token: CancellationToken, seconds: float) -> None:
        """A negative time, NaN and what is no number are refused by name, whatever the token's state."""
        with pytest.raises(InvalidArgumentError, match="timeout: must be a number of seconds, 0 or more"):
            token.wait(seconds)
        with pytest.raises(InvalidArgumentError, match="seconds: must be a number of seconds, 0 or more"):
            token.sleep(seconds)

    def test_sleep_needs_a_time(self) -> None:
        """None is a timeout, but no time to sleep."""
        with pytest.raises(InvalidArgumentError, match="seconds"):
            CancellationSource().token.sleep(None)  # type: ignore[arg-type]


class TestReadOnly:
    @pytest.mark.parametrize("token", [CancellationSource().token, cancelled_token(), CancellationToken.none])
    @pytest.mark.parametrize("name", ["cancel_requested", "cause", "_cancellation", "anything", "__class__"])
    def test_attributes_cannot_be_set_or_deleted(self, token: CancellationToken, name: str) -> None:
        """Nobody sets or deletes an attribute of a token, and the message says what a token is."""
        with pytest.raises(AttributeError, match="read-only"):
            setattr(token, name, True)
        with pytest.raises(AttributeError, match="read-only"):
            delattr(token, name)

    def test_it_cannot_be_made(self) -> None:
        """Calling the class tells where tokens come from."""
        with pytest.raises(TypeError, match=r"CancellationSource\(\)\.token"):
            CancellationToken()

    @pytest.mark.parametrize("token", [CancellationSource().token, cancelled_token()])
    @pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_it_can_be_neither_pickled_nor_copied(self, token: CancellationToken, take: object) -> None:
        """A token that belongs to a run refuses to travel, and the message names what may."""
        assert callable(take)
        with pytest.raises(TypeError, match=r"pass CancellationToken\.none in its place"):
            take(token)

    def test_it_can_be_referred_to_weakly_and_hashed(self) -> None:
        """A token may be a key, and a weak one, also across the trip."""
        source = CancellationSource()
        keys = weakref.WeakKeyDictionary({source.token: 1})
        source.cancel()
        assert keys[source.token] == 1


class TestNone:
    none = CancellationToken.none

    def test_it_is_a_token_that_is_never_cancelled(self) -> None:
        """`none` is a token, not cancelled, without cause, and says that it cannot be cancelled."""
        assert isinstance(self.none, CancellationToken)
        assert self.none.cancel_requested is False
        assert self.none.can_be_cancelled is False
        assert self.none.cause is None
        self.none.raise_if_cancelled()

    def test_repr(self) -> None:
        """`none` shows itself as what it is."""
        assert repr(self.none) == "<CancellationToken none>"

    def test_disregard_does_nothing(self) -> None:
        """The body's word is accepted on `none` as on any token."""
        self.none.disregard()

    def test_waits_are_real(self, limits: list[float | None]) -> None:
        """`none` waits and sleeps as long as asked, or for ever, on an event made for it."""
        assert self.none.wait(2.5) is False
        assert self.none.wait() is False
        self.none.sleep(1.5)
        assert limits == [2.5, None, 1.5]

    def test_callbacks_never_run(self) -> None:
        """A callback on `none` has a registration like any other, which is not held up by anything."""
        ran: list[int] = []
        with self.none.on_cancel(lambda: ran.append(1)) as registration:
            pass
        assert registration.unregister() is False
        assert ran == []

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_it_pickles_to_itself(self, protocol: int) -> None:
        """There is one `none` in a process, and a pickled one comes back as it."""
        assert pickle.loads(pickle.dumps([self.none], protocol))[0] is self.none

    def test_it_copies_to_itself(self) -> None:
        """A copy of `none`, or of what holds it, has the one `none`."""
        assert copy.copy(self.none) is self.none
        assert copy.deepcopy({"token": self.none})["token"] is self.none


class TestTaskCancelled:
    def test_an_except_exception_lets_it_pass(self) -> None:
        """It is no Exception, so that a body's `except Exception` cannot eat it."""
        assert issubclass(TaskCancelled, BaseException)
        assert not issubclass(TaskCancelled, Exception)

    def test_a_stray_one_needs_no_arguments(self) -> None:
        """A body may raise one by itself; it has no cause and no reason."""
        stray = TaskCancelled()
        assert (stray.cause, stray.reason) == (None, None)

    @pytest.mark.parametrize(
        ("cancelled", "text"),
        [
            (TaskCancelled(Cause.REVOKED, "customer left"), "REVOKED: customer left"),
            (TaskCancelled(Cause.REVOKED), "REVOKED"),
            (TaskCancelled(reason="enough"), "enough"),
            (TaskCancelled(), "cancelled without a cause"),
        ],
    )
    def test_str(self, cancelled: TaskCancelled, text: str) -> None:
        """Its text is the cause and the reason, as far as there are any."""
        assert str(cancelled) == text

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_it_pickles(self, protocol: int) -> None:
        """Cause and reason survive pickle, whether given by position or by name."""
        back = pickle.loads(pickle.dumps(TaskCancelled(cause=Cause.DELETED, reason="why"), protocol))
        assert type(back) is TaskCancelled
        assert (back.cause, back.reason) == (Cause.DELETED, "why")

    def test_it_survives_json(self) -> None:
        """Rebuilt from its args as JSON has them, as a result backend does it, the cause is a Cause again."""
        sent = TaskCancelled(reason="deploy", cause=Cause.SHUTDOWN)
        back = TaskCancelled(*json.loads(json.dumps(sent.args)))
        assert back.cause is Cause.SHUTDOWN
        assert back.reason == "deploy"

    def test_words_are_no_cause(self) -> None:
        """A message in the place of the cause is refused, with the hint where it belongs."""
        with pytest.raises(InvalidArgumentError, match=r"cause: 'enough' is none of REVOKED, .* reason="):
            TaskCancelled("enough")  # type: ignore[arg-type]


class TestPackage:
    def test_the_core_loads_neither_celery_nor_redis(self) -> None:
        """Checking tokens costs a program no more than the standard library."""
        script = (
            "import sys; from celery_canceltoken import CancellationSource, CancellationToken, Cause, State,"
            " Registration, TaskCancelled, current_token, InvalidArgumentError;"
            " print([m for m in ('celery', 'kombu', 'redis', 'asyncio') if m in sys.modules])"
        )
        root = str(Path(celery_canceltoken.__file__).parents[1])
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (run.stdout.strip(), run.stderr) == ("[]", "")

    def test_a_name_is_the_same_object_wherever_it_is_imported_from(self) -> None:
        """The package hands out the objects of its modules."""
        assert celery_canceltoken.CancellationToken is CancellationToken
        assert celery_canceltoken.TaskCancelled is TaskCancelled

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        """A misspelt name fails as it would with any module."""
        with pytest.raises(AttributeError, match="module 'celery_canceltoken' has no attribute 'Cancel'"):
            celery_canceltoken.Cancel  # type: ignore[attr-defined]  # noqa: B018

    def test_every_public_name_is_listed_once_and_has_a_home(self) -> None:
        """`__all__` is what `dir` shows and what can be loaded, in order."""
        assert sorted(celery_canceltoken.__all__) == list(celery_canceltoken.__all__)
        assert (
            set(celery_canceltoken._HOMES) == set(celery_canceltoken.__all__) <= set(dir(celery_canceltoken))
        )
