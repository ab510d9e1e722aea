"""Relays TCP between a client and one server, and breaks the way: cut, or replies lost."""

import asyncio
from contextlib import suppress

CHUNK_BYTES = 1 << 16


class Relay:
    """Is a port that leads to a server as long as nothing is switched off."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._cut = False
        self._deaf = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.lost_bytes = 0

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.break_connections()
        await self._server.wait_closed()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def cut(self) -> None:
        """Break all connections, and every new one, until `heal`."""
        self._cut = True
        self.break_connections()

    def lose_replies(self) -> None:
        """Carry requests on, but nothing back, until `heal`; the connections stay up."""
        self._deaf = True

    def heal(self) -> None:
        """Let everything through again; what was lost stays lost, so its connections break."""
        self._cut = False
        if self._deaf:
            self._deaf = False
            self.break_connections()

    def break_connections(self) -> None:
        """Close every connection, on both sides."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        try:
            onward_reader, onward = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        await asyncio.gather(
            self._carry(reader, onward, back=False), self._carry(onward_reader, writer, back=True)
        )

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if back and self._deaf:
                    self.lost_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort()
