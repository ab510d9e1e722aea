"""What only the LMDB store promises: its map grows, it has one writer, it never lies (F18)."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.lmdb_writer import LmdbLimits
from hongbao.adapters.store_client import StoreClient
from hongbao.domain.errors import Rejected, Transient
from hongbao.shards.ports import LogStore

from tests.contracts.store_contracts import StoreProcess
from tests.waiting import LIMIT_S

MAP_BYTES = 1 << 20
VALUE = bytes(100_000)


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    limits = LmdbLimits(map_bytes=MAP_BYTES, map_bytes_max=8 * MAP_BYTES, events_max=10)
    store = LmdbStore(tmp_path / "db", monotonic_s=time.monotonic, limits=limits)
    await store.start()
    yield store
    await store.close()


async def fill(store: LogStore) -> list[bytes]:
    """Write until the store refuses; return the keys that it acknowledged."""
    written = []
    for number in range(100):
        try:
            await store.create(b"%04d" % number, VALUE)
        except Transient:
            return written
        written.append(b"%04d" % number)
    raise AssertionError("it was never full")


async def test_the_map_grows_while_it_is_read(small: LmdbStore) -> None:
    for number in range(50):
        await small.create(b"%04d" % number, VALUE)
        assert len(await small.scan(b"0", b"9", 1000)) == number + 1
    assert small.writer.map_bytes == 8 * MAP_BYTES


async def test_readers_in_other_processes_follow_the_growing_map(tmp_path: Path) -> None:
    process = StoreProcess(tmp_path, MAP_BYTES)
    client = StoreClient(process.socket, process.path)
    try:
        for number in range(60):
            await client.create(b"%04d" % number, VALUE)
            assert await client.get(b"%04d" % number) == VALUE
        assert len(await client.scan(b"0", b"9", 1000)) == 60
    finally:
        await client.close()
        process.kill()


async def test_a_full_map_refuses_and_keeps_what_it_has(small: LmdbStore) -> None:
    written = await fill(small)
    assert 60 <= len(written) < 90
    assert [key for key, _ in await small.scan(b"0", b"9", 1000)] == written
    assert await small.create(b"small", b"1") is True


async def test_a_disk_that_takes_no_more_is_never_acknowledged(tmp_path: Path) -> None:
    """F18: refuse rather than lie; what was acknowledged before stays."""
    process = StoreProcess(tmp_path, 64 * MAP_BYTES, 2 * MAP_BYTES)
    client = StoreClient(process.socket, process.path)
    try:
        acknowledged = await fill(client)
        process.kill()
        process = StoreProcess(tmp_path)
        assert acknowledged
        for key in acknowledged:
            assert await client.get(key) == VALUE
        assert await client.create(b"again", VALUE) is True
    finally:
        await client.close()
        process.kill()


async def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    process = StoreProcess(tmp_path)
    try:
        second = LmdbStore(process.path, monotonic_s=time.monotonic)
        with pytest.raises(Rejected):
            await second.start()
    finally:
        process.kill()


async def test_writes_that_wait_share_a_transaction(small: LmdbStore) -> None:
    before = small.writer.batches
    await asyncio.gather(*(small.create(b"%04d" % number, b"x") for number in range(200)))
    assert small.writer.batches - before < 20


async def test_an_old_watch_still_sees_the_last_change_of_every_key(small: LmdbStore) -> None:
    quiet = await small.put("quiet", b"1")
    await small.put("gone", b"1")
    await small.delete("gone")
    for number in range(100):
        await small.put("busy", b"%d" % number)
    seen = []
    async with asyncio.timeout(LIMIT_S):
        async for event in small.watch("", after_revision=0):
            seen.append(event)
            if event.value == b"99":
                break
    assert len(seen) <= 13
    assert seen[0] == quiet
    assert (seen[1].key, seen[1].value) == ("gone", b"")
    assert [event.value for event in seen[-3:]] == [b"97", b"98", b"99"]


@pytest.mark.parametrize("name", ["a b", "50%ce", "a#b", "a?b", "红包"])
async def test_the_store_is_reached_whatever_its_folder_is_called(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    process = StoreProcess(folder)
    client = StoreClient(process.socket, process.path)
    try:
        assert await client.create(b"key", b"value") is True
        assert await client.get(b"key") == b"value"
    finally:
        await client.close()
        process.kill()
