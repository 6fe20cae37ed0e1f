"""The processes that are measured."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from examples.embedded_valkey import GuardedProcess

__all__ = ["Background", "worker"]


class Background:
    """`python -m ...` for the length of a `with` block, which begins when the process is ready."""

    def __init__(self, *command: str, ready: Callable[[], bool], **environment: str) -> None:
        self._command = command
        self._environment = environment
        self._ready = ready

    def __enter__(self) -> Background:
        self._folder = Path(tempfile.mkdtemp(prefix="canceltoken-bench-"))
        self._log = self._folder / "log"
        self._process = GuardedProcess(
            [sys.executable, "-m", *self._command],
            log=self._log,
            directory=self._folder,
            environment={**os.environ, "TMPDIR": str(self._folder), **self._environment},
            working_directory=Path(__file__).parents[1],
        )
        deadline = time.monotonic() + 60
        while not self._ready():
            if not self._process.is_running or time.monotonic() > deadline:
                log = self._log.read_text(errors="replace")[-3000:]
                self._end()
                raise RuntimeError(f"{' '.join(self._command)} did not become ready:\n{log}")
            time.sleep(0.1)
        return self

    def send_signal(self, number: int) -> None:
        """Signal the process, and none of its children."""
        self._process.send_signal(number)

    def __exit__(self, *_: object) -> None:
        # In order, if it can: what a killed worker leaves in the store would be looked after by the next.
        self.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self._end()

    def _end(self) -> None:
        self._process.end()
        shutil.rmtree(self._folder, ignore_errors=True)


def worker(url: str, pool: str, *, queue: str, ready: Callable[[], bool]) -> Background:
    """A `celery worker` of four bodies (solo: one), with what Celery does by default but talk to others."""
    return Background(
        *("celery", "-A", "benchmarks.app", "worker", "--pool", pool, "--concurrency", "4"),
        *("--queues", queue, "--hostname", f"{queue}@bench", "--without-gossip", "--without-mingle"),
        ready=ready,
        CANCELTOKEN_BENCH_URL=url,
    )
