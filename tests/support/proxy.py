"""A TCP proxy that misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Direction", "ToxicProxy"]

Direction = Literal["up", "down", "both"]


@dataclass
class _Faults:
    """What goes wrong at the moment, for all connections."""

    latency: float = 0.0
    jitter: float = 0.0
    bytes_per_second: float | None = None
    frozen: frozenset[str] = frozenset()
    lose_replies_to: bytes | None = None
    tear_after: int | None = None


@dataclass(eq=False)
class _Connection:
    """One client and its connection to the upstream server."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    bytes_down: int = 0
    next_reply_is_lost: bool = False

    def reset(self) -> None:
        """End both sides with a TCP reset, as a dying host would."""
        for writer in self.writers:
            plain: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class ToxicProxy:
    """Stands between a client and a server, and breaks what they say to each other.

        with ToxicProxy(("127.0.0.1", server.port)) as proxy:
            client = Redis(port=proxy.port)
            proxy.freeze("down")

    "up" is towards the server, "down" is towards the client. Every switch may be thrown at any time, also for
    the connections that are open; `heal` puts all of them back.
    """

    def __init__(self, upstream: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self.accepted = 0
        self.refused = 0
        self._upstream = upstream
        self._faults = _Faults()
        self._refuses = False
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="toxic-proxy", daemon=True)

    @property
    def url(self) -> str:
        """The proxy's address for a Redis client."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def open_connections(self) -> int:
        """How many clients are connected through it now."""
        return len(self._connections)

    def start(self) -> ToxicProxy:
        """Listen; from now on `port` is the real one."""
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, self.host, self.port), self._loop
        )
        self._server = listening.result(timeout=10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stop(self) -> None:
        """Reset all connections and stop listening."""
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def delay(self, seconds: float, *, jitter: float = 0.0) -> None:
        """Hold every chunk back, both ways, for `seconds` give or take `jitter`."""
        self._faults.latency, self._faults.jitter = seconds, jitter

    def throttle(self, bytes_per_second: float) -> None:
        """Let no connection carry more than this, each way."""
        self._faults.bytes_per_second = bytes_per_second

    def cut(self) -> None:
        """Reset the open connections and refuse new ones."""
        self._refuses = True
        self.reset_connections()

    def reset_connections(self) -> None:
        """Reset the open connections; new ones are welcome."""
        self._in_loop(self._reset_all)

    def freeze(self, direction: Direction = "both") -> None:
        """Swallow what is sent in that direction: the other side sees silence on an open connection."""
        ways = {"up", "down"} if direction == "both" else {direction}
        self._faults.frozen |= ways

    def lose_replies_to(self, command: bytes) -> None:
        """Let requests that contain `command` through, and close the connection in place of the reply."""
        self._faults.lose_replies_to = command

    def tear_replies_after(self, count: int) -> None:
        """Close each connection once it has carried `count` bytes to its client."""
        self._faults.tear_after = count

    def heal(self) -> None:
        """Undo every fault. What was swallowed or reset stays lost."""
        self._refuses = False
        self._faults = _Faults()

    def __enter__(self) -> ToxicProxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _in_loop(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(timeout=10)

    def _reset_all(self) -> None:
        for connection in self._connections:
            connection.reset()

    async def _shut_down(self) -> None:
        self._server.close()
        self._reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Some releases of asyncio log a cancelled connection as an error.
        with contextlib.suppress(asyncio.CancelledError):
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection([writer])
        if self._refuses:
            self.refused += 1
            connection.reset()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            connection.reset()
            return
        self.accepted += 1
        connection.writers.append(upstream_writer)
        self._connections.add(connection)
        try:
            await self._carry(connection, (reader, upstream_writer), (upstream_reader, writer))
        finally:
            self._connections.discard(connection)
            for each in connection.writers:
                each.close()

    async def _carry(
        self,
        connection: _Connection,
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        down: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        ways = [
            asyncio.ensure_future(self._pump(connection, "up", *up)),
            asyncio.ensure_future(self._pump(connection, "down", *down)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self,
        connection: _Connection,
        way: Literal["up", "down"],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._wait_for_slowness(len(data))
                faults = self._faults
                if way == "up" and faults.lose_replies_to and faults.lose_replies_to in data:
                    connection.next_reply_is_lost = True
                if way in faults.frozen:
                    continue
                if way == "down" and connection.next_reply_is_lost:
                    return
                if way == "down" and faults.tear_after is not None:
                    data = data[: max(0, faults.tear_after - connection.bytes_down)]
                if way == "down":
                    connection.bytes_down += len(data)
                writer.write(data)
                await writer.drain()
                if faults.tear_after is not None and connection.bytes_down >= faults.tear_after:
                    return

    async def _wait_for_slowness(self, size: int) -> None:
        faults = self._faults
        if faults.latency or faults.jitter:
            await asyncio.sleep(max(0.0, faults.latency + random.uniform(-1, 1) * faults.jitter))
        if faults.bytes_per_second:
            await asyncio.sleep(size / faults.bytes_per_second)
