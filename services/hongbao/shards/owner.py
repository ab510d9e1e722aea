"""Owns one shard while this process holds it: group commit, fencing, derived keys.

What a block derives is written behind it, or with it where the store has transactions.
One block is in flight at a time. Operations that arrive meanwhile wait, and are decided together
for the next block, so the machine's state after `_gather` is exactly the state after that block.
No result leaves before everything it could have seen is durable (design §1; R9, F2, F3).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

from hongbao.domain.errors import (
    Ambiguous,
    Corrupt,
    Fenced,
    HongbaoError,
    Overloaded,
    Rejected,
    Transient,
)
from hongbao.shards.block import (
    BLOCK_OVERHEAD_BYTES,
    ENTRY_OVERHEAD_BYTES,
    Block,
    BlockKind,
    ShardKey,
    decode_block,
    encode_block,
)
from hongbao.shards.derive import Deriver
from hongbao.shards.machine import Answer, Append, Lookup, Machine
from hongbao.shards.ports import VALUE_BYTES_MAX, JointLogStore, LogStore
from hongbao.shards.replay import Pairs, Replay, derived_puts

TAKE_OVER_ATTEMPTS_MAX: Final = 1000
"""A deposed owner may still win so many positions before our epoch block does."""


BUSY_S: Final = 0.05
"""A shard is busy for so long after operations have shared a block."""


@dataclass(frozen=True)
class OwnerLimits:
    """Bounds every queue and retry of an owner."""

    queue_operations_max: int = 4096
    """Waiting operations; one more is refused as Overloaded."""
    block_operations_max: int = 1024
    """Operations in one block."""
    block_bytes_max: int = 256 << 10
    """A block is closed before it could pass this; must stay below the store's value limit."""
    entry_bytes_max: int = 16 << 10
    """A machine that appends more is broken."""
    gather_s: float = 0.005
    """Blocks begin this far apart while operations share them; a lone one does not wait."""
    derived_blocks_max: int = 16
    """Durable blocks whose derived keys are not written yet; then the owner waits."""
    checkpoint_blocks: int = 1024
    """Least blocks between checkpoints. There is no next one either before as many bytes were
    logged as the last one had: that bounds the cost, and the replay of a take-over."""
    append_attempts_max: int = 12
    """Tries to write or read back one block: about 10 s with the back-off below, and what the store
    takes to fail (over a minute with one that hangs; the lease is over before)."""
    retry_s: float = 0.01
    """First back-off after a store error; doubles up to `retry_s_max`."""
    retry_s_max: float = 2.0
    drain_s: float = 5.0
    """A hand-over that takes longer becomes a stop."""

    def __post_init__(self) -> None:
        overhead = BLOCK_OVERHEAD_BYTES + ENTRY_OVERHEAD_BYTES * self.block_operations_max
        if self.block_bytes_max + overhead > VALUE_BYTES_MAX:
            raise Rejected(f"blocks of {self.block_bytes_max} bytes do not fit into the store")
        if self.entry_bytes_max > self.block_bytes_max:
            raise Rejected("an entry of the largest size must fit into a block")


Waiting = tuple[bytes, asyncio.Future[bytes]]


@dataclass(slots=True)
class _Round:
    """Is what one pass over the queue decided."""

    entries: list[bytes] = field(default_factory=list)
    derived: list[tuple[bytes, bytes]] = field(default_factory=list)
    results: list[tuple[asyncio.Future[bytes], bytes]] = field(default_factory=list)
    rejections: list[tuple[asyncio.Future[bytes], Rejected]] = field(default_factory=list)
    lookups: list[tuple[bytes, bytes, asyncio.Future[bytes]]] = field(default_factory=list)


