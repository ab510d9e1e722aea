"""A proxy on the way to servers: holds requests or replies, loses them, cuts connections.

It speaks HTTP CONNECT, which gRPC's C core uses when `grpc_proxy` is in the environment at the
moment it opens a channel; so clients need no door for tests.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from tests.waiting import LIMIT_S

PIECE_BYTES = 1 << 16
CALL_BYTES_MIN = 18
"""A call or its answer is longer, what HTTP/2 says of itself (pings, windows) is shorter."""
OTHER_PROXY_VARIABLES = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


class Proxy:
    """Carries bytes both ways; `requests` and `replies` are open until a test clears them.

    Requests are held only to the server that `held_target` names (host:port), if it does. With
    `tls` it speaks TLS for servers that have none.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requests = asyncio.Event()
        self.replies = asyncio.Event()
        self.requests.set()
        self.replies.set()
        self.held_target = ""
        self.port = 0
        self._held = asyncio.Event()
        self._carrying: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def wait_held(self) -> None:
        """Wait until a call, or an answer, is held here."""
        async with asyncio.timeout(LIMIT_S):
            await self._held.wait()

    def cut(self) -> None:
        """Cut all connections; what is held is lost, and new connections work again."""
        for task in self._carrying:
            task.cancel()
        self.requests.set()
        self.replies.set()

    async def close(self) -> None:
        """Cut all connections and wait until they are gone."""
        self.cut()
        if self._serving:
            await asyncio.wait(self._serving, timeout=LIMIT_S)

    @contextmanager
    def used(self, environ: pytest.MonkeyPatch) -> Iterator[None]:
        """Make channels that are opened within go through here."""
        with environ.context() as changed:
            for name in OTHER_PROXY_VARIABLES:
                changed.delenv(name, raising=False)
            changed.setenv("grpc_proxy", f"http://127.0.0.1:{self.port}")
            yield

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._connect(reader, writers)
        finally:
            for each in writers:
                each.close()
            for each in writers:
                with suppress(OSError):
                    await each.wait_closed()

    async def _connect(
        self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]
    ) -> None:
        """Carry bytes between a client and its target until one of them, or we, have enough."""
        (writer,) = writers
        _, target, *_ = (await reader.readuntil(b"\r\n\r\n")).split()
        host, _, port = target.decode().rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        writers.append(far_writer)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        if self._tls is not None and not await _secured(writer, self._tls):
            return
        ways = [
            asyncio.create_task(self._carry_requests(reader, far_writer, target.decode())),
            asyncio.create_task(self._carry_replies(far_reader, writer)),
        ]
        self._carrying.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        self._carrying.difference_update(ways)

    async def _carry_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if self.held_target in ("", target):
                    await self._hold(self.requests, piece)
                writer.write(piece)
                await writer.drain()

    async def _carry_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                await self._hold(self.replies, piece)
                writer.write(piece)
                await writer.drain()

    async def _hold(self, open_way: asyncio.Event, piece: bytes) -> None:
        """Keep a call from going on. A ping is let through: the call behind it was never seen."""
        if not open_way.is_set() and len(piece) >= CALL_BYTES_MIN:
            self._held.set()
            await open_way.wait()


@asynccontextmanager
async def running_proxy(tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(tls)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


async def _secured(writer: asyncio.StreamWriter, tls: ssl.SSLContext) -> bool:
    """Speak TLS from now on; False where the client does not, or shows no certificate."""
    try:
        await writer.start_tls(tls)
    except OSError:
        return False
    return True
