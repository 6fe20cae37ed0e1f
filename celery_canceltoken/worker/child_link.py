"""The child's end of the link: a receiver thread that trips tokens, and what bodies tell the agent."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import signal
import socket
import threading
from dataclasses import asdict, dataclass
from typing import Any

from celery_canceltoken.cause import Cancellation, Cause
from celery_canceltoken.outcome import Answer, MessageFate, ResultFate, Verdict
from celery_canceltoken.states import State
from celery_canceltoken.store.answers import Claim, Ended, Finish
from celery_canceltoken.worker.bodies import Bodies
from celery_canceltoken.worker.frames import FrameError, FrameReader, encode_frame

__all__ = ["ChildLink", "LinkAddress", "challenge_answer", "ended_from_frame"]

logger = logging.getLogger("celery_canceltoken.worker")

_CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True)
class LinkAddress:
    """Where an agent's children connect, and the secret that proves that they are its own."""

    path: str
    key: bytes


def challenge_answer(key: bytes, nonce: bytes) -> bytes:
    """What only a process that knows *key* can answer to *nonce*."""
    return hmac.new(key, nonce, hashlib.sha256).digest()


class ChildLink:
    """One child's connection to its agent, and the agent's port for this child's bodies.

    Owner: the child process, from its first execution to its end. `owner`, `started`, `observed`
    and `ended` may be called from any thread. A fork of the child must not use it.
    """

    def __init__(self, address: LinkAddress, bodies: Bodies) -> None:
        """Connect and authenticate. Raises OSError where the agent cannot be reached."""
        self._bodies = bodies
        self._reader = FrameReader()
        self._read_early: list[dict[str, Any]] = []
        self._sending = threading.Lock()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.closed = False
        try:
            self._connection.settimeout(_CONNECT_TIMEOUT)
            self._connection.connect(address.path)
            nonce = bytes.fromhex(self._expect("challenge")["nonce"])
            self._send({"type": "answer", "answer": challenge_answer(address.key, nonce).hex()})
            welcome = self._expect("welcome")
            self.owner: str = welcome["owner"]
            self.takes_work, self.is_closed = bool(welcome["takes_work"]), bool(welcome["is_closed"])
        except (FrameError, KeyError, ValueError) as error:
            self._connection.close()
            raise ConnectionError(f"the agent cannot be understood: {error!r}") from error
        except OSError:
            self._connection.close()
            raise
        self._connection.settimeout(None)
        threading.Thread(target=self._receive, name="canceltoken-receiver", daemon=True).start()

    def close(self) -> None:
        """Close this process's copy of the connection."""
        self.closed = True
        self._connection.close()

    def started(self, claim: Claim, generation: int, attempt: int) -> None:
        """An execution has begun."""
        self._tell({"type": "started", "claim": asdict(claim), "generation": generation, "attempt": attempt})

    def observed(self, execution_id: str, at: float) -> None:
        """Its body has seen that it is to stop."""
        self._tell({"type": "observed", "execution": execution_id, "at": at})

    def published(self, task_id: str, generation: int) -> None:
        """The message of a task that goes back to its queue is with the broker."""
        self._tell({"type": "published", "task": task_id, "generation": generation})

    def ended(self, ended: Ended, owed: Finish | None) -> None:
        """It is over and Celery's result is written."""
        self._tell({"type": "ended", "ended": asdict(ended), "owed": asdict(owed) if owed else None})

    def _tell(self, frame: dict[str, Any]) -> None:
        try:
            self._send(frame)
        except OSError:
            if not self.closed:
                logger.warning("the agent of this worker cannot be reached; its tasks go on without it")
            self.closed = True

    def _send(self, frame: dict[str, Any]) -> None:
        with self._sending:
            self._connection.sendall(encode_frame(frame))

    def _expect(self, kind: str) -> dict[str, Any]:
        while True:
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError("the agent has hung up")
            frames = list(self._reader.feed(data))
            if frames:
                if frames[0]["type"] != kind:
                    raise FrameError(f"{kind} was due, not {frames[0]['type']}")
                self._read_early += frames[1:]
                return frames[0]

    def _receive(self) -> None:
        try:
            for frame in self._read_early:
                self._handle(frame)
            while data := self._connection.recv(65536):
                for frame in self._reader.feed(data):
                    self._handle(frame)
        except (OSError, FrameError, KeyError, ValueError) as error:
            if not self.closed:
                logger.warning("the link to the agent is broken: %r", error)
        self.closed = True

    def _handle(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "cancel":
            cancellation = Cancellation(Cause(frame["cause"]), frame["reason"], frame["actor"])
            self._bodies.cancel(frame["execution"], cancellation)
        elif frame["type"] == "owner":
            self.owner = frame["owner"]
        elif frame["type"] == "phase":
            self.takes_work, self.is_closed = frame["takes_work"], frame["is_closed"]
        elif frame["type"] == "die":
            # Celery's own terminate: at once, and without the body's having a say.
            os.kill(os.getpid(), signal.SIGKILL)


def ended_from_frame(frame: dict[str, Any]) -> tuple[Ended, Finish | None]:
    """Read back what `ChildLink.ended` sent."""
    ended, owed = frame["ended"], frame["owed"]
    instead = ended["instead"]
    finish = None
    if owed is not None:
        cancellation = owed.pop("cancellation")
        finish = Finish(
            **{
                **owed,
                "claim": Claim(**owed["claim"]),
                "rows": {kind: _verdict(row) for kind, row in owed["rows"].items()},
                "cancellation": Cancellation(**{**cancellation, "cause": Cause(cancellation["cause"])})
                if cancellation
                else None,
            }
        )
    return Ended(**{**ended, "instead": State(instead) if instead else None}), finish


def _verdict(row: dict[str, Any]) -> Verdict:
    return Verdict(
        state=State(row["state"]) if row["state"] else None,
        result=ResultFate(row["result"]),
        message=MessageFate(row["message"]),
        answer=Answer(row["answer"]),
        next_generation=row["next_generation"],
        completed=row["completed"],
    )
