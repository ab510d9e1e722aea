"""Readers of a log: in order, once, never past what is applied, from a durable position."""

import pytest
from hongbao.domain.errors import Corrupt, Fenced
from hongbao.shards.block import Block, BlockKind, ShardKey, encode_block
from hongbao.shards.owner import Owner
from hongbao.shards.reader import LogReader

from tests.shards.faulty_store import FaultyStore
from tests.sim.toy import ToyMachine, add


async def take_over(store: FaultyStore, epoch: int = 1) -> Owner:
    return await Owner.take_over(
        store,
        "toy",
        1,
        epoch=epoch,
        nonce=epoch.to_bytes(16, "big"),
        lease_valid=lambda: True,
        machine=ToyMachine(),
    )


async def positions(reader: LogReader, position: int) -> list[int]:
    await reader.look(position)
    return [block.position for block in await reader.read(position)]


async def test_a_reader_never_passes_what_is_applied() -> None:
    store = FaultyStore()
    owner = await take_over(store)
    reader = LogReader(store, "toy", 1)
    assert await positions(reader, 0) == [0]
    store.puts = ["held"]
    await owner.submit(add(1, 1))
    assert await positions(reader, 1) == []
    store.go.set()
    await owner.drain()
    assert await positions(reader, 1) == [1]


async def test_a_reader_goes_on_over_a_change_of_owners() -> None:
    store = FaultyStore()
    first = await take_over(store)
    for number in range(30):
        await first.submit(add(number, 1))
    second = await take_over(store, epoch=2)
    await second.submit(add(99, 1))
    await second.drain()
    reader = LogReader(store, "toy", 1)
    await reader.look(0)
    blocks: list[Block] = []
    while page := await reader.read(len(blocks), limit=3):
        blocks += page
    assert [block.position for block in blocks] == [*range(33)]
    assert [block.epoch for block in blocks] == [1] * 31 + [2] * 2


@pytest.mark.parametrize("damage", ["missing", "flipped", "older epoch"])
async def test_a_log_that_contradicts_itself_stops_the_reader(damage: str) -> None:
    store = FaultyStore()
    shard = ShardKey("toy", 1)
    for position, epoch in enumerate([1, 5, 3 if damage == "older epoch" else 5]):
        data = encode_block(Block(BlockKind.EPOCH, epoch, bytes(16), position, ()))
        if damage == "flipped" and position == 1:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if damage != "missing" or position != 1:
            await store.create(shard.log(position), data)
        await store.put_many([(shard.applied(position), b"\x01")])
    with pytest.raises(Corrupt):
        await positions(LogReader(store, "toy", 1), 0)


async def test_epochs_that_fall_between_two_reads_stop_the_reader() -> None:
    """Also where a consumer took only some of what it had read."""
    store = FaultyStore()
    shard = ShardKey("toy", 1)
    for position, epoch in enumerate([5, 5, 5, 3]):
        block = Block(BlockKind.EPOCH, epoch, bytes(16), position, ())
        await store.create(shard.log(position), encode_block(block))
        await store.put_many([(shard.applied(position), b"\x01")])
    reader = LogReader(store, "toy", 1)
    await reader.look(0)
    assert len(await reader.read(0, limit=3)) == 3
    assert len(await reader.read(1, limit=2)) == 2
    with pytest.raises(Corrupt, match="epochs fall at block 3"):
        await reader.read(3)


async def test_a_killed_owners_block_is_read_once_its_successor_has_derived_it() -> None:
    """F2."""
    store = FaultyStore()
    owner = await take_over(store)
    store.puts = ["held"]
    await owner.submit(add(1, 1))
    await owner.stop(Fenced("killed"))
    await take_over(store, epoch=2)
    reader = LogReader(store, "toy", 1)
    await reader.look(0)
    assert [len(block.entries) for block in await reader.read(0)] == [0, 1, 0]
