"""Facts about ranges of numbers: no number is given twice, whatever is lost and whoever races."""

from collections.abc import Coroutine, Generator
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous, Corrupt, Rejected, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.ports import Versioned
from hongbao.shards.ranges import END_NUMBER_MAX, STEP_NUMBERS, TRIES_MAX, take_range
from hypothesis import given, settings
from hypothesis import strategies as st

SHARD = ShardKey("streams", 7)
KEY = "seq/streams/7"


@coroutine
def turn() -> Generator[None, None, None]:
    """Let the others go on until we are drawn."""
    yield


@dataclass
class Wire:
    """Is the way to a store on which each write meets the next of its fates."""

    store: MemoryStore = field(default_factory=MemoryStore)
    fates: list[str] = field(default_factory=list)
    late: list[tuple[bytes, int]] = field(default_factory=list)

    async def read(self, key: str) -> Versioned:
        await turn()
        found = await self.store.read(key)
        await turn()
        return found

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        await turn()
        fate = self.fates.pop() if self.fates else "done"
        if fate == "refused":
            raise Transient("refused")
        if fate == "late":
            self.late.append((value, revision))
        if fate in ("late", "lost before"):
            raise Ambiguous("nobody knows")
        written = await self.store.compare_and_put(key, value, revision=revision)
        await turn()
        if fate == "lost after":
            raise Ambiguous("nobody knows")
        return written

    async def deliver(self) -> None:
        """Let a write arrive that its writer gave up long ago."""
        value, revision = self.late.pop()
        await self.store.compare_and_put(KEY, value, revision=revision)


@dataclass
class Taker:
    """Is one call under way, and what all calls that were answered before it had got."""

    work: Coroutine[Any, Any, range]
    earlier: list[range]


FATES = st.lists(st.sampled_from(["done", "lost before", "lost after", "late", "refused"]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["step", "step", "die", "deliver"]), st.integers(0, 7)),
    ),
    min_size=20,
    max_size=120,
)


@settings(deadline=None)
@given(FATES, STEPS)
def test_no_number_is_given_twice_and_later_ones_are_greater(
    fates: list[str], steps: list[tuple[str, int]]
) -> None:
    """M8: takers race, die, and are answered too late or never."""
    wire, takers, given_out = Wire(fates=fates), list[Taker](), list[range]()
    for what, number in [*steps, *[("step", 0)] * 2000]:
        if what == "begin":
            work = take_range(wire, SHARD, count=number)  # type: ignore[arg-type]
            takers.append(Taker(work, list(given_out)))
        elif what == "deliver" and wire.late:
            run_at_once(wire.deliver())
        elif takers and what in ("step", "die"):
            taker = takers[number % len(takers)]
            if what == "die" or step(taker, given_out):
                taker.work.close()
                takers.remove(taker)
    assert not takers, "a taker never ended"
    numbers = [number for one in given_out for number in one]
    assert len(set(numbers)) == len(numbers), given_out


def step(taker: Taker, given_out: list[range]) -> bool:
    """Let a taker go on to its next wait; tell whether it ended."""
    try:
        taker.work.send(None)
    except StopIteration as end:
        got: range = end.value
        assert all(got.start >= one.stop for one in taker.earlier), (got, taker.earlier)
        given_out.append(got)
    except Transient:
        pass
    else:
        return False
    return True


def run_at_once(work: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(StopIteration):
        work.send(None)


async def test_ranges_follow_one_another_from_one_on() -> None:
    store = MemoryStore()
    assert await take_range(store, SHARD) == range(1, STEP_NUMBERS + 1)
    assert await take_range(store, SHARD, count=5) == range(STEP_NUMBERS + 1, STEP_NUMBERS + 6)
    assert await take_range(store, ShardKey("streams", 8), count=2) == range(1, 3)
    assert (await store.read(KEY)).value == b"%d" % (STEP_NUMBERS + 6)


class Silent(MemoryStore):
    """Writes and never says so."""

    writes = 0

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        self.writes += 1
        await super().compare_and_put(key, value, revision=revision)
        raise Ambiguous("nobody knows")


async def test_after_so_many_answers_lost_it_gives_up_and_what_was_written_is_skipped() -> None:
    silent = Silent()
    with pytest.raises(Transient, match=KEY) as gave_up:
        await take_range(silent, SHARD, count=10)
    assert not isinstance(gave_up.value, Ambiguous)  # nothing hangs on what became of the tries
    assert silent.writes == TRIES_MAX
    assert await MemoryStore.read(silent, KEY) == Versioned(
        KEY, b"%d" % (10 * TRIES_MAX + 1), TRIES_MAX
    )


@pytest.mark.parametrize(
    "value",
    [b"0", b"-1", b"01", b" 1", b"1\n", b"1_0", b"+1", b"ten", b"\xd9\xa1", b"1.0", b"9" * 19],
)
async def test_a_value_that_is_no_end_of_a_range_is_named_and_left(value: bytes) -> None:
    store = MemoryStore()
    written = await store.put(KEY, value)
    with pytest.raises(Corrupt) as corrupt:
        await take_range(store, SHARD)
    assert KEY in str(corrupt.value)
    assert repr(value) in str(corrupt.value)
    assert await store.read(KEY) == written


async def test_the_last_numbers_are_given_and_none_behind_them() -> None:
    store = MemoryStore()
    await store.put(KEY, b"%d" % (END_NUMBER_MAX - 10))
    last = await take_range(store, SHARD, count=10)
    assert last.stop == END_NUMBER_MAX
    with pytest.raises(Corrupt):
        await take_range(store, SHARD, count=1)


@pytest.mark.parametrize("count", [0, -5])
async def test_a_count_that_would_turn_the_sequence_back_is_refused(count: int) -> None:
    store = MemoryStore()
    first = await take_range(store, SHARD)
    with pytest.raises(Rejected):
        await take_range(store, SHARD, count=count)
    assert (await take_range(store, SHARD)).start == first.stop
