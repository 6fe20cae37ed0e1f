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

from celery_canceltoken import CancellableTask, CancellationToken, current_execution

URL = os.environ.get("CANCELTOKEN_DEMO_URL", "redis://localhost:6379/0")

app = Celery("demo", broker=URL, backend=URL)
app.conf.broker_connection_retry_on_startup = True


class Work(TypedDict):
    """How far the task is: its progress, its checkpoint, and what it returns."""

    files: int
    bytes: int
    of_files: int
    of_bytes: int
    digest: str
    """The checksum of all checksums so far, one file after the other."""
    by_worker: dict[str, int]
    """How many files each worker has done."""


@app.task(base=CancellableTask, bind=True)
def checksum_everything(self: CancellableTask, seconds: float, token: CancellationToken) -> Work:
    """Compute the SHA-256 checksum of every file of the Python standard library, in about `seconds`.

    Told to stop, it saves a checkpoint and returns what it has done so far instead of raising. The record of
    a revoked task keeps that. After a shutdown of its worker it runs again, and goes on from the checkpoint.
    """
    execution = current_execution()
    files = standard_library()
    work: Work = execution.resume_data or nothing_done(files)
    report = _no_oftener_than(0.1, lambda: self.update_state(state="PROGRESS", meta=work))
    me = self.request.hostname
    for path in files[work["files"] :]:
        if token.cancel_requested:
            execution.checkpoint(work)
            break
        add_file(work, path)
        work["by_worker"][me] = work["by_worker"].get(me, 0) + 1
        report()
        # The checksums alone would be done in a second. A wait, unlike time.sleep, ends with the token.
        token.wait(seconds / len(files))
    return work


def nothing_done(files: list[Path]) -> Work:
    """Where the task begins."""
    size = sum(path.stat().st_size for path in files)
    return Work(files=0, bytes=0, of_files=len(files), of_bytes=size, digest="", by_worker={})


def add_file(work: Work, path: Path) -> None:
    """Do one file."""
    content = path.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    work["files"] += 1
    work["bytes"] += len(content)
    work["digest"] = hashlib.sha256((work["digest"] + checksum).encode()).hexdigest()


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
