"""Real `celery worker` processes, and client apps that reach them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from celery import Celery

from examples.embedded_valkey import GuardedProcess
from tests.support.waiting import wait_until

__all__ = [
    "PLAIN_APP",
    "ROOT",
    "CeleryWorker",
    "ClientFactory",
    "SharedWorkers",
    "WorkerFactory",
    "WorkerProcess",
    "close_client",
    "make_client",
    "private_names",
    "unique_name",
]

ROOT = Path(__file__).resolve().parents[2]
PLAIN_APP = "tests.support.apps.main"


def unique_name(kind: str) -> str:
    """A name that nobody else uses, on a broker that may be shared with others."""
    return f"canceltoken-test-{kind}-{uuid.uuid4().hex[:12]}"


def private_names(queue: str) -> dict[str, Any]:
    """The configuration that keeps an app's messages, remote control and events to itself.

    A `control.shutdown()` of one test must not reach the workers of another, or of the broker's owner.
    """
    return {
        "task_default_queue": queue,
        "control_exchange": f"{queue}-control",
        "event_exchange": f"{queue}-event",
        "event_queue_prefix": f"{queue}-event",
    }


def make_client(
    app: str = PLAIN_APP,
    *,
    broker_url: str,
    result_backend: str,
    queue: str,
    configuration: Mapping[str, Any] | None = None,
) -> Celery:
    """Return the app that the module `app` makes, bound to that queue. Close it after use."""
    client: Celery = importlib.import_module(app).make_app(
        broker_url=broker_url,
        result_backend=result_backend,
        configuration={**private_names(queue), **(configuration or {})},
    )
    return client


def close_client(client: Celery) -> None:
    """Close a client app, and its result backend, which Celery leaves to the collector."""
    backend = client.backend
    consumer = getattr(backend, "result_consumer", None)
    if consumer is not None:
        consumer.stop()
    pool = getattr(getattr(backend, "client", None), "connection_pool", None)
    if pool is not None:
        pool.disconnect()
    client.close()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class WorkerProcess:
    """A worker, started by a whole command line, in a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        python_path: Sequence[Path] = (),
        ready_text: str = " ready.",
    ) -> None:
        """Prepare `python -m command...`; it is ready when `ready_text` stands in its log."""
        self._directory = Path(tempfile.mkdtemp(prefix="canceltoken-worker-"))
        self._command = [sys.executable, "-m", *command]
        search_path = [*map(str, python_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search_path),
            "PYTHONUNBUFFERED": "1",
            # What a killed worker cannot remove goes with its directory.
            "TMPDIR": str(self._directory),
            **environment,
        }
        self._ready_text = ready_text
        self._log = self._directory / "worker.log"
        self._last_log = ""
        self._start_of_this_run = 0
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int:
        """The id of the worker's main process."""
        return self._started.pid

    @property
    def is_running(self) -> bool:
        """True while the main process lives."""
        return self._process is not None and self._process.is_running

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._started.exit_code

    def start(self) -> None:
        """Start the process; `wait_until_ready` tells when it takes tasks."""
        self._start_of_this_run = len(self.logs())
        self._process = GuardedProcess(
            self._command,
            log=self._log,
            directory=self._directory,
            environment=self._environment,
            working_directory=ROOT,
        )

    def wait_until_ready(self, timeout: float = 30.0) -> None:
        """Wait until it takes tasks. Raises `AssertionError` with its log if it does not come to that."""
        wait_until(
            lambda: self._ready_text in self.logs()[self._start_of_this_run :] or not self.is_running,
            timeout=timeout,
            description=lambda: f"the worker is ready; its log:\n{self.logs()[-3000:]}\n",
        )
        if not self.is_running:
            raise AssertionError(f"the worker ended with {self.exit_code}:\n{self.logs()[-3000:]}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the main process alone, as a supervisor or the kernel would."""
        self._started.send_signal(number)

    def crash(self) -> None:
        """End all its processes at once, as a power cut would; `restart` brings it back."""
        self._started.end()

    def stop(self, timeout: float = 20.0) -> int:
        """Ask for a warm shutdown and return the exit code. Raises `subprocess.TimeoutExpired`."""
        self.kill(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the main process to end and return its exit code. Raises `subprocess.TimeoutExpired`."""
        return self._started.wait(timeout)

    def restart(self) -> None:
        """Start it anew, with what is left of the old one out of the way, and wait until it is ready."""
        if self._process is not None:
            self._process.end()
        self.start()
        self.wait_until_ready()

    def children(self) -> list[psutil.Process]:
        """The main process's living descendants: the pool's processes, if it has any."""
        try:
            descendants = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child for child in descendants if _lives(child)]

    def logs(self) -> str:
        """All that it has logged, over all its restarts."""
        if self._log.exists():
            self._last_log = self._log.read_text(errors="replace")
        return self._last_log

    def wait_for_log(self, text: str, *, timeout: float = 10.0, times: int = 1) -> None:
        """Wait until `text` has been logged that often. Raises `AssertionError`."""
        wait_until(
            lambda: self.logs().count(text) >= times,
            timeout=timeout,
            description=f"the worker has logged {text!r}" + (f" {times} times" if times > 1 else ""),
        )

    def close(self) -> None:
        """Leave nothing behind but `logs`. It may be called again."""
        if self._process is not None:
            self._process.end()
        self.logs()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _started(self) -> GuardedProcess:
        if self._process is None:
            raise RuntimeError("this worker was never started")
        return self._process


class CeleryWorker(WorkerProcess):
    """`celery -A <a module of tests.support.apps> worker`, on a queue of its own."""

    def __init__(
        self,
        app: str = PLAIN_APP,
        *,
        broker_url: str,
        result_backend: str,
        queue: str,
        pool: str = "prefork",
        concurrency: int = 4,
        configuration: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        neighbours: bool = False,
    ) -> None:
        """Prepare a worker; `configuration` is Celery's, `arguments` are added to the command line.

        Without `neighbours` it starts a second sooner, as it neither greets nor watches the other workers.
        """
        self.app = app
        self.broker_url = broker_url
        self.result_backend = result_backend
        self.queue = queue
        self.configuration = {**private_names(queue), **(configuration or {})}
        self.name = f"{unique_name('worker')}@localhost"
        self._client: Celery | None = None
        command = ["celery", "-A", app, "worker", "--loglevel", "INFO", "--hostname", self.name]
        command += ["--pool", pool, "--concurrency", str(concurrency), "--queues", queue]
        if not neighbours:
            command += ["--without-gossip", "--without-mingle"]
        super().__init__(
            [*command, *arguments],
            environment={
                "CT_BROKER_URL": broker_url,
                "CT_RESULT_BACKEND": result_backend,
                "CT_CONF": json.dumps(self.configuration),
                **(environment or {}),
            },
            ready_text=f"{self.name} ready.",
        )

    @property
    def client(self) -> Celery:
        """An app of this process that sends to this worker and may be asked for results."""
        if self._client is None:
            self._client = make_client(
                self.app,
                broker_url=self.broker_url,
                result_backend=self.result_backend,
                queue=self.queue,
                configuration=self.configuration,
            )
        return self._client

    def close(self) -> None:
        """Leave nothing behind but `logs`; the client is closed as well."""
        super().close()
        if self._client is not None:
            close_client(self._client)
            self._client = None


ClientFactory = Callable[..., Celery]
WorkerFactory = Callable[..., CeleryWorker]
SharedWorkers = Callable[..., CeleryWorker]
