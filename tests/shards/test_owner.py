"""One owner of one shard: fencing, read-back, bounds, derived keys, replay (F2, F3, F11)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hongbao.domain.errors import Ambiguous, Corrupt, Fenced, Overloaded, Rejected, Transient
from hongbao.shards.block import BlockKind, ShardKey, decode_block
from hongbao.shards.machine import Append, Decision
from hongbao.shards.owner import Owner, OwnerLimits
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import read_blocks

from tests.shards.faulty_store import FaultyStore, JointFaultyStore
from tests.sim.toy import ENTRY, READ, REFUSED, TOTAL, ToyMachine, add, derived_key
from tests.waiting import LIMIT_S, until

SHARD = ShardKey("toy", 1)


async def take_over(store: LogStore, epoch: int = 1, machine: Any = None, **limits: Any) -> Owner:
    return await Owner.take_over(
        store,
        "toy",
        1,
        epoch=epoch,
        nonce=epoch.to_bytes(16, "big"),
        lease_valid=limits.pop("lease_valid", lambda: True),
        machine=machine or ToyMachine(),
        limits=OwnerLimits(**{"retry_s": 0.001, "retry_s_max": 0.002, **limits}),
    )


async def submit_total(owner: Owner, operation: bytes) -> int:
    return int(TOTAL.unpack(await owner.submit(operation))[0])


async def entry_count(store: FaultyStore) -> int:
    blocks = await read_blocks(store, SHARD, 0, 10_000, limit=10_000)
    return sum(len(block.entries) for block in blocks)


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


async def test_a_new_owner_appends_an_epoch_block_first(store: FaultyStore) -> None:
    await take_over(store, epoch=7)
    data = await store.get(SHARD.log(0))
    assert data is not None
    block = decode_block(data, position=0)
    assert (block.kind, block.epoch, block.entries) == (BlockKind.EPOCH, 7, ())


async def test_a_result_is_in_the_log_before_it_is_returned(store: FaultyStore) -> None:
    owner = await take_over(store)
    store.creates = ["held"]
    waiting = asyncio.create_task(owner.submit(add(1, 5)))
    await until(lambda: store.holds, "the append is under way")
    assert not waiting.done()
    store.go.set()
    assert TOTAL.unpack(await waiting) == (5,)
    assert await entry_count(store) == 1


async def test_an_answer_waits_for_what_it_has_seen(store: FaultyStore) -> None:
    """No result leaves before everything that it rests on is durable."""
    owner = await take_over(store)
    store.creates = ["held"]
    waiting = [asyncio.create_task(owner.submit(op)) for op in (add(1, 5), READ, REFUSED)]
    await until(lambda: store.holds, "the append is under way")
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    store.go.set()
    assert TOTAL.unpack(await waiting[1]) == (5,)
    with pytest.raises(Rejected):
        await waiting[2]


async def test_operations_that_wait_share_one_block(store: FaultyStore) -> None:
    owner = await take_over(store)
    store.creates = ["held"]
    waiting = [asyncio.create_task(owner.submit(add(number, 1))) for number in range(100)]
    await until(lambda: store.holds, "the append is under way")
    store.go.set()
    await asyncio.gather(*waiting)
    assert owner.appended_blocks == 2  # the epoch block and one of 100


@pytest.mark.parametrize(
    ("limits", "entries_max"),
    [
        ({"block_operations_max": 10}, 10),
        ({"block_bytes_max": 200, "entry_bytes_max": ENTRY.size}, 10),
    ],
)
async def test_a_block_is_bounded(
    store: FaultyStore, limits: dict[str, int], entries_max: int
) -> None:
    owner = await take_over(store, **limits)
    await asyncio.gather(*(owner.submit(add(number, 1)) for number in range(100)))
    blocks = await read_blocks(store, SHARD, 1, 100, limit=100)
    assert [len(block.entries) for block in blocks] == [entries_max] * (100 // entries_max)


async def test_busy_shards_gather_for_a_bounded_time_and_a_lone_operation_never_waits(
    store: FaultyStore,
) -> None:
    lone = await take_over(store, gather_s=1e6)
    for number in (1, 2):
        await asyncio.wait_for(lone.submit(add(number, 1)), LIMIT_S)
    owner = await take_over(store, epoch=2, gather_s=0.2)
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(owner.submit(add(number, 1)) for number in (3, 4)))
    waiting = [asyncio.create_task(owner.submit(add(number, 1))) for number in (5, 6)]
    await asyncio.sleep(0.2 - loop.time() % 0.2 - 0.05)
    waiting.append(asyncio.create_task(owner.submit(add(7, 1))))
    await asyncio.wait_for(asyncio.gather(*waiting), LIMIT_S)
    assert owner.appended_blocks <= 4  # the epoch block, 3 and 4, the rest in one or two


async def test_a_full_queue_sheds_before_any_work(store: FaultyStore) -> None:
    owner = await take_over(store, queue_operations_max=10)
    store.creates = ["held"]
    first = asyncio.create_task(owner.submit(add(100, 1)))
    await until(lambda: store.holds, "the append is under way")
    waiting = [asyncio.create_task(owner.submit(add(number, 1))) for number in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await owner.submit(add(11, 1))
    store.go.set()
    await asyncio.gather(first, *waiting)
    assert await entry_count(store) == 11


async def test_the_same_operation_again_gets_the_same_result(store: FaultyStore) -> None:
    """F3: whether its derived key is still on the way or written long ago."""
    owner = await take_over(store)
    store.puts = ["held"]
    assert await submit_total(owner, add(1, 5)) == 5
    assert await submit_total(owner, add(2, 5)) == 10
    assert await submit_total(owner, add(1, 5)) == 5
    store.go.set()
    await asyncio.sleep(0.01)
    assert await submit_total(owner, add(1, 5)) == 5
    assert await entry_count(store) == 2


async def test_a_lookup_whose_read_fails_is_transient(store: FaultyStore) -> None:
    owner = await take_over(store)
    await owner.submit(add(1, 5))
    await until(lambda: store.get(SHARD.applied(1)), "the block is derived")
    await asyncio.sleep(0.01)
    store.reads_fail = 1
    with pytest.raises(Transient):
        await owner.submit(add(1, 5))
    assert await submit_total(owner, add(1, 5)) == 5


@pytest.mark.parametrize("faults", [[], ["lost"], ["dropped"], ["refused"]])
async def test_a_store_with_transactions_writes_a_block_and_what_it_derives_at_once(
    faults: list[str],
) -> None:
    """F11: nothing is left to write behind the block, so nothing can be lost there."""
    store = JointFaultyStore()
    owner = await take_over(store)
    store.puts = ["held"]
    store.creates = list(faults)
    assert await submit_total(owner, add(1, 5)) == 5
    assert await store.get(derived_key(1)) is not None
    assert await store.get(SHARD.applied(1)) is not None
    await asyncio.sleep(0.01)
    assert store.puts == ["held"]  # nobody has put anything
    assert await submit_total(owner, add(1, 5)) == 5


@pytest.mark.parametrize("faults", [["lost"], ["dropped"], ["refused"], ["late", "lost"]])
async def test_an_ambiguous_append_is_read_back_by_nonce(
    store: FaultyStore, faults: list[str]
) -> None:
    """Never guessed, never written twice."""
    owner = await take_over(store)
    store.creates = list(faults)
    assert await submit_total(owner, add(1, 5)) == 5
    assert await store.deliver_late() == [False] * faults.count("late")
    assert await submit_total(owner, add(2, 1)) == 6
    assert await entry_count(store) == 2


async def test_an_append_that_stays_unanswered_ends_as_ambiguous(store: FaultyStore) -> None:
    owner = await take_over(store, append_attempts_max=3)
    store.creates = ["dropped"] * 3
    with pytest.raises(Ambiguous):
        await owner.submit(add(1, 5))
    assert isinstance(await owner.wait_stopped(), Ambiguous)
    with pytest.raises(Fenced):
        await owner.submit(add(2, 5))


async def test_an_old_owner_is_fenced_by_its_successor(store: FaultyStore) -> None:
    """F7: its append fails, nothing of it is in the log, and it serves no more."""
    old = await take_over(store, epoch=1)
    await old.submit(add(1, 5))
    new = await take_over(store, epoch=2)
    with pytest.raises(Fenced):
        await old.submit(add(2, 5))
    assert isinstance(await old.wait_stopped(), Fenced)
    with pytest.raises(Fenced):
        await old.submit(READ)
    assert await submit_total(new, READ) == 5


async def test_a_block_in_flight_when_the_successor_comes_is_kept_or_refused(
    store: FaultyStore,
) -> None:
    """F2: it lands before the epoch block and is replayed, or never lands."""
    old = await take_over(store, epoch=1)
    store.creates = ["held"]
    in_flight = asyncio.create_task(old.submit(add(1, 5)))
    await until(lambda: store.holds, "the append is under way")
    new = await take_over(store, epoch=2)
    store.go.set()
    with pytest.raises(Fenced):
        await in_flight
    assert await submit_total(new, READ) == 0
    assert await submit_total(new, add(1, 5)) == 5


async def test_a_successor_replays_what_landed_before_its_epoch_block(
    store: FaultyStore,
) -> None:
    old = await take_over(store, epoch=1)
    store.creates = ["held"]
    taking = asyncio.create_task(take_over(store, epoch=2))
    await until(lambda: store.holds, "the append is under way")
    assert await submit_total(old, add(1, 5)) == 5
    store.go.set()
    new = await taking
    assert await submit_total(new, READ) == 5


async def test_an_epoch_that_was_passed_cannot_take_over(store: FaultyStore) -> None:
    await take_over(store, epoch=5)
    for epoch in (4, 5):
        with pytest.raises(Fenced):
            await take_over(store, epoch=epoch)


async def test_without_its_lease_an_owner_stops(store: FaultyStore) -> None:
    lease = [True]
    owner = await take_over(store, lease_valid=lambda: lease[0])
    await owner.submit(add(1, 5))
    lease[0] = False
    with pytest.raises(Fenced):
        await owner.submit(READ)
    assert isinstance(owner.stopped_by, Fenced)


async def test_a_stop_leaves_what_is_in_flight_ambiguous_and_what_waits_undone(
    store: FaultyStore,
) -> None:
    owner = await take_over(store)
    store.creates = ["held"]
    in_flight = asyncio.create_task(owner.submit(add(1, 5)))
    await until(lambda: store.holds, "the append is under way")
    waiting = asyncio.create_task(owner.submit(add(2, 5)))
    await asyncio.sleep(0)
    await owner.stop(Fenced("told to"))
    with pytest.raises(Ambiguous):
        await in_flight
    with pytest.raises(Fenced):
        await waiting


async def test_derived_keys_and_then_the_applied_marker_follow_a_block(
    store: FaultyStore,
) -> None:
    owner = await take_over(store)
    store.puts = ["partly", "refused"]
    await owner.submit(add(1, 5))
    assert await store.get(SHARD.applied(1)) is None
    await owner.drain()
    assert await store.get(derived_key(1)) is not None
    assert await store.get(SHARD.applied(1)) is not None


async def test_an_owner_waits_when_derived_keys_fall_behind(store: FaultyStore) -> None:
    owner = await take_over(store, derived_blocks_max=3, block_operations_max=1)
    store.puts = ["held"]
    waiting = [asyncio.create_task(owner.submit(add(number, 1))) for number in range(10)]
    await until(lambda: sum(task.done() for task in waiting) == 3, "three blocks are written")
    await asyncio.sleep(0.02)
    assert sum(task.done() for task in waiting) == 3
    store.go.set()
    await asyncio.gather(*waiting)


async def test_a_successor_writes_the_derived_keys_that_are_missing(store: FaultyStore) -> None:
    """F2: killed between block append and derived keys."""
    owner = await take_over(store)
    store.puts = ["held"]
    for number in range(5):
        await owner.submit(add(number, 1))
    await owner.stop(Fenced("killed"))
    new = await take_over(store, epoch=2)
    for number in range(5):
        assert await store.get(derived_key(number)) is not None
        assert await submit_total(new, add(number, 1)) == number + 1
    assert await store.get(SHARD.applied(5)) is not None


async def test_a_drain_finishes_what_waits_and_hands_over(store: FaultyStore) -> None:
    owner = await take_over(store)
    waiting = [asyncio.create_task(owner.submit(add(number, 1))) for number in range(50)]
    await asyncio.sleep(0)
    await owner.drain()
    assert sorted(TOTAL.unpack(result)[0] for result in await asyncio.gather(*waiting)) == [
        *range(1, 51)
    ]
    with pytest.raises(Fenced):
        await owner.submit(READ)
    assert await store.get(SHARD.checkpoint()) is not None


async def test_replay_starts_at_the_checkpoint(store: FaultyStore) -> None:
    class Counting(ToyMachine):
        applied = 0

        def apply(self, entry: bytes, position: int) -> None:
            self.applied += 1
            super().apply(entry, position)

    async def checkpointed() -> bool:
        head = await store.get(SHARD.checkpoint())
        return head is not None and int.from_bytes(head[:8], "big") == 19

    owner = await take_over(store, checkpoint_blocks=10)
    for number in range(24):
        await owner.submit(add(number, 1))
    await until(checkpointed, "blocks 0 to 19 are in a checkpoint")
    await owner.stop(Fenced("killed"))
    machine = Counting()
    new = await take_over(store, epoch=2, machine=machine)
    assert machine.applied == 5  # blocks 20 to 24; 0 to 19 are in the checkpoint
    assert await submit_total(new, READ) == 24


@pytest.mark.parametrize("damage", ["head", "chunk", "gone"])
async def test_a_damaged_checkpoint_costs_only_time(store: FaultyStore, damage: str) -> None:
    owner = await take_over(store)
    for number in range(5):
        await owner.submit(add(number, 1))
    await owner.drain()
    key = SHARD.checkpoint_chunk(1, 0, 0) if damage == "chunk" else SHARD.checkpoint()
    data = await store.get(key)
    assert data is not None
    broken = b"" if damage == "gone" else bytes([data[0] ^ 1]) + data[1:]
    await store.put_many([(key, broken)])
    new = await take_over(store, epoch=2)
    assert await submit_total(new, READ) == 5


async def test_a_hole_in_the_log_stops_a_take_over(store: FaultyStore) -> None:
    await store.inner.create(SHARD.log(1), b"x")
    with pytest.raises(Corrupt):
        await take_over(store)


async def test_a_machine_that_breaks_stops_its_owner(store: FaultyStore) -> None:
    class Broken(ToyMachine):
        def decide(self, operation: bytes, position: int) -> Decision:
            if operation == b"big":
                return Append(bytes(1 << 20), b"")
            return super().decide(operation, position)

    for operation in (b"big", b"no such operation"):
        owner = await take_over(FaultyStore(), machine=Broken())
        with pytest.raises(Ambiguous):
            await owner.submit(operation)
        assert isinstance(owner.stopped_by, Corrupt)


async def test_a_machine_that_breaks_over_a_lookup_leaves_nobody_waiting(
    store: FaultyStore,
) -> None:
    class Broken(ToyMachine):
        def answer(self, operation: bytes, value: bytes | None) -> bytes:
            if operation == add(2, 1):
                raise Corrupt("a value that cannot be")
            return super().answer(operation, value)

    first = await take_over(store)
    await asyncio.gather(*(first.submit(add(number, 1)) for number in range(1, 4)))
    await first.drain()
    owner = await take_over(store, epoch=2, machine=Broken())
    calls = [owner.enqueue(add(number, 1)) for number in range(1, 4)]
    async with asyncio.timeout(LIMIT_S):
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [bytes, Fenced, Fenced]
    assert isinstance(owner.stopped_by, Corrupt)


async def test_an_operation_whose_caller_has_gone_is_not_done(store: FaultyStore) -> None:
    owner = await take_over(store)
    store.creates = ["held"]
    first = asyncio.create_task(owner.submit(add(1, 1)))
    await until(lambda: store.holds, "the append is under way")
    second = asyncio.create_task(owner.submit(add(2, 1)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    store.go.set()
    await first
    assert await submit_total(owner, READ) == 1


def test_limits_that_do_not_fit_the_store_are_refused() -> None:
    with pytest.raises(Rejected):
        OwnerLimits(block_bytes_max=1 << 20)
    with pytest.raises(Rejected):
        OwnerLimits(entry_bytes_max=1 << 19)


async def test_checkpoints_cost_no_more_than_the_log_since(store: FaultyStore) -> None:
    """The next one waits until as much was logged as the last one had."""
    owner = await take_over(store, checkpoint_blocks=2)
    seen = set()
    for number in range(200):
        await owner.submit(add(number, 1))
        await asyncio.sleep(0.001)
        if head := await store.get(SHARD.checkpoint()):
            seen.add(int.from_bytes(head[:8], "big"))
    written = sum(8 + 8 * position for position in seen)  # a toy's snapshot after so many blocks
    assert 3 <= len(seen) < 30
    assert written <= 2 * 200 * ENTRY.size


async def test_blocks_do_not_wait_for_a_checkpoint(store: FaultyStore) -> None:
    owner = await take_over(store, checkpoint_blocks=4, derived_blocks_max=2)
    put_many, held = store.inner.put_many, asyncio.Event()

    async def hold_checkpoints(items: Sequence[tuple[bytes, bytes]]) -> None:
        if items[0][0].startswith(SHARD.checkpoint()):
            await held.wait()
        await put_many(items)

    store.inner.put_many = hold_checkpoints  # type: ignore[method-assign]
    for number in range(20):
        await asyncio.wait_for(owner.submit(add(number, 1)), LIMIT_S)
    assert await store.get(SHARD.checkpoint()) is None
    held.set()
    await owner.drain()
    head = await store.get(SHARD.checkpoint())
    assert head is not None
    assert int.from_bytes(head[:8], "big") == owner.position - 1
