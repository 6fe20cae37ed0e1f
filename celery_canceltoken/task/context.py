"""The execution that runs here, as its body sees it: which attempt, and how far the last one came."""

from __future__ import annotations

import json
from typing import Any, Protocol

from celery_canceltoken.errors import CancelTokenError, InvalidArgumentError

__all__ = ["CHECKPOINT_LIMIT", "CurrentExecution"]

CHECKPOINT_LIMIT = 64 * 1024
"""Bytes of JSON: progress, not payload."""


class Saver(Protocol):
    """Where a checkpoint goes."""

    def __call__(self, text: str) -> None:
        """Save it. Raises SupersededError, StoreUnavailableError."""


class CurrentExecution:
    """What a body may know and say of its own execution; the cancellation itself is the token's.

    Belongs to the body. `checkpoint` may be called from any thread of it.
    """

    def __init__(
        self, task_id: str | None, execution_id: str, attempt: int, resume_text: str, save: Saver | None
    ) -> None:
        self.task_id = task_id
        self.execution_id = execution_id
        self.attempt = attempt
        """How many executions this id has had since it was sent, this one included."""
        self._resume_text = resume_text
        self._save = save

    @property
    def is_resumed(self) -> bool:
        """True if an earlier attempt has left a checkpoint."""
        return bool(self._resume_text)

    @property
    def resume_data(self) -> Any:
        """What the last checkpoint of this id holds; None without one. A new object with each look."""
        return json.loads(self._resume_text) if self._resume_text else None

    def checkpoint(self, data: Any) -> None:
        """Save *data* for the next attempt, should this one be stopped. One round trip to the store.

        *data* is anything JSON can hold but None, 65536 bytes of JSON at most; it replaces what was saved
        before, and is gone when the task has succeeded. Raises InvalidArgumentError (nothing was
        written), SupersededError where another execution owns the id by now, StoreUnavailableError,
        and CancelTokenError where this run is not recorded (eager, or a worker without an agent).
        """
        if data is None:
            raise InvalidArgumentError("data", "must not be None, which is what resume_data says without one")
        try:
            text = json.dumps(data, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError("data", f"cannot be saved as JSON: {error}") from error
        size = len(text.encode())
        if size > CHECKPOINT_LIMIT:
            raise InvalidArgumentError(
                "data",
                f"has {size} bytes of JSON; {CHECKPOINT_LIMIT} is the limit: save a place, not the work",
            )
        if self._save is None:
            raise CancelTokenError("this run is not recorded, so there is nowhere to save a checkpoint")
        self._save(text)
