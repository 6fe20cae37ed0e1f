"""Tripping a token: who wins, who is told, and what becomes of callbacks."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celery_canceltoken.cancelled import TaskCancelled
from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.token import CancellationSource, CancellationToken, Registration, run_in_thread

PATIENCE = 10.0
LONGER_THAN_ANY_TEST = 600.0
REVOKED = Cancellation(Cause.REVOKED)

RealEvent = threading.Event


class SpyEvent(RealEvent):
    """Waits for real, and tells the test that somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = RealEvent()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.set()
        return super().wait(timeout)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that take turns as often as the interpreter can manage."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_together(*bodies: Callable[[], object]) -> None:
    """Run each body in a thread of its own, all at once; what one raises fails the test."""
    start = threading.Barrier(len(bodies))
    errors: list[BaseException] = []

    def run(body: Callable[[], object]) -> None:
        try:
            start.wait(PATIENCE)
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


class LateRival(dict[None, Any]):
    """A cell that somebody else fills at the very last moment."""

    def __init__(self, theirs: object) -> None:
        super().__init__()
        self.theirs = theirs

    def setdefault(self, key: None, mine: object) -> Any:  # type: ignore[override]
        super().setdefault(key, self.theirs)
        return super().setdefault(key, mine)


def refuse_to_run(run: Callable[[], None]) -> None:
    pytest.fail("the runner was asked")


class TestCancel:
    def test_the_first_one_wins(self) -> None:
        """The first cancellation answers True and stays; a later one answers False and changes nothing."""
        source = CancellationSource()
        assert source.cancel(Cause.SHUTDOWN, "deploy", "ops") is True
        assert source.cancel(Cause.REVOKED, "customer left", "alice") is False
        assert source.cancellation == Cancellation(Cause.SHUTDOWN, "deploy", "ops")

    def test_it_revokes_unless_told_otherwise(self) -> None:
        """Without arguments the cause is REVOKED, without reason or actor."""
        source = CancellationSource()
        assert source.cancellation is None
        source.cancel()
        assert source.cancellation == Cancellation(Cause.REVOKED, None, None)

    def test_a_reason_is_no_cause(self) -> None:
        """Words in the place of the cause are refused, and the token is not cancelled."""
        source = CancellationSource()
        with pytest.raises(InvalidArgumentError, match=r"cause: 'customer left' is none of .* reason="):
            source.cancel("customer left")  # type: ignore[arg-type]
        assert source.cancellation is None

    def test_the_same_cancellation_wins_once(self) -> None:
        """Two callers that bring the very same object are still told apart."""
        source = CancellationSource()
        assert [source.trip(REVOKED), source.trip(REVOKED)] == [True, False]

    def test_a_loser_too_leaves_a_cancelled_token(self) -> None:
        """Whoever loses while the winner is still at it has a cancelled token when it returns."""
        source = CancellationSource()
        source._cancelled[None] = (Cancellation(Cause.SHUTDOWN),)  # as far as the winner has come
        assert source.cancel() is False
        assert source.token.cancel_requested
        assert source.token.cause is Cause.SHUTDOWN

    def test_a_rival_at_the_last_moment_wins(self) -> None:
        """A cancellation overtaken between looking and deciding has lost, and knows."""
        source = CancellationSource()
        source._cancelled = LateRival((Cancellation(Cause.SHUTDOWN),))
        assert source.cancel() is False
        assert source.token.cause is Cause.SHUTDOWN

    @pytest.mark.usefixtures("impatient")
    def test_of_many_threads_one_wins(self) -> None:
        """Of many threads that cancel at once one wins, its cause stays, and all leave a cancelled token."""

        def one_round() -> None:
            source = CancellationSource()
            won: list[str] = []

            def body(name: str) -> None:
                if source.cancel(reason=name):
                    won.append(name)
                assert source.token.cancel_requested

            run_together(*(partial(body, name) for name in "abcdef"))
            assert won == [source.token.reason]

        for _ in range(50):
            one_round()


