"""Checkpoints of any size are written and read piece by piece, so that leases are renewed."""

import asyncio
from collections.abc import Iterator, Sequence

from hongbao.adapters.memory import MemoryStore
from hongbao.shards.block import ShardKey
from hongbao.shards.checkpoint import CHUNK_BYTES, read_checkpoint, write_checkpoint
from hongbao.shards.replay import Replay

from tests.sim.toy import ToyMachine

SHARD = ShardKey("toy", 1)
PIECE_BYTES = 10_000
PIECES = 300
STEPS = 20


class SteppedMachine(ToyMachine):
    """Takes a state in steps."""

    def restore(self, snapshot: bytes | bytearray) -> Iterator[None]:
        for _ in range(STEPS):
            yield


async def test_a_large_checkpoint_is_taken_piece_by_piece_while_others_run() -> None:
    """The memory store never waits, so others run only if the writer lets them."""
    store = MemoryStore()
    asked = turns = 0
    ahead: list[int] = []

    def pieces() -> Iterator[bytes]:
        nonlocal asked
        for number in range(PIECES):
            asked += 1
            yield bytes([number % 256]) * PIECE_BYTES

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def put(items: Sequence[tuple[bytes, bytes]]) -> None:
        written = len(ahead) * (CHUNK_BYTES // PIECE_BYTES) * PIECE_BYTES
        ahead.append(asked * PIECE_BYTES - written)
        await store.put_many(items)

    other = asyncio.create_task(take_turns())
    size = await write_checkpoint(put, SHARD, 7, 3, 0, pieces())
    chunks = len(ahead) - 1  # and a head
    assert turns >= chunks >= PIECES * PIECE_BYTES // CHUNK_BYTES
    assert max(ahead) <= CHUNK_BYTES + PIECE_BYTES
    turns = 0
    found = await read_checkpoint(store, SHARD)
    assert turns >= chunks
    assert found is not None
    assert (found.position, found.epoch, len(found.snapshot)) == (7, 3, size)
    assert found.snapshot == b"".join(pieces())
    turns = 0
    await Replay(store, SHARD, SteppedMachine()).restore()
    assert turns >= STEPS
    other.cancel()


async def test_a_checkpoint_of_nothing_is_one() -> None:
    store = MemoryStore()
    assert await write_checkpoint(store.put_many, SHARD, 7, 3, 0, iter(())) == 0
    found = await read_checkpoint(store, SHARD)
    assert found is not None
    assert (found.position, found.snapshot) == (7, b"")
