"""The peer of opens: the usual Redis grab behind grpcio's aio server, AOF synced always.

usage: python -m tests.bench.peer_open REDIS_PORT PORT PACKETS

The script is the one that such systems use: is the user in the set, pop an amount off the list,
remember who has it. It is kinder to the peer than a fair copy of ours: no token is verified,
nothing is deciphered, and one pipelined connection saves what a client library costs.
"""

import asyncio
import sys
from collections import deque
from typing import Any

from hongbao.proto.v1 import redeem_pb2

from tests.bench.serve_opens import serve_opens

GRAB = b"""
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 1 then
  return redis.call('HGET', KEYS[3], ARGV[1])
end
local packet = redis.call('LPOP', KEYS[2])
if not packet then return false end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], packet)
return packet
"""
LOADED = 10_000


class Redis(asyncio.Protocol):
    """Speaks RESP over one pipelined connection; answers come in order."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[bytes | None]] = deque()
        self._rest = b""
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def call(self, *words: bytes) -> "asyncio.Future[bytes | None]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append(future)
        if not self._out:
            loop.call_soon(self._flush)
        parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        self._out.append(b"*%d\r\n%b" % (len(words), b"".join(parts)))
        return future

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        position = 0
        while (line := data.find(b"\r\n", position)) >= 0:
            kind, head = data[position : position + 1], data[position + 1 : line]
            stop = line + 2
            value: bytes | None = head
            if kind == b"$":
                size = int(head)
                stop += size + 2 if size >= 0 else 0
                if stop > len(data):
                    break
                value = data[line + 2 : stop - 2] if size >= 0 else None
            future = self._waiting.popleft()
            if future.done():  # its call was cancelled: the last one of a round
                pass
            elif kind == b"-":
                future.set_exception(RuntimeError(head.decode()))
            else:
                future.set_result(value)
            position = stop
        self._rest = data[position:]


async def main(redis_port: int, port: int, packets: int) -> None:
    loop = asyncio.get_running_loop()
    _, redis = await loop.create_connection(Redis, "127.0.0.1", redis_port)
    for start in range(0, packets, LOADED):
        amounts = [b"%d:%d" % (n, 100 + n % 400) for n in range(start, start + LOADED)]
        await redis.call(b"RPUSH", b"packets", *amounts)
    digest = await redis.call(b"SCRIPT", b"LOAD", GRAB)
    assert digest is not None

    async def open_packet(request: Any, context: Any) -> Any:
        user = request.claim_token
        got = await redis.call(b"EVALSHA", digest, b"3", b"users", b"packets", b"claims", user)
        if got is None:
            return redeem_pb2.OpenReply(outcome=redeem_pb2.ALREADY_OPENED)
        packet, _, amount = got.partition(b":")
        return redeem_pb2.OpenReply(
            outcome=redeem_pb2.OPENED, packet=int(packet), amount_fen=int(amount)
        )

    await serve_opens(open_packet, port)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
