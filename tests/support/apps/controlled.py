"""Tasks for the control plane: one body with many ways to end, declared in each of the ways that matter.

The first run of an id ends as it is told to; every later run returns at once, so that a task which was sent
to its queue again comes to its end. Each run also writes down what its message was like.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, current_task, signals
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore, Reject, Retry

from celery_canceltoken import CancellableTask, CancellationToken, Cause, TaskCancelled, task_cancelled
from tests.support.apps import cancellable
from tests.support.apps.cancellable import GATE_TIMEOUT, note, pass_gate

__all__ = ["CONTROLLED_APP", "SECOND_RUN", "app", "make_app"]

CONTROLLED_APP = __name__
SECOND_RUN = "second run"

_OF_THE_MESSAGE = (
    *("id", "args", "kwargs", "retries", "eta", "expires", "delivery_info", "group", "group_index", "chord"),
    *(
        "chain",
        "callbacks",
        "errbacks",
        "stamps",
        "stamped_headers",
        "timelimit",
        "reply_to",
        "correlation_id",
    ),
    *("root_id", "parent_id", "argsrepr", "kwargsrepr", "ignore_result", "headers", "properties", "origin"),
)


class Watched(CancellableTask):
    """Notes which of its hooks are called."""

    abstract = True

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(f"on_failure:{type(exc).__name__}", task_id)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        note(f"on_retry:{type(exc).__name__}", task_id)

    def on_cancelled(self, cause: Cause, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(f"on_cancelled:{cause}:{json.dumps([args, kwargs])}", task_id)


class BadlyWatched(CancellableTask):
    """Its hook raises."""

    abstract = True

    def on_cancelled(self, cause: Cause, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note("on_cancelled", task_id)
        raise RuntimeError("the hook is broken")


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app with these tasks, and those of `cancellable`."""
    app = cancellable.make_app(
        broker_url=broker_url, result_backend=result_backend, configuration=configuration
    )
    for name, options in {
        "act": {},
        "late_act": {"acks_late": True},
        "quiet_act": {"ignore_result": True},
        "tracked_act": {"track_started": True},
        "never_kept_act": {"keep_message": "never"},
        "always_kept_act": {"keep_message": "always"},
        "auto_act": {"autoretry_for": (Exception,), "default_retry_delay": 0, "max_retries": 3},
        "badly_watched_act": {"base": BadlyWatched},
        "elsewhere_act": {"backend": RedisBackend(app=app, url=_other_database(app.conf.result_backend))},
        "reported_act": {},
    }.items():
        app.task(**{"base": Watched, "shared": False, "name": name, "bind": True, **options})(act)
    _report_exceptions_of(app.tasks["reported_act"])
    app.task(shared=False, name="send_on", base=CancellableTask, bind=True)(send_on)
    app.task(shared=False, name="collect", base=Watched)(collect)
    return app


def act(self: Any, how: str = "return", gate: str = "", *extra: Any, token: CancellationToken) -> str:
    redis = self.app.backend.client
    run = redis.incr(f"runs:{self.request.id}")
    redis.rpush(f"accounts:{self.request.id}", json.dumps(_account_of(self.request), default=str))
    note("started")
    if run > 1:
        return SECOND_RUN
    if how.endswith("unlooked"):
        pass_gate(gate)
    elif how not in ("return", "raise", "sleep"):
        token.wait(GATE_TIMEOUT)
    return _end(self, how.split()[0], token)


def _end(self: Any, how: str, token: CancellationToken) -> str:
    if how == "stop":
        raise TaskCancelled(token.cause, token.reason)
    if how == "raise":
        raise RuntimeError("broken")
    if how == "retry":
        raise self.retry(countdown=0)
    if how == "ignore":
        raise Ignore("mine to tell")
    if how == "reject":
        raise Reject("not mine", requeue=False)
    if how == "disregard":
        token.disregard()
    if how == "sleep":
        # Until a time limit strikes.
        for _ in range(GATE_TIMEOUT * 100):
            time.sleep(0.01)
    return "first run"


def _account_of(request: Any) -> dict[str, Any]:
    account = {name: getattr(request, name, None) for name in _OF_THE_MESSAGE}
    # What the broker says of this delivery alone.
    account["properties"] = {
        name: value
        for name, value in (request.properties or {}).items()
        if name not in ("delivery_tag", "delivery_info", "application_headers")
    }
    return account


def send_on(self: Any, gate: str, ids: list[str]) -> None:
    """Sends one more task when the gate opens, and another from that one's callback."""
    note("started")
    pass_gate(gate)
    act = self.app.tasks["act"]
    act.si("return").set(task_id=ids[0]).apply_async(link=act.si("return").set(task_id=ids[1]))
    note("sent on")


def collect(values: Any) -> Any:
    note("started")
    return values


def _other_database(url: str) -> str:
    return f"{url.rpartition('/')[0]}/1" if url.startswith("redis") and url.count("/") == 3 else f"{url}/1"


def _report_exceptions_of(task: Any) -> None:
    """Watch a task as error reporters do: around the call of it, past Celery's own control flow."""
    call = type(task).__call__

    @functools.wraps(call)
    def reporting(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(self, *args, **kwargs)
        except Exception as error:
            if not isinstance(error, (Retry, Ignore, Reject)):
                note(f"reported:{type(error).__name__}")
            raise

    type(task).__call__ = reporting


@signals.task_failure.connect
def _note_failure(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    if isinstance(sender, CancellableTask):
        _note(sender.app, task_id, f"signal-task_failure:{type(exception).__name__}")


@signals.task_retry.connect
def _note_retry(sender: Any, request: Any, **_: Any) -> None:
    if isinstance(sender, CancellableTask):
        _note(sender.app, request.id, "signal-task_retry")


@task_cancelled.connect
def _raise_on_cancelled(sender: Any, **_: Any) -> None:
    if sender.name == "badly_watched_act":
        raise RuntimeError("the receiver is broken")


@task_cancelled.connect
def _note_cancelled(
    sender: Any, task_id: str, cause: Any, reason: Any, actor: Any, args: Any, kwargs: Any, **_: Any
) -> None:
    told = json.dumps([cause, reason, actor, args, kwargs, current_task.name == sender.name])
    _note(sender.app, task_id, f"signal-task_cancelled:{told}")


def _note(app: Any, task_id: str, event: str) -> None:
    app.backend.client.rpush(f"journal:{task_id}", f"{event} {time.monotonic_ns()} 0")


app = make_app()
