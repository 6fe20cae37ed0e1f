"""The cancellable tasks in a process that dies, or is refused, at a place that the environment names.

CT_DIES        "before <module>:<name>", or "after ...": where the process is killed, as by the kernel
CT_FAILS_ONCE  "<module>:<name>": what raises StoreUnavailableError when it is called for the first time

`python -m tests.support.apps.mortal <order> <task id>` is a client of such a kind.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import celery_canceltoken
from celery_canceltoken import StoreUnavailableError
from tests.support.apps.cancellable import make_app

__all__ = ["MORTAL_APP", "app", "make_app"]

MORTAL_APP = "tests.support.apps.mortal"


def _replace(place: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    setattr(owner, name, functools.wraps(getattr(owner, name))(wrap(getattr(owner, name))))


def _dying(moment: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call_and_die(*args: Any, **kwargs: Any) -> None:
            if moment == "after":
                function(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        return call_and_die

    return wrap


def _failing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[None] = []

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise StoreUnavailableError("refused by the test")
        return function(*args, **kwargs)

    return fail_once


if "CT_DIES" in os.environ:
    _moment, _, _place = os.environ["CT_DIES"].partition(" ")
    _replace(_place, _dying(_moment))
if "CT_FAILS_ONCE" in os.environ:
    _replace(os.environ["CT_FAILS_ONCE"], _failing_once)

app = make_app()

if __name__ == "__main__":
    getattr(celery_canceltoken, sys.argv[1])(sys.argv[2], reason="asked by the dead", app=app)
