"""The demonstration: a long task in a real worker is stopped midway, and another one outlives its worker.

    python examples/demo.py

It brings its own server and workers, and takes them along when it ends. The exit code is 0 only if all that
it prints has happened.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery.exceptions import TaskRevokedError
from embedded_valkey import EmbeddedServer, GuardedProcess
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from celery_canceltoken import State, TaskRecord, get_record, revoke

SECONDS = 6.0
"""How long the task would take if it were left alone."""
STOP_AT = 0.4
REASON = "the customer left"
ACTOR = "the demonstration"

console = Console(highlight=False)


class DemonstrationError(Exception):
    """Something did not happen as it should have."""


def main() -> int:
    """Run the demonstration and return the exit code."""
    # As with Ctrl-C, so that a container that is stopped cleans up, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with EmbeddedServer() as server:
            with Worker(server.url, "first") as first:
                revoke_midway(first)
                result = shut_down_midway(first)
            with Worker(server.url, "second") as second:
                finish_elsewhere(result, first, second)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except Exception as error:
        if not isinstance(error, DemonstrationError):
            traceback.print_exc()
        console.print("[red]failed:[/red]", escape(str(error) or repr(error)))
        return 1
    return 0


def revoke_midway(worker: Worker) -> None:
    """The first act: start the task, stop it, and look at what came of it. Raises DemonstrationError."""
    # The app reads its server's address when it is imported.
    from demo_app import checksum_everything

    console.print(f"worker  {' '.join(worker.command)}")
    result = checksum_everything.delay(SECONDS)
    console.print(f"task    {result.id}, checksums of the standard library")
    watch(result, worker, until=STOP_AT)

    handle = revoke(result, reason=REASON, actor=ACTOR)
    check(handle.applied, f"the request was refused: {handle.refusal}")
    check(handle.previous is State.PROCESSING, f"the task was not running but {handle.previous}")
    outcome = handle.wait(timeout=10)
    console.print(f'revoked, because "{outcome.reason}", by {outcome.actor}\n')
    check(outcome.state is State.REVOKED and not outcome.came_too_late, f"the outcome is {outcome}")
    check((outcome.reason, outcome.actor) == (REASON, ACTOR), f"the record says {outcome}")

    record = handle.record()
    if record is None:
        raise DemonstrationError("the task has no record")
    check(record.request_id == handle.request_id, "the record names another request")
    show_ladder(record)
    show_result(result)
    show_finished_work(record)


def shut_down_midway(worker: Worker) -> Any:
    """The second act: start the task anew, and stop its worker as a deployment does."""
    from demo_app import checksum_everything

    result = checksum_everything.delay(SECONDS)
    console.print(f"\ntask    {result.id}, the same once more")
    watch(result, worker, until=STOP_AT)

    began = time.monotonic()
    exit_code = worker.stop()
    check(exit_code == 0, f"the worker ended with {exit_code}")
    console.print(f"SIGTERM: the worker was gone after {time.monotonic() - began:.1f} s")
    record = get_record(result)
    check(
        record is not None and record.state is State.ENQUEUED and record.checkpoint is not None,
        f"the task did not go back to its queue with a checkpoint: {record}",
    )
    return result


def finish_elsewhere(result: Any, first: Worker, second: Worker) -> None:
    """Have another worker finish the same id from its checkpoint."""
    from demo_app import add_file, nothing_done, standard_library

    console.print(f"worker  {' '.join(second.command)}")
    watch(result, second, until=None)
    work = result.get(timeout=10)
    record = get_record(result)
    check(record is not None and record.attempt == 2, f"it did not take two runs: {record}")
    check(set(work["by_worker"]) == {first.name, second.name}, f"other workers than these: {work}")
    check(sum(work["by_worker"].values()) == work["of_files"] == work["files"], f"not each file once: {work}")
    unbroken = nothing_done(standard_library())
    for path in standard_library():
        add_file(unbroken, path)
    check(work["digest"] == unbroken["digest"], "the checksums are not those of a task that runs through")
    shares = ", ".join(f"{files} by {worker}" for worker, files in work["by_worker"].items())
    console.print(
        f"[bold]{result.state}[/bold], the same id: [bold]{work['files']} files[/bold], {shares}; "
        "the checksum is that of an unbroken run"
    )
    exit_code = second.stop()
    check(exit_code == 0, f"the worker ended with {exit_code}")


def watch(result: Any, worker: Worker, until: float | None) -> None:
    """Show how far the task is until that share of its files is done; None: until it has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("waiting for the worker", total=None)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            check(worker.is_running, f"the worker ended with {worker.exit_code}")
            # One reading: the state and the progress of two moments need not agree.
            work = result.info
            if isinstance(work, dict) and work.get("of_files"):
                progress.update(
                    bar, description="files", completed=work["files"], total=work["of_files"], refresh=True
                )
                if until is not None and work["files"] >= until * work["of_files"]:
                    return
            if result.ready():
                check(until is None, "the task ended before anybody had asked it to")
                return
            time.sleep(0.05)
    raise DemonstrationError("the task did not come that far within two minutes")


