"""The app of the demonstration: one long task over real files. `celery -A demo_app worker` runs it."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from celery import Celery

from celery_canceltoken import CancellableTask, CancellationToken

URL = os.environ.get("CANCELTOKEN_DEMO_URL", "redis://localhost:6379/0")

app = Celery("demo", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True


class Work(TypedDict):
    """How far the task is, and what it returns."""

    files: int
    bytes: int
    of_files: int
    of_bytes: int


@app.task(base=CancellableTask, bind=True)
def checksum_everything(self: CancellableTask, seconds: float, token: CancellationToken) -> Work:
    """Compute the SHA-256 checksum of every file of the Python standard library, in about `seconds`.

    Told to stop, it returns what it has done so far instead of raising; the record of a revoked task keeps
    that.
    """
    files = standard_library()
    work = Work(files=0, bytes=0, of_files=len(files), of_bytes=sum(path.stat().st_size for path in files))
    report = _no_oftener_than(0.1, lambda: self.update_state(state="PROGRESS", meta=work))
    for path in files:
        if token.cancel_requested:
            break
        content = path.read_bytes()
        hashlib.sha256(content).hexdigest()
        work["files"] += 1
        work["bytes"] += len(content)
        report()
        # The checksums alone would be done in a second. A wait, unlike time.sleep, ends with the token.
        token.wait(seconds / len(files))
    return work


def standard_library() -> list[Path]:
    """The files that came with this Python, in order. Compiled and installed ones come and go: left out."""
    folder = Path(sysconfig.get_path("stdlib"))
    passing = {"__pycache__", "dist-packages", "site-packages"}
    return sorted(
        path
        for path in folder.rglob("*")
        if passing.isdisjoint(path.relative_to(folder).parts) and path.is_file() and os.access(path, os.R_OK)
    )


def _no_oftener_than(seconds: float, call: Callable[[], object]) -> Callable[[], None]:
    due = 0.0

    def call_if_due() -> None:
        nonlocal due
        if time.monotonic() >= due:
            call()
            due = time.monotonic() + seconds

    return call_if_due
