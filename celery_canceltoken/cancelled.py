"""The exception by which a body says that it stopped."""

from __future__ import annotations

from celery_canceltoken.cause import Cause
from celery_canceltoken.errors import InvalidArgumentError

__all__ = ["TaskCancelled", "as_cause"]


class TaskCancelled(BaseException):
    """The body stopped because it was asked to. .NET's `OperationCanceledException`.

    Raised by `CancellationToken.raise_if_cancelled` and `CancellationToken.sleep`; let it pass.
    It derives from `BaseException`, as `asyncio.CancelledError` (since Python 3.8) and
    `trio.Cancelled` do, so that the `except Exception` of a body or of a library it calls
    cannot eat it. `finally` and context managers clean up as always; who catches
    `BaseException`, or everything, raises it again.

    Args:
        cause: why; None if nobody asked. Such a stray one is an ordinary failure of the task:
            only the worker's own cause decides (Hangfire mistook it for a shutdown, its issue 453).
        reason: in whose words it was asked for, if there were any.

    Raises:
        InvalidArgumentError: `cause` is not a `Cause`.
    """

    cause: Cause | None
    reason: str | None

    def __init__(self, cause: Cause | None = None, reason: str | None = None) -> None:
        self.cause = None if cause is None else as_cause(cause)
        self.reason = reason
        # `args` is what pickle and Celery's result backends rebuild an exception from.
        super().__init__(self.cause, reason)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.cause, self.reason))) or "cancelled without a cause"


def as_cause(value: Cause | str) -> Cause:
    """Return `value` as a `Cause`; its plain name will do, as JSON knows no enums.

    Raises:
        InvalidArgumentError: it is neither.
    """
    try:
        return Cause(value)
    except ValueError:
        problem = f"{value!r} is none of {', '.join(Cause)}; words of your own go into reason="
        raise InvalidArgumentError("cause", problem) from None
