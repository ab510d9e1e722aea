"""Writes to TiKV as fast as it goes: ours through owners or the port, the peer by the client alone.

usage: python -m tests.bench.tikv_writer WHAT PD SECONDS      prints one JSON object

WHAT is `appends` (owners that append blocks), its peer `swaps` (the same blocks, one
compare-and-swap each), `puts` (derived keys in order), or its peer `batches` (in any order).
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from hongbao.adapters.tikv import TikvStore
from hongbao.shards.block import Block, BlockKind, ShardKey, encode_block
from hongbao.shards.machine import Append, Decision
from hongbao.shards.owner import Owner, OwnerLimits
from tikv import AsyncRawClient

OWNERS = 16
ENTRIES = 16
"""Of one block: four shards that gather for 5 ms hold so many at 12,800 opens a second."""
ENTRY = os.urandom(48)
PUTS = 64
"""Derived keys of one call, and the marker behind them."""
VALUE = os.urandom(48)
PLANE = "bench"

Pairs = list[tuple[bytes, bytes]]
Work = Callable[[int, int], Awaitable[int]]


class EntryMachine:
    """Appends every operation as it is."""

    def decide(self, operation: bytes, position: int) -> Decision:
        return Append(operation, b"")

    def answer(self, operation: bytes, value: bytes | None) -> bytes:
        return b""

    def apply(self, entry: bytes, position: int) -> None:
        pass

    def derive(self, entry: bytes) -> Sequence[tuple[bytes, bytes]]:
        return ()

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def restore(self, snapshot: bytes | bytearray) -> Iterator[None]:
        return iter(())


async def appends(store: TikvStore, ends_s: float) -> int:
    """Keep every owner's queue full for its next block; return how many blocks were appended."""
    limits = OwnerLimits(block_operations_max=ENTRIES, gather_s=0.0)
    owners = [
        await Owner.take_over(
            store,
            PLANE,
            shard,
            epoch=1,
            nonce=os.urandom(16),
            lease_valid=lambda: True,
            machine=EntryMachine(),
            limits=limits,
        )
        for shard in range(OWNERS)
    ]

    async def ask(owner: Owner) -> None:
        waiting: list[asyncio.Future[bytes]] = []
        while time.monotonic() < ends_s:
            waiting += [owner.enqueue(ENTRY) for _ in range(2 * ENTRIES - len(waiting))]
            await asyncio.gather(*waiting[:ENTRIES])
            del waiting[:ENTRIES]

    await asyncio.gather(*map(ask, owners))
    return sum(owner.appended_blocks for owner in owners)


def block_at(shard: int, position: int) -> tuple[bytes, bytes]:
    block = Block(BlockKind.OPERATIONS, 1, bytes(16), position, [ENTRY] * ENTRIES)
    return ShardKey(PLANE, shard).log(position), encode_block(block)


def derived_at(shard: int, position: int) -> Pairs:
    keys = [b"derived/%016x/%d" % (number * 0x9E3779B97F4A7C15 % (1 << 64), shard)
            for number in range(position * PUTS, (position + 1) * PUTS)]  # fmt: skip
    marker = ShardKey(PLANE, shard).applied(position)
    return [*((key, VALUE) for key in keys), (marker, b"\x01")]


async def repeat(work: Work, ends_s: float) -> int:
    """Let every writer do its work again and again; return the sum of what it says was done."""

    async def write(writer: int) -> int:
        done = position = 0
        while time.monotonic() < ends_s:
            done += await work(writer, position)
            position += 1
        return done

    return sum(await asyncio.gather(*map(write, range(OWNERS))))


async def main(what: str, pd: str, seconds: float) -> None:
    namespace = b"bench%s/" % os.urandom(4).hex().encode()
    store = TikvStore([pd], namespace=namespace)
    client = AsyncRawClient(pd, atomic=True)

    async def swap(writer: int, position: int) -> int:
        key, block = block_at(writer, position)
        return int((await client.compare_and_swap(namespace + key, None, block)).swapped)

    async def put(writer: int, position: int) -> int:
        await store.put_many(derived_at(writer, position))
        return PUTS

    async def batch(writer: int, position: int) -> int:
        await client.put_many([(namespace + key, x) for key, x in derived_at(writer, position)])
        return PUTS

    began_s = time.monotonic()
    ends_s = began_s + seconds
    if what == "appends":
        done = await appends(store, ends_s)
    else:
        done = await repeat({"swaps": swap, "puts": put, "batches": batch}[what], ends_s)
    print(json.dumps({"per_s": done / (time.monotonic() - began_s)}), flush=True)
    os._exit(0)  # owners of a bench need not drain


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
