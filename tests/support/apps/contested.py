"""One short task that many fight over, and that writes down what each of its runs was told.

A run's manners are drawn from the seed it is sent with, its id and its number, so that all endings occur.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, current_task

from celery_canceltoken import CancellableTask, CancellationToken
from tests.support.apps import main

__all__ = ["CONTESTED_APP", "app", "journal_of", "make_app"]

CONTESTED_APP = __name__
MANNERS = {"heeds": 12, "unlooked": 4, "swallows": 2, "disregards": 1, "breaks": 3}
LONGEST = 0.4


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app with the task below. What is not given comes from the environment."""
    app = main.make_app(broker_url=broker_url, result_backend=result_backend, configuration=configuration)
    app.task(shared=False, name="contested", base=CancellableTask)(contested)
    return app


def journal_of(app: Any, task_id: str) -> list[dict[str, Any]]:
    """What the runs of an id wrote down, a start and an end of each."""
    return [json.loads(line) for line in app.backend.client.lrange(f"journal:{task_id}", 0, -1)]


def contested(seed: int, token: CancellationToken) -> str:
    """Run for a moment, look at the token or do not, and end in one of several ways."""
    redis, task_id = current_task.app.backend.client, current_task.request.id
    number, at_once = redis.pipeline().incr(f"runs:{task_id}").incr(f"running:{task_id}").execute()
    start = {"event": "start", "at": time.time(), "run": number, "at_once": at_once}
    redis.rpush(f"journal:{task_id}", json.dumps(start))
    drawn = random.Random(f"{seed}/{task_id}/{number}")
    manner, seconds = drawn.choices(list(MANNERS), list(MANNERS.values()))[0], drawn.uniform(0, LONGEST)
    if manner == "unlooked":
        time.sleep(seconds)
    # A trip between here and the last line was not heard of, so that is what is written.
    heard = token.wait(seconds) if manner != "unlooked" else token.cause is not None
    end = {
        "event": "end",
        "at": time.time(),
        "run": number,
        "manner": manner,
        "looked": manner != "unlooked",
        "heard": heard,
        "cause": token.cause.value if heard and token.cause else None,
        "reason": token.reason if heard else None,
    }
    redis.pipeline().decr(f"running:{task_id}").rpush(f"journal:{task_id}", json.dumps(end)).execute()
    if manner == "breaks":
        raise RuntimeError("broken")
    if manner == "disregards":
        token.disregard()
    if manner == "heeds" and heard:
        token.raise_if_cancelled()
    return manner


app = make_app()
