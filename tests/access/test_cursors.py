"""Cursors: no record is issued twice, whatever dies when; losses are counted (F1, R23)."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from random import Random  # noqa: TID251  (seeded: picks where the instance dies)

import pytest
from hongbao.access.cursor import FileCursor
from hongbao.access.limits import AccessLimits
from hongbao.adapters.memory import MemoryStore
from hongbao.domain import cursor as entries
from hongbao.domain.errors import Ambiguous, Corrupt, Fenced, Transient
from hongbao.shards.ports import LogStore

from tests.access.rain import SMALL, bare_file

FILE = bare_file(count=1000)
WINDOW = SMALL.reserve_records


def cursor_of(log: LogStore, epoch: int, pod: int = 1, limits: AccessLimits = SMALL) -> FileCursor:
    return FileCursor(FILE, log, pod, epoch, limits, lambda: None)


async def resumed(log: LogStore, epoch: int, pod: int = 1) -> FileCursor:
    cursor = cursor_of(log, epoch, pod)
    await cursor.resume()
    return cursor


def taken(cursor: FileCursor, count: int) -> list[int]:
    """Take up to `count` records; return their indexes."""
    records = [record for _ in range(count) if (record := cursor.take()) is not None]
    return [int.from_bytes(record[18:], "big") for record in records]


class UncertainLog:
    """Is a log that loses requests and replies, by a seed; F1's restarts see what was written."""

    def __init__(self, store: MemoryStore, random: Random, share: float) -> None:
        self.store = store
        self.random = random
        self.share = share

    async def create(self, key: bytes, value: bytes) -> bool:
        chance = self.random.random()
        if chance < self.share / 3:
            raise Transient("did not happen")
        if chance < self.share * 2 / 3:
            raise Ambiguous("did not happen, but who knows")
        created = await self.store.create(key, value)
        if chance < self.share:
            raise Ambiguous("happened, but who knows")
        return created

    async def get(self, key: bytes) -> bytes | None:
        return await self.store.get(key)

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        await self.store.put_many(items)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return await self.store.scan(start, end, limit)


async def live_and_die(log: UncertainLog, epoch: int, random: Random) -> tuple[list[int], int]:
    """Serve for a random while, then be dropped at a random point; return issued and residue."""
    cursor, issued = await resumed(log, epoch), []
    clean = random.random() < 0.2
    for _ in range(random.randrange(12)):
        with contextlib.suppress(Transient):
            await cursor.top_up()
        issued += taken(cursor, random.randrange(WINDOW))
    while clean:
        try:
            await cursor.give_back()
            break
        except Transient:
            continue
    return issued, cursor.residue


@pytest.mark.parametrize("seed", range(100))
async def test_an_instance_killed_anywhere_never_leads_to_a_second_issue(seed: int) -> None:
    """F1: lost records are at most a window for each death, and all of them are in the residue."""
    random = Random(seed)
    log = UncertainLog(MemoryStore(), random, share=random.choice([0.0, 0.3]))
    issued: list[int] = []
    residue, epoch = 0, 0
    while len(issued) + residue < FILE.count and epoch < 200:
        epoch += 1
        now, found = await live_and_die(log, epoch, random)
        assert found <= WINDOW
        issued += now
        residue += found
    last = await resumed(log, epoch + 1)
    residue += last.residue
    assert len(issued) == len(set(issued)), "a record was issued twice"
    lost = set(range(last.at)) - set(issued)
    assert len(lost) <= residue


async def test_a_clean_end_leaves_no_residue_and_the_next_one_goes_on_exactly_there() -> None:
    store = MemoryStore()
    first = await resumed(store, 1)
    await first.top_up()
    assert taken(first, 10) == [*range(10)]
    await first.give_back()
    assert first.take() is None
    second = await resumed(store, 2)
    await second.top_up()
    assert (second.residue, taken(second, 2)) == (0, [10, 11])


async def test_a_crash_costs_the_reserved_window_and_says_so() -> None:
    """F1."""
    store = MemoryStore()
    first = await resumed(store, 1)
    await first.top_up()
    taken(first, 10)
    second = await resumed(store, 2)
    await second.top_up()
    assert (second.residue, taken(second, 1)) == (WINDOW, [WINDOW])


async def test_never_more_than_the_window_is_outstanding() -> None:
    store = MemoryStore()
    cursor = await resumed(store, 1)
    issued: list[int] = []
    while len(issued) < FILE.count:
        await cursor.top_up()
        assert 0 < cursor.reserved_to - cursor.at <= WINDOW
        issued += taken(cursor, 7)
    assert issued == [*range(FILE.count)]
    assert (cursor.remaining, cursor.wants_more) == (0, False)