class Owner:
    """Is the one writer of a shard's log, until another one takes over."""

    def __init__(
        self,
        store: LogStore,
        shard: ShardKey,
        epoch: int,
        nonce: bytes,
        lease_valid: Callable[[], bool],
        machine: Machine,
        limits: OwnerLimits,
    ) -> None:
        self.shard = shard
        self.epoch = epoch
        self.position = 0
        """Next position to write."""
        self.appended_operations = 0
        self.appended_blocks = 0
        """Both count this owner's own, the epoch block included."""
        self._store = store
        self._joint_store = store if isinstance(store, JointLogStore) else None
        self._nonce = nonce
        self._lease_valid = lease_valid
        self._machine = machine
        self._limits = limits
        self._waiting: deque[Waiting] = deque()
        self._round: list[Waiting] = []
        self._looking: dict[asyncio.Future[bytes], None] = {}  # ordered, so that runs repeat
        self._busy_until_s = 0.0
        self._checkpointed_at = 0  # position behind the last block that a checkpoint covers
        self._logged_bytes = 0  # since then
        self._wake = asyncio.Event()
        self._draining = False
        self._not_written = False
        self._error: HongbaoError | None = None
        self._stopped = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._deriver = Deriver(store, shard, epoch, limits.derived_blocks_max, limits.retry_s)

    @classmethod
    async def take_over(
        cls,
        store: LogStore,
        plane: str,
        shard: int,
        *,
        epoch: int,
        nonce: bytes,
        lease_valid: Callable[[], bool],
        machine: Machine,
        limits: OwnerLimits | None = None,
    ) -> Self:
        """Fence off the last owner, replay its log, and return an owner that serves.

        `epoch` is the lease's; `nonce` is 16 random bytes that no other owner ever uses;
        `machine` is new and belongs to the owner from now on. Raises Fenced when a later epoch
        is in the log already, Transient when the store cannot be reached.
        """
        key = ShardKey(plane, shard)
        owner = cls(store, key, epoch, nonce, lease_valid, machine, limits or OwnerLimits())
        replay = Replay(store, key, machine)
        await replay.restore()
        await replay.run()
        owner._checkpointed_at = replay.start
        owner._deriver.checkpoint_bytes = replay.checkpoint_bytes
        await owner._fence(replay)
        owner._logged_bytes = replay.entry_bytes
        async for pairs in replay.missing_derived(replay.position):
            await store.put_many(pairs)
        owner._start()
        return owner

    async def submit(self, operation: bytes) -> bytes:
        """Return the operation's result, once everything that it rests on is durable.

        Raises Overloaded (queue full, nothing done), Fenced (not the owner any more, surely not
        done), Ambiguous (the outcome is unknown), Rejected (by the machine, nothing done).
        """
        return await self.enqueue(operation)

    def enqueue(self, operation: bytes) -> asyncio.Future[bytes]:
        """Queue an operation; the future ends as `submit` does. Raises Overloaded or Fenced."""
        if self._error is not None or self._draining:
            raise self._refusal()
        if len(self._waiting) + len(self._looking) >= self._limits.queue_operations_max:
            raise Overloaded(f"{self.shard}: {self.waiting_operations} operations wait")
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, done))
        self._wake.set()
        return done

    @property
    def waiting_operations(self) -> int:
        return len(self._waiting) + len(self._looking)

    @property
    def stopped_by(self) -> HongbaoError | None:
        """Return why the owner stopped; None while it serves."""
        return self._error

    async def wait_stopped(self) -> HongbaoError:
        """Wait until the owner has stopped, and return why."""
        await self._stopped.wait()
        assert self._error is not None
        return self._error

    async def drain(self) -> None:
        """Refuse new operations, finish the waiting ones, write all derived keys, stop."""
        self._draining = True
        self._wake.set()
        await self.stop(await self.wait_stopped())

    async def stop(self, error: HongbaoError) -> None:
        """Stop at once: waiting operations fail, nothing further is written."""
        self._fail(error)
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self) -> None:
        self._run(self._commit_forever)
        self._run(self._deriver.run)
        self._run(self._deriver.run_checkpoints)

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.ensure_future(self._guard(work))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stop the whole owner when one of its tasks fails."""
        try:
            await work()
        except HongbaoError as error:
            self._fail(error)
        except Exception as error:  # outermost level of a loop: a bug in the machine lands here
            failure = Corrupt(f"{self.shard}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._fail(failure)

    async def _commit_forever(self) -> None:
        while True:
            if not self._waiting:
                await self._wait_for_work()
            await self._gather_more()
            await self._deriver.wait_for_room()
            if not self._lease_valid():  # keeps answers fresh; appends would be fenced anyway
                raise Fenced(f"{self.shard}: the lease of epoch {self.epoch} ran out")
            decided = self._gather()
            if decided.entries:
                await self._commit(decided)
            self._release(decided)

    async def _wait_for_work(self) -> None:
        if self._draining:
            await self._deriver.finish(self._checkpoint_now)
            raise Fenced(f"{self.shard}: epoch {self.epoch} was handed over")
        self._wake.clear()
        await self._wake.wait()

    async def _gather_more(self) -> None:
        """Wait for company, unless the block is full or there was none lately.

        Blocks begin on one grid of time, so that all shards of a process append together.
        """
        gather_s, now_s = self._limits.gather_s, asyncio.get_running_loop().time()
        full = len(self._waiting) >= self._limits.block_operations_max
        if gather_s and now_s < self._busy_until_s and not full:
            await asyncio.sleep(gather_s - now_s % gather_s)

    def _gather(self) -> _Round:
        """Decide waiting operations, in order, until the queue is empty or the block is full."""
        decided = _Round()
        limits, size = self._limits, 0
        self._round = []
        while self._waiting and len(self._round) < limits.block_operations_max:
            if size + limits.entry_bytes_max > limits.block_bytes_max:
                break
            operation, done = self._waiting.popleft()
            if done.cancelled():
                continue  # its caller is gone, and nothing was done
            self._round.append((operation, done))
            size += self._decide(operation, done, decided)
        if len(self._round) > 1:
            self._busy_until_s = asyncio.get_running_loop().time() + BUSY_S
        return decided

    def _decide(self, operation: bytes, done: asyncio.Future[bytes], decided: _Round) -> int:
        """Decide one operation; return how many bytes it adds to the block."""
        try:
            decision = self._machine.decide(operation, self.position)
        except Rejected as error:
            decided.rejections.append((done, error))
            return 0
        if isinstance(decision, Append):
            entry = decision.entry
            if len(entry) > self._limits.entry_bytes_max:
                raise Corrupt(f"{self.shard}: the machine appended {len(entry)} bytes")
            decided.entries.append(entry)
            derived = self._machine.derive(entry)
            if derived:
                decided.derived.extend(derived)
                self._deriver.overlay.update(derived)
            decided.results.append((done, decision.result))
            return len(entry)
        if isinstance(decision, Answer):
            decided.results.append((done, decision.result))
        else:
            self._decide_lookup(operation, decision, done, decided)
        return 0

    def _decide_lookup(
        self, operation: bytes, lookup: Lookup, done: asyncio.Future[bytes], decided: _Round
    ) -> None:
        value = self._deriver.overlay.get(lookup.key)
        if value is None:
            decided.lookups.append((operation, lookup.key, done))
        else:
            decided.results.append((done, self._machine.answer(operation, value)))

    async def _commit(self, decided: _Round) -> None:
        """Make the round's block durable, then hand its derived keys on."""
        block = Block(BlockKind.OPERATIONS, self.epoch, self._nonce, self.position, decided.entries)
        due = self._checkpoint_due()
        snapshot = self._machine.snapshot() if due else None  # before the next round changes it
        await self._append(block, derived_puts(self.shard, block.position, decided.derived))
        self.appended_operations += len(decided.entries)
        self._logged_bytes += sum(map(len, decided.entries))
        if snapshot is not None:
            self._checkpointed_at, self._logged_bytes = self.position, 0
        written = self._joint_store is not None
        self._deriver.add(block.position, decided.derived, snapshot, written=written)

    def _checkpoint_due(self) -> bool:
        blocks = self.position + 1 - self._checkpointed_at
        return (
            blocks >= self._limits.checkpoint_blocks
            and self._logged_bytes >= self._deriver.checkpoint_bytes
            and not self._deriver.writes_checkpoint
        )

    async def _append(self, block: Block, puts: Pairs) -> None:
        """Create the block at its position, or find out that another writer has it.

        Every retry carries the same bytes to the same position, so it is safe even if an earlier
        try still is under way. Raises Fenced (surely not written) or Ambiguous.
        """
        if not await self._create_or_read_back(block, puts):
            self._not_written = True
            raise Fenced(
                f"{self.shard}: position {block.position} belongs to another writer than "
                f"epoch {self.epoch}"
            )
        self.position = block.position + 1
        self.appended_blocks += 1

    async def _create_or_read_back(self, block: Block, puts: Pairs = ()) -> bool:
        key, data = self.shard.log(block.position), encode_block(block)
        wait_s = self._limits.retry_s
        for _ in range(self._limits.append_attempts_max):
            try:
                if await self._create(key, data, puts):
                    return True
                ours = await self._written_by_us(block.position)
                if ours is not None:
                    return ours
            except Transient:  # Ambiguous too: the next create or read-back tells
                pass
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, self._limits.retry_s_max)
        raise Ambiguous(f"{self.shard}: no answer about position {block.position}")

    async def _create(self, key: bytes, data: bytes, puts: Pairs) -> bool:
        if self._joint_store is not None:
            return await self._joint_store.create_with(key, data, puts)
        return await self._store.create(key, data)

    async def _written_by_us(self, position: int) -> bool | None:
        """Read a position back: ours, another writer's, or (None) nothing there yet."""
        data = await self._store.get(self.shard.log(position))
        if data is None:
            return None
        return decode_block(data, position=position).nonce == self._nonce

    async def _fence(self, replay: Replay) -> None:
        """Append the epoch block behind whatever a last owner still gets in."""
        for _ in range(TAKE_OVER_ATTEMPTS_MAX):
            if replay.epoch >= self.epoch:
                raise Fenced(f"{self.shard}: epoch {replay.epoch} is past our {self.epoch}")
            self.position = replay.position
            block = Block(BlockKind.EPOCH, self.epoch, self._nonce, self.position, ())
            if await self._create_or_read_back(block):
                replay.apply(block)
                self.position = replay.position
                self.appended_blocks += 1
                return
            await replay.run()
        raise Transient(f"{self.shard}: another owner keeps appending")

    def _release(self, decided: _Round) -> None:
        """Give the results out; what they rest on is durable now."""
        self._round = []
        for done, result in decided.results:
            if not done.done():
                done.set_result(result)
        for done, error in decided.rejections:
            if not done.done():
                done.set_exception(error)
        if decided.lookups:
            self._looking.update((done, None) for _, _, done in decided.lookups)
            self._run(partial(self._look_up, decided.lookups))

    async def _look_up(self, lookups: list[tuple[bytes, bytes, asyncio.Future[bytes]]]) -> None:
        reads = [self._store.get(key) for _, key, _ in lookups]
        values = await asyncio.gather(*reads, return_exceptions=True)
        for (operation, _, done), value in zip(lookups, values, strict=True):
            if not done.done():
                if isinstance(value, BaseException):
                    done.set_exception(value)
                else:
                    done.set_result(self._machine.answer(operation, value))
            self._looking.pop(done, None)  # not before: if answering fails, `_fail` answers

    def _checkpoint_now(self) -> tuple[int, Iterator[bytes]] | None:
        """Return the state after the last block, if this owner has written any."""
        if self.appended_blocks < 2:  # the epoch block alone changes nothing
            return None
        return self.position - 1, self._machine.snapshot()

    def _fail(self, error: HongbaoError) -> None:
        """Stop: whatever waits was surely not done, what is in flight may have been."""
        if self._error is not None:
            return
        self._error = error
        waiting = [done for _, done in self._waiting] + list(self._looking)
        in_flight = [done for _, done in self._round]
        self._waiting.clear()
        self._looking.clear()
        self._round = []
        for done in in_flight:
            if not done.done():
                done.set_exception(self._refusal() if self._not_written else Ambiguous(str(error)))
        for done in waiting:
            if not done.done():
                done.set_exception(self._refusal())
        current = asyncio.current_task()
        for task in list(self._tasks):
            if task is not current:
                task.cancel()
        self._stopped.set()

    def _refusal(self) -> HongbaoError:
        """Return a fresh exception for one caller."""
        return Fenced(str(self._error or f"{self.shard}: epoch {self.epoch} is handing over"))
