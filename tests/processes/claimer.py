"""Is the owner of one claims shard that kills itself (SIGKILL) at a chosen point of a commit.

A child of the nursery. The points lie around the two writes of a commit: the append of the block
and the derived keys; results leave between them (faults.md F2).
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from hongbao.adapters.store_client import StoreClient
from hongbao.redeem.machine import ClaimsMachine
from hongbao.shards.block import ShardKey
from hongbao.shards.owner import Owner
from hongbao.shards.peers import add_shards_service

from tests.processes.nursery import say

PLANE, SHARD = "claims", 0
POINTS = (
    "before append",
    "append sent",  # nobody knows whether it arrived
    "appended",  # durable; neither answered nor derived
    "answered",  # durable and answered; not derived
    "half derived",
    "derived",
)
PAUSED = "paused"  # between looking at its lease and the append, until somebody sends SIGCONT
LIED = "lied"  # the planted bug: the store says that the block is durable, and it is not
ON_THE_WAY_S = 0.0005
ANSWER_S = 0.05


class FatalStore:
    """Is a LogStore that ends this process at the given point of the given call."""

    def __init__(self, inner: StoreClient, point: str, call: int) -> None:
        self._inner = inner
        self._point = point
        self._call = call
        self._creates = self._puts = 0
        self.armed = False

    async def create(self, key: bytes, value: bytes) -> bool:
        self._creates += self.armed
        fatal = self._creates == self._call
        if fatal and self._point == "before append":
            die()
        if fatal and self._point == PAUSED:
            os.kill(os.getpid(), signal.SIGSTOP)
        if fatal and self._point == "append sent":
            sent = asyncio.ensure_future(self._inner.create(key, value))
            await asyncio.sleep(ON_THE_WAY_S)
            die(sent)
        if fatal and self._point == LIED:
            asyncio.get_running_loop().call_later(ANSWER_S, die)
            return True
        if self._point == LIED and self._creates > self._call:
            await asyncio.sleep(ANSWER_S * 2)  # die before a gap tells the truth
        created = await self._inner.create(key, value)
        if fatal and self._point == "appended":
            die()
        return created

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        self._puts += self.armed
        fatal = self._puts == self._call
        if fatal and self._point == "answered":
            await asyncio.sleep(ON_THE_WAY_S)
            die()
        if fatal and self._point == "half derived":
            await self._inner.put_many(items[: len(items) // 2 + 1])
            die()
        await self._inner.put_many(items)
        if fatal and self._point == "derived":
            die()

    async def get(self, key: bytes) -> bytes | None:
        return await self._inner.get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return await self._inner.scan(start, end, limit)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(argument: dict[str, Any]) -> None:
    """Own the shard until the fatal point; on SIGTERM hand it over."""
    asyncio.run(_own(argument, Path(argument["folder"])))


async def _own(argument: dict[str, Any], folder: Path) -> None:
    client = StoreClient(folder / "store.sock", folder / "store")
    store = FatalStore(client, argument["point"], argument["call"])
    owner = await Owner.take_over(
        store,
        PLANE,
        SHARD,
        epoch=argument["epoch"],
        nonce=os.urandom(16),
        lease_valid=lambda: True,
        machine=ClaimsMachine(ShardKey(PLANE, SHARD)),
    )
    store.armed = True
    server = grpc.aio.server()
    add_shards_service(server, lambda plane, shard: owner)
    address = folder / f"owner.{argument['epoch']}"
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    say("serves", argument["epoch"])
    await stop.wait()
    await owner.drain()
    await server.stop(0)
    await client.close()