class TestTripAndWake:
    def test_a_trip_sets_the_flag_and_nothing_else(self) -> None:
        """After a trip checks answer, but no event was set and no callback ran; the wake does both."""
        source = CancellationSource()
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        assert source.trip(REVOKED)
        assert source.token.cancel_requested
        assert (source.token._event.is_set(), ran) == (False, [])
        source.wake()
        assert (source.token._event.is_set(), ran) == (True, [1])

    def test_a_wake_before_the_trip_does_nothing(self) -> None:
        """Who wakes too early, by a message overtaken for instance, wakes nobody."""
        source = CancellationSource()
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        source.wake()
        assert source.token.wait(0) is False
        assert ran == []

    def test_a_second_wake_is_harmless(self) -> None:
        """Callbacks run once, however often somebody wakes."""
        source = CancellationSource()
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        source.cancel()
        source.wake()
        assert ran == [1]

    def test_a_loser_does_not_wake(self) -> None:
        """The wake is the winner's to do, in the world that it chooses."""
        source = CancellationSource()
        source.trip(REVOKED)
        source.cancel()
        assert not source.token._event.is_set()

    def test_a_trip_needs_no_lock_of_the_body(self) -> None:
        """A trip gets through while a body holds what a wait locks, as with a thread suspended there."""
        source = CancellationSource()
        with source.token._event._cond:  # type: ignore[attr-defined]
            run_together(lambda: source.trip(REVOKED))
        assert source.token.cancel_requested

    def test_waiters_wake_before_callbacks_run(self) -> None:
        """A slow callback does not keep a waiting body waiting."""
        source = CancellationSource()
        seen: list[bool] = []
        source.token.on_cancel(lambda: seen.append(source.token.wait(0)))
        source.token.on_cancel(lambda: seen.append(source.token._event.is_set()))
        source.cancel()
        assert seen == [True, True]


def read(token: CancellationToken) -> object:
    return token.cancel_requested


def raise_(token: CancellationToken) -> object:
    with pytest.raises(TaskCancelled):
        token.raise_if_cancelled()
    return None


def wait(token: CancellationToken) -> object:
    return token.wait(LONGER_THAN_ANY_TEST)


def sleep(token: CancellationToken) -> object:
    with pytest.raises(TaskCancelled):
        token.sleep(LONGER_THAN_ANY_TEST)
    return None


