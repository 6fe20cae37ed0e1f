"""The token that a body looks at, and the source that trips it.

Nothing here takes a lock of its own. What may happen only once is decided by one operation of a
dict (`setdefault`, `pop`, `popitem`), which is a single step to every thread, greenlet and signal handler.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NoReturn

from celery_canceltoken.cancelled import TaskCancelled, as_cause
from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.errors import InvalidArgumentError

__all__ = ["CancellationSource", "CancellationToken", "Registration", "run_in_thread"]

logger = logging.getLogger(__name__)

PLACEHOLDER = {"__canceltoken__": "none"}
"""What `CancellationToken.none` becomes in JSON: plain data, to be dropped by whoever knows it."""

# What a callback may raise without harm. The rest (SystemExit, KeyboardInterrupt, GreenletExit, a test's own
# failure) is addressed to the thread that it is raised in, and is not ours to keep.
_LOGGED = (Exception, TaskCancelled)


class CancellationToken:
    """What a body looks at to learn that it should stop. .NET's and Hangfire's `CancellationToken`.

    Tokens come from a worker, from `CancellationSource.token` or `current_token`; `CancellationToken.none` is
    never cancelled. They are read-only, compare by identity, and every member is safe in any thread.
    """

    # A loop asks millions of times, so the question may cost no more than reading an attribute. On CPython
    # 3.11 a property costs ten times that and a class attribute three and a half; a slot costs the same.
    # A slot cannot take note of who read it, though, and from the trip on that is needed. So the trip
    # swaps the class of the instance for one that answers from a property.
    if not TYPE_CHECKING:
        # To checkers it is the property below, and pyright would believe the slot.
        __slots__ = {  # noqa: RUF023  (the public one first; a dict, as help() shows what it says)
            "cancel_requested": "True once cancellation was asked for, and ever after. No I/O, no lock. "
            ".NET's `IsCancellationRequested`.",
            "_cancellation": None,
            "_event": None,
            "_source": None,
            "__weakref__": None,
        }

    none: ClassVar[CancellationToken]
    """The token that is never cancelled, and the placeholder in a call. .NET's `CancellationToken.None`."""

    if TYPE_CHECKING:
        _cancellation: Cancellation | None
        _event: threading.Event
        _source: Callable[[], CancellationSource | None]

        @property
        def cancel_requested(self) -> bool: ...  # noqa: D102

    def __init__(self) -> None:
        raise TypeError(
            "a CancellationToken is not made but obtained: from CancellationSource().token, "
            "current_token() or CancellationToken.none"
        )

    @property
    def can_be_cancelled(self) -> bool:
        """False for `CancellationToken.none` only. .NET's `CanBeCanceled`."""
        return True

    @property
    def cause(self) -> Cause | None:
        """Why it was cancelled; None if it was not. Reading it is no check."""
        return self._cancellation.cause if self._cancellation else None

    @property
    def reason(self) -> str | None:
        """The words of whoever asked, if there were any. Reading it is no check."""
        return self._cancellation.reason if self._cancellation else None

    @property
    def actor(self) -> str | None:
        """Who asked, if known. Reading it is no check."""
        return self._cancellation.actor if self._cancellation else None

    def raise_if_cancelled(self) -> None:
        """Raise if cancellation was asked for. .NET's `ThrowIfCancellationRequested`.

        Raises:
            TaskCancelled: with the cause and the reason.
        """

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until cancelled, but at most `timeout` seconds, and return whether it is cancelled.

        Without a timeout it waits as long as it takes; on `CancellationToken.none` that is for ever, as with
        .NET's `WaitHandle`: code behaves there as with a token that nobody happens to cancel.

        Raises:
            InvalidArgumentError: `timeout` is negative or no number.
        """
        return self._wait(None if timeout is None else _as_limit("timeout", timeout))

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake at once when cancelled; cancelled before, do not sleep at all.

        Raises:
            TaskCancelled: with the cause and the reason.
            InvalidArgumentError: `seconds` is negative or no number.
        """
        self._wait(_as_limit("seconds", seconds))
        self.raise_if_cancelled()

    def on_cancel(self, callback: Callable[[], object]) -> Registration:
        """Have `callback` called once, when cancelled. .NET's `Register`.

        As in .NET, the last one registered runs first, each in a copy of the context (`contextvars`) that it
        was registered in, and at once, right here, if the token is cancelled already. Otherwise the source
        decides on the thread: in a worker it is never the body's. Unlike .NET, what a callback raises is
        logged, a late one's too, since who gets it must not depend on the moment; only a `BaseException`
        other than `TaskCancelled` goes on to the caller, after the other callbacks. That a callback ran
        does not count as the body having been told.

        Raises:
            InvalidArgumentError: `callback` cannot be called.
        """
        if not callable(callback):
            raise InvalidArgumentError("callback", f"must be callable without arguments, not {callback!r}")
        registration = Registration(callback, self._source)
        source = self._source()
        if source is not None:
            source._pending[registration] = True
        # Asked for only now: a trip after this line finds the registration, one before it is seen here.
        # Both may be true, and then it is whoever takes it out that runs it.
        if self._cancellation is not None and (source is None or source._pending.pop(registration, False)):
            registration._run()
        return registration

    def disregard(self) -> None:
        """Give the body's word that it knows of the cancellation and has completed its work all the same.

        Its return value then counts as success. Nothing happens if the token is not cancelled (yet).
        """

    def _wait(self, limit: float | None) -> bool:
        # A source may be tripped for a while before anybody is woken, hence the first look.
        if not self.cancel_requested:
            self._event.wait(limit)
        return self.cancel_requested

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"cannot set {name!r}: a CancellationToken is read-only, cancel its source")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete {name!r}: a CancellationToken is read-only")

    def __repr__(self) -> str:
        return f"<CancellationToken {self.cause or 'live'}>"

    def __reduce__(self) -> str:
        raise TypeError(
            "a live CancellationToken cannot be pickled or copied, it belongs to one run in one process; "
            "pass CancellationToken.none in its place, each run of a task gets a token of its own"
        )


