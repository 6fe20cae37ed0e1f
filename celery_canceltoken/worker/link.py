"""The agent's end of the link: how it hears of, and reaches, bodies in child processes."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import selectors
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_canceltoken.cause import Cancellation
from celery_canceltoken.store.answers import Claim
from celery_canceltoken.worker.child_link import LinkAddress, challenge_answer, ended_from_frame
from celery_canceltoken.worker.frames import FrameError, FrameReader, encode_frame
from celery_canceltoken.worker.service import Service

if TYPE_CHECKING:
    from celery_canceltoken.worker.agent import Agent

__all__ = ["LinkServer"]

logger = logging.getLogger("celery_canceltoken.worker")

_FOLDER_PREFIX = "canceltoken-link-"
_SOCKET_NAME = "agent"
_SOCKET_PATH_LIMIT = 100
"""Bytes; the kernel allows a unix socket's path about 104."""


class _Child:
    """One connected child process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.nonce = secrets.token_bytes(32)
        self.reader = FrameReader()
        self.authenticated = False
        self._sending = threading.Lock()

    def send(self, frame: dict[str, Any]) -> None:
        """Send one frame without ever waiting. Raises OSError where the child is gone or does not read."""
        data = encode_frame(frame)
        with self._sending:
            if self.connection.send(data) != len(data):
                # Half a frame is out: nothing that follows could be understood.
                self.connection.shutdown(socket.SHUT_RDWR)
                raise BlockingIOError("the child does not read")

    def cancel(self, execution_id: str, cancellation: Cancellation) -> None:
        """Have the child trip a token."""
        self.send(
            {
                "type": "cancel",
                "execution": execution_id,
                "cause": cancellation.cause.value,
                "reason": cancellation.reason,
                "actor": cancellation.actor,
            }
        )


class LinkServer(Service):
    """Accepts children and reads what they tell, on one thread for all of them.

    The listening socket exists before the pool forks; a child that connects before the thread
    runs waits in its backlog. It lies in a directory only its user can enter, and a child has to
    answer a challenge with a secret it inherited. After a fork, `close_inherited` closes the
    copies of the agent's sockets in the child, so that the end of the agent shows at the others.
    """

    name = "link"

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent
        self._folder = _private_folder()
        self.address = LinkAddress(str(self._folder / _SOCKET_NAME), secrets.token_bytes(32))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address.path)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._children: list[_Child] = []

    def interrupt(self) -> None:
        """Wake the thread."""
        self._wake_writer.send(b".")

    def close(self) -> None:
        """Close everything, once the thread has ended. The address is of no use from then on."""
        for child in self._children:
            child.connection.close()
        self._close_own()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close_inherited(self) -> None:
        """In a forked child: give up the copies of the agent's descriptors, and touch nothing else."""
        for child in self._children:
            child.connection.close()
        self._close_own()

    def broadcast_owner(self) -> None:
        """Tell every child whom to claim for from now on."""
        for child in list(self._children):
            self._try_send(child, {"type": "owner", "owner": self._agent.owner})

    def broadcast_phase(self) -> None:
        """Tell every child whether bodies may start."""
        for child in list(self._children):
            self._try_send(child, {"type": "phase", **self._phase()})

    def kill_children(self) -> None:
        """End every child at once."""
        for child in list(self._children):
            self._try_send(child, {"type": "die"})

    def _phase(self) -> dict[str, Any]:
        return {"takes_work": self._agent.takes_work, "is_closed": self._agent.is_closed}

    def turn(self) -> None:
        """Wait for, and handle, whatever comes."""
        for key, _ in self._selector.select():
            if key.data is not None:
                key.data()

    def _close_own(self) -> None:
        self._selector.close()
        for end in (self._listener, self._wake_reader, self._wake_writer):
            end.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        child = _Child(connection)
        self._children.append(child)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(child))
        self._try_send(child, {"type": "challenge", "nonce": child.nonce.hex()})

    def _receive(self, child: _Child) -> None:
        try:
            data = child.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(child)
            return
        try:
            for frame in child.reader.feed(data):
                self._handle(child, frame)
        except (FrameError, KeyError, TypeError, ValueError) as error:
            logger.error("a child sent what cannot be understood (%r); its link is closed", error)
            self._drop(child)

    def _handle(self, child: _Child, frame: dict[str, Any]) -> None:
        kind = frame["type"]
        if not child.authenticated:
            answer = bytes.fromhex(frame["answer"]) if kind == "answer" else b""
            if not hmac.compare_digest(answer, challenge_answer(self.address.key, child.nonce)):
                raise FrameError("the challenge was not met")
            child.authenticated = True
            child.send({"type": "welcome", "owner": self._agent.owner, **self._phase()})
        elif kind == "started":
            claim = Claim(**frame["claim"])
            execution_id = claim.execution_id
            self._agent.started(
                claim,
                frame["generation"],
                frame["attempt"],
                lambda cancellation: child.cancel(execution_id, cancellation),
                lambda: self._try_send(child, {"type": "die"}),
            )
        elif kind == "observed":
            self._agent.observed(frame["execution"], frame["at"])
        elif kind == "published":
            self._agent.published(frame["task"], frame["generation"])
        elif kind == "ended":
            self._agent.ended(*ended_from_frame(frame))

    def _drop(self, child: _Child) -> None:
        self._selector.unregister(child.connection)
        self._children.remove(child)
        child.connection.close()

    def _try_send(self, child: _Child, frame: dict[str, Any]) -> None:
        try:
            child.send(frame)
        except OSError:
            logger.debug("a child is gone", exc_info=True)


def _private_folder() -> Path:
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    if len(os.fsencode(folder)) > _SOCKET_PATH_LIMIT - 10:
        shutil.rmtree(folder)
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir="/tmp"))
    return folder


def _sweep(folder: Path) -> None:
    """Remove what agents left that were killed: a socket at which nobody listens."""
    for socket_path in folder.glob(f"{_FOLDER_PREFIX}*/{_SOCKET_NAME}"):
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(0.1)
                probe.connect(str(socket_path))
        except ConnectionRefusedError:
            shutil.rmtree(socket_path.parent, ignore_errors=True)
        except OSError:
            # Somebody else's, or busy: not ours to judge.
            continue