def show_ladder(record: TaskRecord) -> None:
    """Print when the cancellation passed each of its steps; the clock is the store's."""
    steps = {
        "requested": (record.requested_at, "stored in the task's record"),
        "delivered": (record.delivered_at, "the worker's agent has it"),
        "observed": (record.observed_at, "the task has looked at its token"),
        "stopped": (record.stopped_at, "the task has ended"),
    }
    table = Table("step", "ms", "step took", "", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    first = before = None
    for step, (moment, meaning) in steps.items():
        if moment is None:
            raise DemonstrationError(f"the record does not say when it was {step}")
        first, before = first or moment, before or moment
        check(moment >= before, f"{step} lies before the step that leads to it")
        table.add_row(step, _milliseconds(moment - first), _milliseconds(moment - before), meaning)
        before = moment
    console.print(table, "")


def show_result(result: Any) -> None:
    """Print what Celery says of the task."""
    try:
        value = result.get(timeout=10)
    except TaskRevokedError as error:
        check(str(error) == REASON, f"the result gives another reason: {error}")
        check(result.state == "REVOKED", f"the result's state is {result.state}")
        console.print(f"[bold]{result.state}[/bold] is the state of Celery's result")
        console.print(f"[bold]TaskRevokedError: {error}[/bold] is what its get() raises")
    else:
        raise DemonstrationError(f"the result is {value!r} instead of an error")


def show_finished_work(record: TaskRecord) -> None:
    """Print what the task had finished: its return value, which the record has kept."""
    if record.value is None:
        raise DemonstrationError("the record has not kept what the task returned")
    work = json.loads(record.value)
    files, of_files = work["files"], work["of_files"]
    check(0 < files < of_files, f"the task was not stopped midway: {files} of {of_files} files")
    check(0 < work["bytes"] < work["of_bytes"], f"the bytes do not agree with the files: {work}")
    console.print(
        f"[bold]{files} of {of_files} files[/bold] were finished, "
        f"{work['bytes'] / 1e6:.1f} of {work['of_bytes'] / 1e6:.1f} MB"
    )


def check(condition: bool, otherwise: str) -> None:
    """Raise DemonstrationError with the words of `otherwise` unless `condition`."""
    if not condition:
        raise DemonstrationError(otherwise)


class Worker:
    """A `celery worker` as anybody would start it, and its log."""

    def __init__(self, url: str, name: str) -> None:
        self.name = f"{name}@demo"
        self.command = ["celery", "-A", "demo_app", "worker", "--concurrency", "2", "--hostname", self.name]
        self._url = url

    def __enter__(self) -> Worker:
        # The app of this process reads it as well, when it is imported.
        os.environ["CANCELTOKEN_DEMO_URL"] = self._url
        self._folder = Path(tempfile.mkdtemp(prefix="canceltoken-demo-"))
        self._log = self._folder / "worker.log"
        self._process = GuardedProcess(
            [sys.executable, "-m", *self.command, "--loglevel", "INFO"],
            log=self._log,
            directory=self._folder,
            # A worker that is killed cannot remove its own temporary files.
            environment={**os.environ, "TMPDIR": str(self._folder)},
            working_directory=Path(__file__).parent,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            print(f"\nthe end of the log of {self.name}:\n{self.log_tail()}\n")
        self._process.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    @property
    def exit_code(self) -> int | None:
        return self._process.exit_code

    def stop(self) -> int:
        """Stop it as a deployment does, and return its exit code. Raises DemonstrationError."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            raise DemonstrationError("the worker did not stop within 20 s") from None

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


def _milliseconds(time_passed: timedelta) -> str:
    return f"{time_passed / timedelta(milliseconds=1):.2f}"


if __name__ == "__main__":
    sys.exit(main())