class _Tripped(CancellationToken):
    """What a token turns into when it trips. From here on, looking is taken note of."""

    __slots__ = ()

    @property
    def cancel_requested(self) -> bool:
        self._told()
        return True

    def raise_if_cancelled(self) -> None:
        self._told()
        raise TaskCancelled(self.cause, self.reason)

    def disregard(self) -> None:
        source = self._source()
        if source is not None:
            source._disregarded = True

    def _told(self) -> None:
        source = self._source()
        if source is not None:
            source._note_observed()


class _Never(CancellationToken):
    """The class of `CancellationToken.none`."""

    __slots__ = ()

    @property
    def can_be_cancelled(self) -> bool:
        return False

    def _wait(self, limit: float | None) -> bool:
        # `none` is older than any monkey-patching of `threading`, so it must not keep an event of its own.
        threading.Event().wait(limit)
        return False

    def __repr__(self) -> str:
        return "<CancellationToken none>"

    def __json__(self) -> dict[str, str]:
        return PLACEHOLDER

    def __reduce__(self) -> str:
        # A name instead of a recipe: copies and unpickled ones are the same object, in any protocol.
        return "CancellationToken.none"


class Registration:
    """A callback waiting for its token. .NET's `CancellationTokenRegistration`.

    As a context manager it unregisters at the end of the block and, as .NET's `Dispose`, waits for the
    callback if that is running in another thread: after the block it neither runs nor will. So do not leave
    the block holding a lock that the callback needs. A body that is woken and leaves before the callback had
    its turn has taken it back, cancelled or not. Safe in any thread.
    """

    __slots__ = ("_call", "_settled", "_source", "_thread")

    def __init__(
        self, callback: Callable[[], object], source: Callable[[], CancellationSource | None]
    ) -> None:
        self._call: Callable[[], object] = partial(copy_context().run, callback)
        self._settled = threading.Event()
        self._source = source
        self._thread: int | None = None

    def unregister(self) -> bool:
        """Take the callback back, without waiting. .NET's `Unregister`.

        Returns True if it is due to this call that it will not run; False if it runs, ran, was taken back
        before, or could never have run.
        """
        source = self._source()
        if source is None or not source._pending.pop(self, False):
            return False
        self._settle()
        return True

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        # Without a source (`none`, or one that nobody holds any longer) there is nobody to run it. And a
        # callback that leaves the block of its own registration must not wait for itself.
        if not self.unregister() and self._source() is not None and self._thread != threading.get_ident():
            self._settled.wait()

    def _run(self) -> None:
        self._thread = threading.get_ident()
        try:
            self._call()
        except _LOGGED:
            logger.exception("A callback registered with on_cancel() failed")
        finally:
            self._settle()

    def _settle(self) -> None:
        self._call = _nothing
        self._settled.set()


