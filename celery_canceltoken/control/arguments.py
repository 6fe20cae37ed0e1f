"""What callers pass, checked: a bad argument is refused before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from celery_canceltoken.errors import InvalidArgumentError
from celery_canceltoken.states import State

__all__ = [
    "checked_ahead",
    "checked_count",
    "checked_flag",
    "checked_id",
    "checked_ids",
    "checked_moment",
    "checked_name",
    "checked_predicate",
    "checked_seconds",
    "checked_stamps",
    "checked_states",
    "checked_text",
]

_ID_LIMIT = 255
_TEXT_LIMIT = 1024
_NAME_LIMIT = 255
_STAMPS = 20
_LONGEST = timedelta(days=3650)


def checked_id(task_id: object, argument: str = "task_id") -> str:
    """Return *task_id* if it can be one. Raises InvalidArgumentError."""
    if not isinstance(task_id, str):
        raise InvalidArgumentError(argument, f"must be a string or an AsyncResult, not {task_id!r}")
    if not task_id:
        raise InvalidArgumentError(argument, "must not be empty")
    if len(task_id) > _ID_LIMIT:
        raise InvalidArgumentError(argument, f"has {len(task_id)} characters; {_ID_LIMIT} is the limit")
    if not task_id.isprintable():
        raise InvalidArgumentError(argument, f"must not hold control characters: {task_id!r}")
    return task_id


def checked_ids(task_ids: Iterable[object], argument: str = "task_ids") -> list[str]:
    """Return the ids, each once, in their order. Raises InvalidArgumentError, which says which one is bad."""
    if isinstance(task_ids, (str, bytes)) or not isinstance(task_ids, Iterable):
        raise InvalidArgumentError(
            argument, f"must be several ids or AsyncResults, not {task_ids!r}; for one there is revoke()"
        )
    checked = [checked_id(one, f"{argument}[{place}]") for place, one in enumerate(task_ids)]
    return list(dict.fromkeys(checked))


def checked_text(argument: str, text: object) -> str | None:
    """Return a reason or an actor. Raises InvalidArgumentError."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise InvalidArgumentError(argument, f"must be a string, not {text!r}")
    if len(text) > _TEXT_LIMIT:
        raise InvalidArgumentError(
            argument, f"has {len(text)} characters; {_TEXT_LIMIT} is the limit: shorten it, or log the rest"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(argument, f"is not valid text: {error}") from error
    return text


def checked_name(argument: str, name: object) -> str | None:
    """Return the name of a task, a queue or a worker. Raises InvalidArgumentError."""
    if name is None:
        return None
    if not isinstance(name, str) or not name or len(name) > _NAME_LIMIT:
        raise InvalidArgumentError(
            argument, f"must be a name of at most {_NAME_LIMIT} characters, not {name!r}"
        )
    return checked_text(argument, name)


def checked_states(from_state: object, argument: str = "from_state") -> tuple[State, ...]:
    """Return one or several states as several. Raises InvalidArgumentError."""
    if from_state is None:
        return ()
    several = [from_state] if isinstance(from_state, str) else from_state
    try:
        states = tuple(State(one) for one in several)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        known = ", ".join(state.value for state in State)
        raise InvalidArgumentError(
            argument, f"must be one or several of {known}, not {from_state!r}"
        ) from None
    if not states:
        raise InvalidArgumentError(argument, "must name a state; leave it out to accept any")
    return states


def checked_flag(argument: str, flag: object) -> bool:
    """Return a bool that is one. Raises InvalidArgumentError."""
    if not isinstance(flag, bool):
        raise InvalidArgumentError(argument, f"must be True or False, not {flag!r}")
    return flag


def checked_ahead(argument: str, seconds: object) -> datetime:
    """Return the time in so many seconds, or after a timedelta. Raises InvalidArgumentError."""
    if not isinstance(seconds, timedelta):
        seconds = min(checked_seconds(argument, seconds), _LONGEST.total_seconds() + 1)
        seconds = timedelta(seconds=seconds)
    if seconds > _LONGEST:
        raise InvalidArgumentError(argument, "is more than ten years ahead")
    return datetime.now(timezone.utc) + max(seconds, timedelta(0))


def checked_seconds(argument: str, seconds: object) -> float:
    """Return a number of seconds. Raises InvalidArgumentError."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise InvalidArgumentError(argument, f"must be a number of seconds, 0 or more, not {seconds!r}")
    return float(seconds)


def checked_count(argument: str, count: object, most: int) -> int:
    """Return a number of things. Raises InvalidArgumentError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise InvalidArgumentError(argument, f"must be a whole number from 1 to {most}, not {count!r}")
    return count


def checked_moment(argument: str, moment: object) -> datetime:
    """Return a time with its zone, at most ten years ahead. Raises InvalidArgumentError."""
    if not isinstance(moment, datetime):
        raise InvalidArgumentError(argument, f"must be a datetime, not {moment!r}")
    if moment.utcoffset() is None:
        raise InvalidArgumentError(
            argument, f"{moment.isoformat()} has no time zone; use datetime.now(timezone.utc) and the like"
        )
    if moment - datetime.now(timezone.utc) > _LONGEST:
        raise InvalidArgumentError(argument, f"{moment.isoformat()} is more than ten years ahead")
    return moment


def checked_stamps(stamps: object) -> dict[str, Any] | None:
    """Return the stamps to look for, one value for each header. Raises InvalidArgumentError."""
    if stamps is None:
        return None
    if not isinstance(stamps, Mapping) or not all(
        isinstance(header, str) and _is_simple(value) for header, value in stamps.items()
    ):
        raise InvalidArgumentError(
            "stamps", f"must map each header to one value, a string or a number, not {stamps!r}"
        )
    if not stamps:
        raise InvalidArgumentError("stamps", "must name a header; leave it out to accept any")
    if len(stamps) > _STAMPS:
        raise InvalidArgumentError("stamps", f"names {len(stamps)} headers; {_STAMPS} is the limit")
    for one in (*stamps, *stamps.values()):
        if isinstance(one, str):
            checked_text("stamps", one)
    return dict(stamps)


def _is_simple(value: object) -> bool:
    # What is no number has no JSON, and would be refused by the store instead.
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def checked_predicate(where: object) -> Callable[..., Any] | None:
    """Return a predicate. Raises InvalidArgumentError."""
    if where is not None and not callable(where):
        raise InvalidArgumentError("where", f"must be a function of a stored task, not {where!r}")
    return where
