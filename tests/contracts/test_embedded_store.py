"""What only the LMDB store promises: its map grows, it has one writer, it never lies (F18)."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.lmdb_writer import LmdbLimits
from hongbao.adapters.store_client import StoreClient
from hongbao.domain.errors import Rejected, Transient
from hongbao.shards.ports import LogStore

from tests.contracts.store_contracts import StoreProcess
from tests.waiting import LIMIT_S, until

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


async def cut_off(store: LmdbStore, call: Coroutine[Any, Any, Any]) -> None:
    """Make a call whose caller goes away while the disk has its write."""
    reached, go = threading.Event(), threading.Event()

    def stall(_txn: object) -> None:
        reached.set()
        go.wait(LIMIT_S)

    stalled = asyncio.create_task(store.writer.write(stall))
    await until(reached.is_set, "the disk stalls")
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    go.set()
    await stalled


async def test_a_lease_whose_caller_was_cut_off_runs_out_as_any_other(small: LmdbStore) -> None:
    await cut_off(small, small.acquire("shard/1", "gone", ttl_s=0.2, value=b"gone"))

    async def granted() -> object:
        return await small.acquire("shard/1", "next", ttl_s=LIMIT_S, value=b"next")

    await until(lambda: small.read("lease/shard/1"), "the grant is written")
    await until(granted, "somebody else gets it", limit_s=LIMIT_S / 4)


async def test_a_holder_that_was_cut_off_asking_again_does_not_keep_the_lease_for_ever(
    small: LmdbStore,
) -> None:
    assert await small.acquire("shard/1", "a", ttl_s=0.2, value=b"a")
    await cut_off(small, small.acquire("shard/1", "a", ttl_s=0.2, value=b"again"))

    async def free() -> bool:
        return not (await small.read("lease/shard/1")).value

    await until(free, "the lease runs out", limit_s=LIMIT_S / 4)


async def test_a_write_whose_caller_was_cut_off_wakes_the_watches(small: LmdbStore) -> None:
    watching = asyncio.ensure_future(anext(small.watch("switches/", after_revision=0)))
    await asyncio.sleep(0)
    await cut_off(small, small.put("switches/open_pause", b"on"))
    seen = await asyncio.wait_for(watching, LIMIT_S / 4)
    assert seen.value == b"on"


async def test_a_write_behind_the_close_is_refused(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "db", monotonic_s=time.monotonic)
    await store.start()
    await store.close()
    with pytest.raises(Transient):
        await asyncio.wait_for(store.put("key", b"value"), LIMIT_S)


async def test_a_close_settles_what_was_under_way(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "db", monotonic_s=time.monotonic)
    await store.start()
    acquiring = asyncio.create_task(store.acquire("shard/1", "a", ttl_s=1, value=b"a"))
    await asyncio.sleep(0)
    await asyncio.wait_for(store.close(), LIMIT_S)
    assert await acquiring


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