class CancellationSource:
    """What trips one token. .NET's `CancellationTokenSource`. Every member is safe in any thread.

    A token does not keep its source alive, as only who holds the source can cancel. Callbacks live in the
    source: with it go those that never ran and all that they hold on to, even if that is the token.

    Args:
        run_callbacks: is given the running of all callbacks and decides on the thread. By default they run in
            the caller of `cancel` or `wake`, as in .NET. See `run_in_thread`.
        on_observed: called once, when the body first learns of the cancellation, in the body's thread.
            Should be quick; what it raises is logged.
    """

    def __init__(
        self,
        *,
        run_callbacks: Callable[[Callable[[], None]], None] | None = None,
        on_observed: Callable[[], None] | None = None,
    ) -> None:
        self._run_callbacks = run_callbacks or _run_here
        self._on_observed = on_observed or _nothing
        # Cells for what is set once: `setdefault` lets one caller win, without a lock.
        self._cancelled: dict[None, tuple[Cancellation]] = {}
        self._observed: dict[None, float] = {}
        self._pending: dict[Registration, bool] = {}
        self._disregarded = False
        # `threading` is asked for its Event here and now, as gevent may have replaced it since the import.
        self._token = _new_token(CancellationToken, weakref.ref(self), threading.Event())

    @property
    def token(self) -> CancellationToken:
        """The one token of this source."""
        return self._token

    @property
    def cancellation(self) -> Cancellation | None:
        """The cancellation that won; None before. Reading it is no check."""
        return self._token._cancellation

    @property
    def observed(self) -> bool:
        """True once the body was told: `cancel_requested` or `wait` said True, or a check or sleep raised.

        Callbacks, `cause`, `reason`, `actor` and `repr` tell nobody. Nor does asking here.
        """
        return bool(self._observed)

    @property
    def observed_at(self) -> float | None:
        """When the body was first told, in seconds of `time.monotonic`; None if it was not."""
        return self._observed.get(None)

    @property
    def disregarded(self) -> bool:
        """True once the cancelled body has called `CancellationToken.disregard`."""
        return self._disregarded

    def cancel(
        self, cause: Cause = Cause.REVOKED, reason: str | None = None, actor: str | None = None
    ) -> bool:
        """Cancel the token, wake what waits on it, run its callbacks. .NET's `Cancel`.

        The first cancellation stays for ever. When this returns, the token is cancelled, by whomever; the
        return value is True for the call that won. Not for signal handlers, see `trip`.

        Raises:
            InvalidArgumentError: `cause` is not a `Cause`.
        """
        won = self.trip(Cancellation(as_cause(cause), reason, actor))
        if won:
            self.wake()
        return won

    def trip(self, cancellation: Cancellation) -> bool:
        """Do the first half of `cancel`: checks answer from now on, but nobody is woken, no callback runs.

        Takes no lock, neither its own nor one of `threading`, so native threads beside a green hub, signal
        handlers and destructors may call it. Who wins (True) has to see to it that `wake` follows.
        """
        mine = (cancellation,)  # new for each call, as two callers may well bring the same cancellation
        winner = self._cancelled.setdefault(None, mine)
        # Losers do this as well: the winner may not have come as far, and they too promise a tripped token.
        object.__setattr__(self._token, "_cancellation", winner[0])
        object.__setattr__(self._token, "__class__", _Tripped)
        return winner is mine

    def wake(self) -> None:
        """Do the second half of `cancel`: wake what waits, run the callbacks. Before a `trip`, do nothing.

        Belongs into the world of the body (a green hub's own thread, on green pools). A second call is
        harmless, and runs what a callback runner that died has left.
        """
        if self.cancellation is None:
            return
        self._token._event.set()
        if not self._pending:
            return
        try:
            self._run_callbacks(self._run_pending)
        except _LOGGED:
            # No thread to be had, say. Slow is better than never.
            logger.exception("run_callbacks failed, so cancellation callbacks run in the caller")
            self._run_pending()

    def _run_pending(self) -> None:
        # One at a time: until it is its turn a callback can be taken back, by an earlier one for instance.
        while True:
            try:
                registration, _ = self._pending.popitem()
            except KeyError:
                return
            try:
                registration._run()
            except BaseException:
                self._run_pending()
                raise

    def _note_observed(self) -> None:
        now = time.monotonic()  # a new float for each call, so identity tells who was first
        if self._observed.setdefault(None, now) is now:
            try:
                self._on_observed()
            except _LOGGED:
                logger.exception("on_observed failed")


def run_in_thread(run: Callable[[], None]) -> None:
    """Run callbacks in a short-lived daemon thread, so that slow ones hold up nobody: for `run_callbacks`."""
    threading.Thread(target=run, name="canceltoken-callbacks", daemon=True).start()


def _run_here(run: Callable[[], None]) -> None:
    run()


def _nothing() -> None:
    pass


def _as_limit(argument: str, seconds: float) -> float | None:
    """Return `seconds` as an event's limit; None (no limit) for more than the platform is able to wait."""
    try:
        if seconds >= 0:
            return None if seconds > threading.TIMEOUT_MAX else float(seconds)
    except (ArithmeticError, TypeError, ValueError):
        pass
    raise InvalidArgumentError(argument, f"must be a number of seconds, 0 or more, not {seconds!r}")


def _new_token(
    cls: type[CancellationToken],
    source: Callable[[], CancellationSource | None],
    event: threading.Event | None,
) -> CancellationToken:
    token = object.__new__(cls)
    state = {"cancel_requested": False, "_cancellation": None, "_event": event, "_source": source}
    for name, value in state.items():
        object.__setattr__(token, name, value)
    return token


CancellationToken.none = _new_token(_Never, _nothing, None)