async def test_half_a_window_before_its_end_more_is_asked_for() -> None:
    calls: list[int] = []
    cursor = FileCursor(FILE, MemoryStore(), 1, 1, SMALL, lambda: calls.append(cursor.at))
    await cursor.resume()
    await cursor.top_up()
    taken(cursor, WINDOW)
    assert calls == [WINDOW // 2]


async def test_a_paused_instance_stops_when_another_took_over() -> None:
    """F7 in small: it may finish its own window, and reserves no other."""
    store = MemoryStore()
    old = await resumed(store, 1)
    await old.top_up()
    before = taken(old, WINDOW // 2)
    new = await resumed(store, 2)
    await new.top_up()
    with pytest.raises(Fenced, match="pod 1, epoch 2"):
        await old.top_up()
    assert old.take() is None
    assert not set(before) & set(taken(new, WINDOW))


async def test_two_that_take_over_at_once_cannot_both_reserve() -> None:
    store = MemoryStore()
    one, two = await resumed(store, 1, pod=1), await resumed(store, 1, pod=2)
    results = await asyncio.gather(one.top_up(), two.top_up(), return_exceptions=True)
    assert sorted(type(result) for result in results if result) == [Fenced]
    assert sum(bool(taken(cursor, 1)) for cursor in (one, two)) == 1


async def test_an_older_epoch_of_the_pod_does_not_even_begin() -> None:
    store = MemoryStore()
    new = await resumed(store, 5)
    await new.top_up()
    with pytest.raises(Fenced, match="epoch 5"):
        await resumed(store, 4)


async def test_a_lost_reply_is_read_back_and_not_written_again() -> None:
    store = MemoryStore()
    log = UncertainLog(store, Random(0), share=0.0)
    cursor = await resumed(log, 1)
    log.random, log.share = Random(3), 1.0  # the write happens, the reply is lost
    while not await store.get(entries.cursor_key(FILE.file, 0)):
        with pytest.raises(Transient):
            await cursor.top_up()
    log.share = 0.0
    await cursor.top_up()
    assert taken(cursor, 1) == [0]
    assert await store.get(entries.cursor_key(FILE.file, 1)) is None


class SilentLog(UncertainLog):
    """Writes, and never answers."""

    async def create(self, key: bytes, value: bytes) -> bool:
        await self.store.create(key, value)
        await asyncio.sleep(3600)
        return True


async def test_a_log_that_does_not_answer_gives_up_in_time_and_nothing_is_lost() -> None:
    store = MemoryStore()
    log = SilentLog(store, Random(0), 0)
    cursor = cursor_of(log, 1, limits=replace(SMALL, store_timeout_s=0.2))
    await cursor.resume()
    with pytest.raises(Ambiguous):
        await cursor.top_up()
    assert cursor.take() is None
    log.create = store.create  # type: ignore[method-assign]
    await cursor.top_up()
    assert taken(cursor, 1) == [0]


async def test_a_clean_end_behind_a_window_that_was_used_up_says_so() -> None:
    store = MemoryStore()
    cursor = await resumed(store, 1)
    await cursor.top_up()
    taken(cursor, WINDOW)
    await cursor.give_back()
    await cursor.give_back()
    assert (await resumed(store, 2)).residue == 0
    assert await store.get(entries.cursor_key(FILE.file, 2)) is None


@pytest.mark.parametrize("arrives", ["before", "late", "never"])
async def test_a_reservation_that_the_end_cut_off_leaves_no_residue(arrives: str) -> None:
    """A drain cancels what is under way; the whole window was issued by then."""
    store = MemoryStore()
    cursor = await resumed(store, 1)
    await cursor.top_up()
    taken(cursor, WINDOW)
    cut_off: list[tuple[bytes, bytes]] = []
    asked = asyncio.Event()

    async def create(key: bytes, value: bytes) -> bool:
        cut_off.append((key, value))
        asked.set()
        if arrives == "before":
            await whole(key, value)
        await asyncio.sleep(3600)
        return True

    whole, store.create = store.create, create  # type: ignore[method-assign]
    topping_up = asyncio.create_task(cursor.top_up())
    await asked.wait()
    topping_up.cancel()
    store.create = whole  # type: ignore[method-assign]
    await cursor.give_back()
    if arrives == "late":
        assert not await store.create(*cut_off[0])
    after = await resumed(store, 2)
    await after.top_up()
    assert (after.residue, taken(after, 1)) == (0, [WINDOW])


async def test_a_file_that_moves_there_and_back_goes_on_where_it_was() -> None:
    store = MemoryStore()
    issued: list[int] = []
    for epoch, pod in ((1, 1), (1, 2), (1, 1)):
        cursor = await resumed(store, epoch, pod)
        await cursor.top_up()
        issued += taken(cursor, 20)
        await cursor.give_back()
    assert issued == [*range(60)]


async def test_a_gap_in_the_log_is_corrupt() -> None:
    store = MemoryStore()
    entry = entries.CursorEntry(entries.RESERVED, 1, 1, 0, 64, 0)
    await store.create(entries.cursor_key(FILE.file, 1), entries.pack_cursor(entry))
    with pytest.raises(Corrupt, match="entry 0 is missing"):
        await resumed(store, 2)


async def test_a_log_beyond_the_file_is_corrupt() -> None:
    store = MemoryStore()
    entry = entries.CursorEntry(entries.RESERVED, 1, 1, 0, FILE.count + 1, 0)
    await store.create(entries.cursor_key(FILE.file, 0), entries.pack_cursor(entry))
    with pytest.raises(Corrupt, match="1001 records reserved of 1000"):
        await resumed(store, 2)
