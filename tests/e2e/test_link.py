"""The private connection between an agent and its children, from outside."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import psutil
import pytest

from celery_canceltoken import State, revoke
from celery_canceltoken.worker.frames import encode_frame
from tests.e2e.conftest import send
from tests.support.waiting import wait_until
from tests.support.workers import CeleryWorker


def _agent_socket(worker: CeleryWorker) -> Path:
    for connection in psutil.Process(worker.pid).net_connections(kind="unix"):
        if connection.laddr and "canceltoken-" in str(connection.laddr):
            return Path(str(connection.laddr))
    raise AssertionError("the agent listens nowhere")


def test_only_its_user_can_enter(shared_prefork_worker: CeleryWorker) -> None:
    """The socket lies in a directory of mode 0700."""
    folder = _agent_socket(shared_prefork_worker).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "speech",
    [
        encode_frame({"type": "answer", "answer": "00" * 32}),
        encode_frame({"type": "started", "claim": {}, "generation": 0, "attempt": 1}),
        encode_frame({"type": "cancel", "execution": "x"}),
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02[]",
        b"\x80\x04\x95pickle",
    ],
)
def test_stranger_is_hung_up_on(shared_prefork_worker: CeleryWorker, speech: bytes) -> None:
    """Who cannot answer the challenge is disconnected, and nobody else notices."""
    job = send(shared_prefork_worker, "wait", 30).wait_until_started()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(5)
        stranger.connect(str(_agent_socket(shared_prefork_worker)))
        assert b"challenge" in stranger.recv(4096)
        stranger.sendall(speech)
        if speech.startswith(b"\x80"):
            stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(4096) == b""
    assert revoke(job.result).wait(10).state is State.REVOKED


def test_nothing_is_left_of_it(worker_factory: object) -> None:
    """A worker that is stopped takes its socket's directory along."""
    worker: CeleryWorker = worker_factory(concurrency=1)  # type: ignore[operator]
    send(worker, "whoami").result.get(timeout=10)
    folder = _agent_socket(worker).parent
    assert worker.stop() == 0
    wait_until(lambda: not folder.exists(), description="the directory is gone")


def test_children_hold_no_copy_of_the_agents_connections(shared_prefork_worker: CeleryWorker) -> None:
    """A child has one end of one connection to the agent, and no copy of the agent's own ends."""
    for _ in range(20):
        send(shared_prefork_worker, "whoami").result.get(timeout=10)
    for child in shared_prefork_worker.children():
        ours = [
            one
            for one in child.net_connections(kind="unix")
            if "canceltoken-" in str(one.laddr) or "canceltoken-" in str(one.raddr)
        ]
        assert not [one for one in ours if one.laddr], "the agent's ends carry its address"
