"""The plain app: Celery as its users have it, with no cancellation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

__all__ = ["app", "make_app"]


def make_app(
    *,
    broker_url: str | None = None,
    result_backend: str | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return a new app. What is not given comes from CT_BROKER_URL, CT_RESULT_BACKEND and CT_CONF (JSON)."""
    if configuration is None:
        configuration = json.loads(os.environ.get("CT_CONF", "{}"))
    app = Celery(
        "tests",
        broker=broker_url or os.environ.get("CT_BROKER_URL", "memory://"),
        backend=result_backend or os.environ.get("CT_RESULT_BACKEND", "cache+memory://"),
        set_as_current=False,
    )
    app.conf.broker_connection_retry_on_startup = True
    app.conf.update(configuration)
    app.task(name="add")(add)
    app.task(name="fail")(fail)
    return app


def add(left: int, right: int) -> int:
    return left + right


def fail(message: str) -> None:
    raise RuntimeError(message)


app = make_app()
