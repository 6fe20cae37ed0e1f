"""pytest-celery's vendors as processes of this machine instead of containers.

A node talks to its container through a small part of docker's interface; these classes have that part. The
fixtures that put them in place are in `node_fixtures`.
"""

from __future__ import annotations

import os
import shutil
import signal as signals
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from celery import __version__ as celery_version
from pytest_celery import CeleryTestWorker, CeleryWorkerContainer, RabbitMQContainer, RedisContainer

from tests.support.rabbitmq import RabbitMQ
from tests.support.servers import EmbeddedServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess

__all__ = ["GENERATED_APP", "NodeOptions", "NodeWorker", "RabbitMQNode", "RedisNode", "WorkerNode"]

GENERATED_APP = "app"


@dataclass(frozen=True)
class NodeOptions:
    """How a worker node is started.

    `app` is a module of `tests.support.apps`, or else the app that pytest-celery generates from its fixtures.
    """

    app: str = GENERATED_APP
    pool: str = "prefork"
    concurrency: int = 2
    configuration: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ("--without-gossip", "--without-mingle")


class _Node:
    """What docker would know about a container. pytest-docker-tools' own `__init__` wants a real one."""

    def __init__(self, kind: str) -> None:
        self._id = uuid.uuid4().hex
        self._name = f"{kind}-{self._id[:6]}"

    @property
    def id(self) -> str:
        return self._id

    @property
    def name(self) -> str:
        return self._name

    @property
    def status(self) -> str:
        return "running" if self.is_running else "exited"

    @property
    def is_running(self) -> bool:
        raise NotImplementedError

    def reload(self) -> None:
        """Refresh what is known: here it is never stale."""


class RedisNode(_Node, RedisContainer):
    """A broker or result backend on an embedded server."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.server = EmbeddedServer().start()

    @property
    def is_running(self) -> bool:
        return self.server.is_running

    @property
    def hostname(self) -> str:
        return self.server.host

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def host_url(self) -> str:
        return self.server.url

    def ready(self) -> bool:
        return self.is_running

    def logs(self) -> str:
        return self.server.log

    def kill(self, signal: str | int = "SIGKILL") -> None:
        os.kill(self.server.pid, _number(signal))
        if _number(signal) in {signals.SIGKILL, signals.SIGTERM}:
            wait_until(lambda: not self.is_running, description=f"{self.name} has ended")

    def restart(self, timeout: int = 10) -> None:
        self.server.restart()

    def teardown(self) -> None:
        self.server.stop()


class RabbitMQNode(_Node, RabbitMQContainer):
    """A broker that somebody else runs, and that is not ours to stop."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        super().__init__("rabbitmq")
        self._url = rabbitmq.url

    @property
    def is_running(self) -> bool:
        return True

    @property
    def hostname(self) -> str:
        return urlsplit(self._url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self._url).port or 5672

    @property
    def url(self) -> str:
        return self._url

    @property
    def host_url(self) -> str:
        return self._url

    def ready(self) -> bool:
        return True

    def logs(self) -> str:
        return ""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        pytest.skip("this RabbitMQ is not ours to kill")

    def restart(self, timeout: int = 10) -> None:
        pytest.skip("this RabbitMQ is not ours to restart")

    def teardown(self) -> None:
        """Nothing here is ours."""


class WorkerNode(_Node, CeleryWorkerContainer):
    """A `celery worker` process, in front of the files that pytest-celery would put into its container."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        queue: str,
        environment: Mapping[str, str],
        content: Mapping[str, bytes],
    ) -> None:
        super().__init__("worker")
        self._queue = queue
        self._files = Path(tempfile.mkdtemp(prefix="canceltoken-node-"))
        for name, text in content.items():
            path = self._files / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        self.process = WorkerProcess(
            # Docker gives a container its id as host name, and pytest-celery relies on that.
            [word.replace("%h", self.id[:12]) for word in command],
            environment={name: value for name, value in environment.items() if name != "PYTHONPATH"},
            python_path=[self._files],
        )
        self.process.start()

    @property
    def is_running(self) -> bool:
        return self.process.is_running

    @property
    def pid(self) -> int:
        return self.process.pid

    def version(self) -> str:
        """The release of Celery that runs here; pytest-celery would install one."""
        return celery_version

    def worker_queue(self) -> str:
        return self._queue

    def ready(self) -> bool:
        self.process.wait_until_ready()
        return True

    def logs(self) -> str:
        return self.process.logs()

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Signal the main process; SIGKILL takes the pool along, as the end of a container would."""
        if _number(signal) == signals.SIGKILL:
            self.process.crash()
        else:
            self.process.kill(_number(signal))

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        return self.process.wait(timeout)

    def children(self) -> list[psutil.Process]:
        """The processes of the pool."""
        return self.process.children()

    def restart(self, timeout: int = 10) -> None:
        """Ask it to stop, insist after `timeout`, and start it again."""
        if self.is_running:
            try:
                self.process.stop(timeout)
            except subprocess.TimeoutExpired:
                self.process.crash()
        self.process.restart()

    def teardown(self) -> None:
        self.process.close()
        shutil.rmtree(self._files, ignore_errors=True)


class NodeWorker(CeleryTestWorker):
    """The node of a worker process: it answers for its own processes, not for the whole machine's."""

    def get_running_processes_info(
        self, columns: list[str] | None = None, filters: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        processes = [psutil.Process(self.container.pid), *self.container.children()]
        rows: list[dict[str, Any]] = [
            process.as_dict(columns or ["pid", "name", "cmdline", "create_time"]) for process in processes
        ]
        return [row for row in rows if all(row.get(key) == value for key, value in (filters or {}).items())]


def _number(signal: str | int) -> int:
    return int(signals.Signals[signal]) if isinstance(signal, str) else int(signal)