class TestObserved:
    @pytest.mark.parametrize("look", [read, raise_, wait, sleep])
    def test_a_check_that_tells_counts(self, look: Callable[[CancellationToken], object]) -> None:
        """Each way to learn of a cancellation counts, is timed, and is reported once, in its thread."""
        calls: list[int] = []
        source = CancellationSource(on_observed=lambda: calls.append(threading.get_ident()))
        source.cancel()
        assert (source.observed, source.observed_at, calls) == (False, None, [])
        before = time.monotonic()
        look(source.token)
        first = source.observed_at
        assert source.observed is True
        assert first is not None
        assert before <= first <= time.monotonic()
        look(source.token)
        assert source.observed_at == first
        assert calls == [threading.get_ident()]

    def test_a_check_that_tells_nothing_does_not_count(self) -> None:
        """Looking at a live token is no observation, and stays none when it is cancelled later."""
        source = CancellationSource()
        assert not source.token.cancel_requested
        source.token.raise_if_cancelled()
        source.token.wait(0)
        source.token.sleep(0)
        source.cancel()
        assert not source.observed

    def test_what_is_no_check_does_not_count(self) -> None:
        """A callback, cause, reason, actor, repr, a log line or the body's word is no observation."""
        source = CancellationSource()
        token = source.token
        token.on_cancel(lambda: None)
        source.cancel()
        token.on_cancel(lambda: None)
        logging.getLogger(__name__).info("%s %r", token, token)
        assert (token.cause, token.reason, token.actor) == (Cause.REVOKED, None, None)
        assert repr(token)
        assert token.can_be_cancelled
        assert isinstance(token, CancellationToken)
        token.disregard()
        assert source.cancellation
        assert not source.observed

    @pytest.mark.parametrize("error", [ValueError("no"), TaskCancelled()])
    def test_a_failing_report_does_not_reach_the_body(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What on_observed raises is logged; the body gets its answer."""

        def fail() -> None:
            raise error

        source = CancellationSource(on_observed=fail)
        source.cancel()
        assert source.token.cancel_requested is True
        assert [record.name for record in caplog.records] == ["celery_canceltoken.token"]
        assert source.observed

    def test_a_rival_at_the_last_moment_reports(self) -> None:
        """A body's thread overtaken by another one of its threads leaves the time and the report to that."""
        calls: list[int] = []
        source = CancellationSource(on_observed=partial(calls.append, 1))
        source.cancel()
        source._observed = LateRival(1.5)
        assert source.token.cancel_requested
        assert source.observed_at == 1.5
        assert calls == []

    @pytest.mark.usefixtures("impatient")
    def test_of_many_threads_one_reports(self) -> None:
        """However many threads learn of it at once, it is reported once."""
        for _ in range(50):
            calls: list[int] = []
            source = CancellationSource(on_observed=partial(calls.append, 1))
            source.cancel()
            run_together(*[partial(read, source.token)] * 6)
            assert calls == [1]


class TestDisregard:
    def test_it_reaches_the_source(self) -> None:
        """The word of a cancelled body is there for whoever decides the outcome."""
        source = CancellationSource()
        source.cancel()
        assert source.disregarded is False
        source.token.disregard()
        assert source.disregarded is True

    def test_of_a_token_that_is_not_cancelled_it_means_nothing(self) -> None:
        """A body that was not told yet cannot have finished all the same, also if it is cancelled later."""
        source = CancellationSource()
        source.token.disregard()
        source.cancel()
        assert source.disregarded is False


class TestCallbacks:
    def test_they_run_in_the_caller_last_one_first(self) -> None:
        """By default cancel runs the callbacks itself before it returns, in reverse order, once each."""
        source = CancellationSource()
        ran: list[tuple[int, int]] = []

        def callback(n: int) -> None:
            ran.append((n, threading.get_ident()))

        for n in range(3):
            source.token.on_cancel(partial(callback, n))
        source.cancel()
        source.cancel()
        assert ran == [(n, threading.get_ident()) for n in (2, 1, 0)]

    def test_a_late_one_runs_at_once(self) -> None:
        """A callback on a cancelled token runs before on_cancel returns, in the caller, runner or not."""
        source = CancellationSource(run_callbacks=refuse_to_run)
        source.cancel()
        ran: list[int] = []
        registration = source.token.on_cancel(lambda: ran.append(threading.get_ident()))
        assert ran == [threading.get_ident()]
        assert registration.unregister() is False

    def test_a_late_one_runs_without_a_source_too(self) -> None:
        """A late callback runs, whether or not anybody still holds the source."""
        source = CancellationSource()
        source.cancel()
        token = source.token
        del source
        ran: list[int] = []
        with token.on_cancel(lambda: ran.append(1)):
            assert ran == [1]

    def test_one_between_trip_and_wake_runs_once(self) -> None:
        """A callback that comes after the trip is late, and the wake does not run it again."""
        source = CancellationSource()
        source.trip(REVOKED)
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        assert ran == [1]
        source.wake()
        assert ran == [1]

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_one_that_meets_the_cancellation_runs_once(self, moment: str) -> None:
        """A cancellation that comes right while a callback is being registered runs it once."""
        source = CancellationSource()

        class Meeting(dict[Registration, bool]):
            def __setitem__(self, registration: Registration, value: bool) -> None:
                if moment == "before":
                    source.cancel()
                super().__setitem__(registration, value)
                if moment == "after":
                    source.cancel()

        source._pending = Meeting()
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        assert ran == [1]

    @pytest.mark.parametrize("error", [ValueError("no"), TaskCancelled()])
    def test_one_that_fails_is_logged_and_the_others_run(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A callback that raises is logged, disturbs no other and not the one who cancels."""
        source = CancellationSource()
        ran: list[int] = []

        def fail() -> None:
            raise error

        source.token.on_cancel(lambda: ran.append(1))
        source.token.on_cancel(fail)
        source.token.on_cancel(lambda: ran.append(2))
        assert source.cancel() is True
        assert ran == [2, 1]
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("celery_canceltoken.token", "ERROR")
        assert record.exc_info
        assert record.exc_info[1] is error

    @pytest.mark.parametrize("error", [ValueError("no"), TaskCancelled()])
    def test_a_late_one_that_fails_is_logged_too(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whether a callback's error reaches the body does not depend on the moment: it does not."""
        source = CancellationSource()
        source.cancel()

        def fail() -> None:
            raise error

        source.token.on_cancel(fail)
        assert [record.name for record in caplog.records] == ["celery_canceltoken.token"]

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_what_is_addressed_to_the_thread_goes_on_after_the_others(
        self, error: type[BaseException]
    ) -> None:
        """An exception meant to end the thread does, but only when the other callbacks have run."""
        source = CancellationSource()
        ran: list[int] = []

        def leave() -> None:
            raise error

        source.token.on_cancel(lambda: ran.append(1))
        source.token.on_cancel(leave)
        with pytest.raises(error):
            source.cancel()
        assert ran == [1]

    def test_they_run_in_the_context_they_were_registered_in(self) -> None:
        """A callback sees the context variables of its registration, and leaves those of others alone."""
        variable = contextvars.ContextVar("variable", default="canceller")
        source = CancellationSource()
        seen: list[str] = []

        def callback() -> None:
            seen.append(variable.get())
            variable.set("callback")

        reset = variable.set("body")
        source.token.on_cancel(callback)
        variable.reset(reset)
        source.cancel()
        assert seen == ["body"]
        assert variable.get() == "canceller"

    def test_they_run_where_the_runner_says(self) -> None:
        """With a runner nothing runs before it says so, and then all of them."""
        given: list[Callable[[], None]] = []
        source = CancellationSource(run_callbacks=given.append)
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        source.token.on_cancel(lambda: ran.append(2))
        source.cancel()
        assert ran == []
        (run,) = given
        run()
        assert ran == [2, 1]

    def test_without_callbacks_no_runner_is_asked(self) -> None:
        """A task without callbacks costs no thread when it is cancelled."""
        source = CancellationSource(run_callbacks=refuse_to_run)
        assert source.cancel()

    def test_a_runner_that_fails_does_not_lose_them(self, caplog: pytest.LogCaptureFixture) -> None:
        """If the runner cannot run callbacks, no thread to be had, they run in the caller."""

        def no_thread(run: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        source = CancellationSource(run_callbacks=no_thread)
        ran: list[int] = []
        source.token.on_cancel(lambda: ran.append(1))
        assert source.cancel() is True
        assert ran == [1]
        assert [record.name for record in caplog.records] == ["celery_canceltoken.token"]

    def test_run_in_thread_does_not_hold_up_the_caller(self) -> None:
        """With run_in_thread callbacks run in a daemon thread, and cancel does not wait for them."""
        source = CancellationSource(run_callbacks=run_in_thread)
        release, threads = threading.Event(), list[threading.Thread]()
        done = threading.Event()

        def callback() -> None:
            assert release.wait(PATIENCE)
            threads.append(threading.current_thread())
            done.set()

        source.token.on_cancel(callback)
        source.cancel()
        release.set()
        assert done.wait(PATIENCE), "the callback did not run"
        (thread,) = threads
        assert thread is not threading.current_thread()
        assert thread.daemon
        thread.join(PATIENCE)

    def test_they_run_outside_locks(self) -> None:
        """While a callback runs, another thread may register, unregister, check, wait and cancel."""
        source = CancellationSource()
        token = source.token
        other = token.on_cancel(lambda: None)

        def use_everything() -> None:
            assert other.unregister()
            token.on_cancel(lambda: None)
            assert token.wait()
            assert not source.cancel()

        done: list[int] = []

        def callback() -> None:
            run_together(use_everything)
            done.append(1)

        token.on_cancel(callback)
        source.cancel()
        assert done == [1]

    def test_it_has_to_be_callable(self) -> None:
        """What cannot be called is refused when it is registered, not when it is too late."""
        with pytest.raises(InvalidArgumentError, match="callback: must be callable without arguments"):
            CancellationSource().token.on_cancel(None)  # type: ignore[arg-type]


class TestRegistration:
    def test_an_unregistered_one_does_not_run(self) -> None:
        """A callback that was taken back does not run; taking it back again is False."""
        source = CancellationSource()
        ran: list[int] = []
        registration = source.token.on_cancel(lambda: ran.append(1))
        assert registration.unregister() is True
        assert registration.unregister() is False
        source.cancel()
        assert ran == []

    def test_one_that_ran_cannot_be_taken_back(self) -> None:
        """After the callback ran, unregister answers False."""
        source = CancellationSource()
        registration = source.token.on_cancel(lambda: None)
        source.cancel()
        assert registration.unregister() is False

    def test_the_same_callback_twice_is_two_registrations(self) -> None:
        """Each registration counts for itself, also of one callback."""
        source = CancellationSource()
        ran: list[int] = []

        def callback() -> None:
            ran.append(1)

        first, second = source.token.on_cancel(callback), source.token.on_cancel(callback)
        assert first.unregister()
        source.cancel()
        assert ran == [1]
        assert not second.unregister()

    def test_a_block_unregisters(self) -> None:
        """At the end of its block a callback is taken back, and the block has the registration."""
        source = CancellationSource()
        ran: list[int] = []
        with source.token.on_cancel(lambda: ran.append(1)) as registration:
            assert isinstance(registration, Registration)
        source.cancel()
        assert ran == []

    def test_a_block_runs_its_callback_inside(self) -> None:
        """A cancellation within the block runs the callback, and the block's own error gets out."""
        source = CancellationSource()
        ran: list[int] = []

        def body() -> None:
            with source.token.on_cancel(lambda: ran.append(1)):
                source.cancel()
                source.token.raise_if_cancelled()

        with pytest.raises(TaskCancelled):
            body()
        assert ran == [1]

    def test_a_block_may_unregister_early(self) -> None:
        """A block whose registration was taken back inside does not wait for a callback that never runs."""
        source = CancellationSource()

        def body() -> None:
            with source.token.on_cancel(lambda: None) as registration:
                assert registration.unregister()
                source.cancel()

        run_together(body)

    def test_a_block_may_outlive_its_source(self) -> None:
        """Without a source there is no callback to wait for."""

        def body() -> None:
            with CancellationSource().token.on_cancel(lambda: None):
                pass

        run_together(body)

    def test_a_block_waits_for_a_callback_that_runs_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The end of a block comes after the end of a callback that runs in another thread."""
        source = CancellationSource()
        settled = SpyEvent()
        running, release = threading.Event(), threading.Event()
        order: list[str] = []

        def callback() -> None:
            running.set()
            assert release.wait(PATIENCE)
            order.append("callback")

        with monkeypatch.context() as patch:
            patch.setattr(threading, "Event", lambda: settled)
            registration = source.token.on_cancel(callback)

        def leave() -> None:
            with registration:
                assert running.wait(PATIENCE)
            order.append("left")

        def release_once_it_waits() -> None:
            try:
                assert settled.waiting.wait(PATIENCE), "the block does not wait"
                assert order == []
            finally:
                release.set()

        run_together(source.cancel, leave, release_once_it_waits)
        assert order == ["callback", "left"]

    @pytest.mark.parametrize("error", [ValueError, TaskCancelled, SystemExit])
    def test_a_block_does_not_wait_for_a_callback_that_failed(self, error: type[BaseException]) -> None:
        """A callback that ended with an exception is over, as any other."""
        source = CancellationSource()

        def fail() -> None:
            raise error

        registration = source.token.on_cancel(fail)
        with contextlib.suppress(SystemExit):
            source.cancel()

        def leave() -> None:
            with registration:
                pass

        run_together(leave)

    def test_unregister_does_not_wait(self) -> None:
        """Taking back a callback that runs in another thread answers False at once."""
        source = CancellationSource()
        running, release = threading.Event(), threading.Event()

        def callback() -> None:
            running.set()
            assert release.wait(PATIENCE)

        registration = source.token.on_cancel(callback)

        def take_back() -> None:
            assert running.wait(PATIENCE)
            assert registration.unregister() is False
            release.set()

        run_together(source.cancel, take_back)

    def test_a_callback_may_leave_its_own_block(self) -> None:
        """A callback that closes its own registration does not wait for itself."""
        source = CancellationSource()
        ran: list[int] = []

        def callback() -> None:
            registration.__exit__(None, None, None)
            ran.append(1)

        registration = source.token.on_cancel(callback)
        run_together(source.cancel)
        assert ran == [1]

    def test_a_callback_may_take_back_another(self) -> None:
        """A callback that has not had its turn can be taken back by one that has."""
        source = CancellationSource()
        ran: list[int] = []
        first = source.token.on_cancel(lambda: ran.append(1))
        source.token.on_cancel(lambda: ran.append(2 if first.unregister() else 3))
        source.cancel()
        assert ran == [2]


@pytest.mark.usefixtures("impatient")
class TestRaces:
    def test_each_callback_runs_once_or_was_taken_back(self) -> None:
        """Threads that register, unregister, cancel and wake at once: each callback runs once or never."""

        def one_round() -> None:
            source = CancellationSource()
            outcomes: list[tuple[list[int], bool]] = []

            def register() -> None:
                for n in range(60):
                    ran: list[int] = []
                    registration = source.token.on_cancel(partial(ran.append, 1))
                    outcomes.append((ran, bool(n % 3) and registration.unregister()))

            def cancel() -> None:
                while len(outcomes) < 40:  # in the midst of it
                    pass
                source.cancel()
                source.wake()

            run_together(register, register, register, cancel, cancel)
            assert len(outcomes) == 180
            for ran, taken_back in outcomes:
                assert len(ran) + taken_back == 1

        for _ in range(25):
            one_round()

    def test_two_threads_that_take_back_the_same_one(self) -> None:
        """Of a cancellation and two threads that take a callback back, exactly one gets it."""

        def one_round() -> None:
            source = CancellationSource()
            got: list[str] = []
            registration = source.token.on_cancel(partial(got.append, "ran"))

            def take_back() -> None:
                if registration.unregister():
                    got.append("taken back")

            run_together(take_back, source.cancel, take_back)
            assert len(got) == 1

        for _ in range(100):
            one_round()

    def test_after_a_block_the_callback_is_over(self) -> None:
        """However a cancellation meets the end of a block, no callback starts or runs after it."""

        def one_round() -> None:
            source = CancellationSource()
            trail: list[str] = []

            def callback() -> None:
                trail.append("begin")
                for _ in range(50):  # long enough to be interrupted
                    pass
                trail.append("end")

            def body() -> None:
                with source.token.on_cancel(callback):
                    pass
                trail.append("left")

            run_together(body, source.cancel)
            assert trail in (["left"], ["begin", "end", "left"])

        for _ in range(100):
            one_round()

    def test_no_waiter_is_forgotten(self) -> None:
        """A wait that begins while somebody cancels ends."""

        def one_round() -> None:
            source = CancellationSource()
            answers: list[bool] = []

            def body() -> None:
                answers.append(source.token.wait(LONGER_THAN_ANY_TEST))

            run_together(body, source.cancel, body)
            assert answers == [True, True]

        for _ in range(100):
            one_round()


def run_inline(run: Callable[[], None]) -> None:
    run()


class Payload:
    """Something to be freed."""


def hold(payload: Payload) -> None:
    """Be a callback that has something to hold on to."""


class TestMemory:
    @pytest.fixture(autouse=True)
    def no_collector(self) -> Iterator[None]:
        """With the collector off, only what is in no cycle is freed."""
        gc.collect()
        gc.disable()
        yield
        gc.enable()

    @pytest.mark.parametrize("end", ["nothing", "cancelled", "observed", "unregistered"])
    def test_a_run_is_freed_when_it_ends(self, end: str) -> None:
        """Source, token, callback and all that it holds on to, token included, go with the last reference."""

        def run() -> list[weakref.ref[object]]:
            payload = Payload()
            source = CancellationSource(run_callbacks=run_inline)
            token = source.token
            registration = token.on_cancel(lambda: (payload, token))
            if end != "nothing":
                source.cancel() if end != "unregistered" else registration.unregister()
            if end == "observed":
                with contextlib.suppress(TaskCancelled):
                    token.raise_if_cancelled()
            return [weakref.ref(source), weakref.ref(token), weakref.ref(payload)]

        assert [ref() for ref in run()] == [None, None, None]

    @pytest.mark.parametrize("end", ["cancel", "unregister"])
    def test_a_callback_is_let_go_once_it_is_over(self, end: str) -> None:
        """A registration that is kept does not keep a callback that ran or was taken back."""
        source = CancellationSource()
        payload = Payload()
        freed = weakref.ref(payload)
        registration = source.token.on_cancel(partial(hold, payload))
        del payload
        assert freed() is not None
        source.cancel() if end == "cancel" else registration.unregister()
        assert freed() is None

    def test_a_token_does_not_keep_its_source(self) -> None:
        """A token that was leaked keeps neither the source nor its callbacks."""
        source = CancellationSource()
        payload = Payload()
        token = source.token
        token.on_cancel(partial(hold, payload))
        freed: list[weakref.ref[object]] = [weakref.ref(source), weakref.ref(payload)]
        del source, payload
        assert [ref() for ref in freed] == [None, None]
        assert not token.cancel_requested


class SourceModel(RuleBasedStateMachine):
    """Any sequence of what one can do, beside the simplest thing that could be meant by it."""

    def __init__(self) -> None:
        super().__init__()
        self.told = 0
        self.source = CancellationSource(on_observed=self.tell)
        self.token = self.source.token
        self.registrations: list[Registration] = []
        self.ran: list[int] = []
        self.expected_runs: list[int] = []
        self.waiting: list[int] = []
        self.cancellation: Cancellation | None = None
        self.woken = False
        self.observed = False
        self.disregarded = False

    def tell(self) -> None:
        self.told += 1

    @rule()
    def register(self) -> None:
        n = len(self.registrations)
        self.registrations.append(self.token.on_cancel(lambda: self.ran.append(n)))
        if self.cancellation:
            self.expected_runs.append(n)
        else:
            self.waiting.append(n)

    @precondition(lambda self: self.registrations)
    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(self.registrations) - 1))
        assert self.registrations[n].unregister() is (n in self.waiting)
        if n in self.waiting:
            self.waiting.remove(n)

    @rule(cause=st.sampled_from(Cause), reason=st.none() | st.text(max_size=3))
    def cancel(self, cause: Cause, reason: str | None) -> None:
        assert self.source.cancel(cause, reason) is (self.cancellation is None)
        if self.cancellation is None:
            self.cancellation = Cancellation(cause, reason)
            self.expect_wake()

    @rule(cause=st.sampled_from(Cause))
    def trip(self, cause: Cause) -> None:
        assert self.source.trip(Cancellation(cause)) is (self.cancellation is None)
        self.cancellation = self.cancellation or Cancellation(cause)

    @rule()
    def wake(self) -> None:
        self.source.wake()
        if self.cancellation:
            self.expect_wake()

    def expect_wake(self) -> None:
        self.expected_runs += reversed(self.waiting)
        self.waiting.clear()
        self.woken = True

    @rule(look=st.sampled_from(["read", "raise", "wait", "sleep"]))
    def look(self, look: str) -> None:
        raised: TaskCancelled | None = None
        answer = False
        try:
            if look == "read":
                answer = self.token.cancel_requested
            elif look == "raise":
                self.token.raise_if_cancelled()
            elif look == "wait":
                answer = self.token.wait(0)
            else:
                self.token.sleep(0)
        except TaskCancelled as cancelled:
            raised = cancelled
        if look in {"read", "wait"}:
            assert answer is (self.cancellation is not None)
        else:
            assert (raised is not None) is (self.cancellation is not None)
            if raised and self.cancellation:
                assert (raised.cause, raised.reason) == (self.cancellation.cause, self.cancellation.reason)
        self.observed = self.observed or self.cancellation is not None

    @rule()
    def disregard(self) -> None:
        self.token.disregard()
        self.disregarded = self.disregarded or self.cancellation is not None

    @invariant()
    def agrees(self) -> None:
        assert self.source.cancellation == self.cancellation
        assert self.token.cause == (self.cancellation and self.cancellation.cause)
        assert self.token.reason == (self.cancellation and self.cancellation.reason)
        assert self.ran == self.expected_runs
        assert self.source.observed is self.observed
        assert self.told == self.observed
        assert self.source.disregarded is self.disregarded
        assert self.token._event.is_set() is self.woken


TestSourceModel = SourceModel.TestCase
TestSourceModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
