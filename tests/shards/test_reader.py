"""Readers of a log: in order, once, never past what is applied, from a durable position."""

import asyncio

import pytest
from hongbao.domain.errors import Corrupt, Fenced
from hongbao.shards.block import Block, BlockKind, ShardKey, encode_block
from hongbao.shards.owner import Owner
from hongbao.shards.reader import LogReader, PositionStore

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


async def test_a_reader_never_passes_what_is_applied() -> None:
    store = FaultyStore()
    owner = await take_over(store)
    reader = LogReader(store, "toy", 1)
    assert [position for position, _ in await reader.read()] == [0]
    store.puts = ["held"]
    await owner.submit(add(1, 1))
    assert await reader.read() == []
    store.go.set()
    await owner.drain()
    assert [position for position, _ in await reader.read()] == [1]


async def test_a_reader_goes_on_over_a_change_of_owners() -> None:
    store = FaultyStore()
    first = await take_over(store)
    for number in range(30):
        await first.submit(add(number, 1))
    second = await take_over(store, epoch=2)
    await second.submit(add(99, 1))
    await second.drain()
    reader = LogReader(store, "toy", 1)
    blocks = [block for _ in range(20) for _, block in await reader.read(limit=3)]
    assert [block.position for block in blocks] == [*range(33)]
    assert [block.epoch for block in blocks] == [1] * 31 + [2] * 2
    assert await reader.read() == []


async def test_follow_waits_for_what_comes() -> None:
    store = FaultyStore()
    owner = await take_over(store)
    reader = LogReader(store, "toy", 1)

    async def collect() -> list[int]:
        seen = []
        async for position, _ in reader.follow(poll_s=0.001):
            seen.append(position)
            if len(seen) == 4:
                break
        return seen

    collecting = asyncio.create_task(collect())
    for number in range(3):
        await owner.submit(add(number, 1))
        await asyncio.sleep(0.005)
    assert await asyncio.wait_for(collecting, 5) == [0, 1, 2, 3]


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
        await LogReader(store, "toy", 1).read()


async def test_positions_are_kept_by_reader_and_shard() -> None:
    store = FaultyStore()
    settle, bridge = PositionStore(store, "settle"), PositionStore(store, "bridge")
    await settle.save("claims", 1, 17)
    await settle.save("claims", 1, 18)
    assert await settle.load("claims", 1) == 18
    assert await settle.load("claims", 2) == 0
    assert await bridge.load("claims", 1) == 0


async def test_a_killed_owners_block_is_read_once_its_successor_has_derived_it() -> None:
    """F2."""
    store = FaultyStore()
    owner = await take_over(store)
    store.puts = ["held"]
    await owner.submit(add(1, 1))
    await owner.stop(Fenced("killed"))
    await take_over(store, epoch=2)
    blocks = await LogReader(store, "toy", 1).read()
    assert [len(block.entries) for _, block in blocks] == [0, 1, 0]
