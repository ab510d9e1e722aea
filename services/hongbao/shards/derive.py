"""Owns the writing of derived keys, in log order, behind the blocks they come from."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hongbao.domain.errors import Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.checkpoint import write_checkpoint
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import Pairs, cut_puts, derived_puts

RETRY_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class _Derived:
    position: int
    pairs: Pairs
    snapshot: Iterator[bytes] | None  # the state after it, when a checkpoint is due
    written: bool  # with the block itself


class Deriver:
    """Writes derived keys and then the applied marker; checkpoints behind them, beside the rest.

    `overlay` holds the derived pairs that a lookup could not find in the store yet.
    """

    def __init__(
        self, store: LogStore, shard: ShardKey, epoch: int, blocks_max: int, retry_s: float
    ) -> None:
        self.overlay: dict[bytes, bytes] = {}
        self.checkpoint_bytes = 0
        """Size of the last checkpoint."""
        self._store = store
        self._shard = shard
        self._epoch = epoch
        self._blocks_max = blocks_max
        self._retry_s = retry_s
        self._pending: deque[_Derived] = deque()
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._checkpoint: tuple[int, Iterator[bytes]] | None = None  # position, state after it
        self._checkpoint_due = asyncio.Event()
        self._checkpoints = 0

    def add(
        self, position: int, pairs: Pairs, snapshot: Iterator[bytes] | None, *, written: bool
    ) -> None:
        """Queue what a durable block derives; `snapshot` is the state after it, if one is due.

        A store with transactions has `written` the pairs with the block.
        """
        self._pending.append(_Derived(position, pairs, snapshot, written))
        self._wake.set()

    @property
    def writes_checkpoint(self) -> bool:
        """Return whether one is under way or waits: until it is written there is no next one."""
        return self._checkpoint is not None or any(
            block.snapshot is not None for block in self._pending
        )

    async def wait_for_room(self) -> None:
        """Wait until less than the limit of blocks is pending."""
        await self._wait_below(self._blocks_max)

    async def finish(
        self, checkpoint_now: Callable[[], tuple[int, Iterator[bytes]] | None]
    ) -> None:
        """Wait until everything is written, then write a last checkpoint."""
        await self._wait_below(1)
        async with self._changed:
            await self._changed.wait_for(lambda: self._checkpoint is None)
        last = checkpoint_now()
        if last is not None:
            await self._write_checkpoint(*last)

    async def run(self) -> None:
        """Write for ever; store errors are retried with the same bytes until they pass."""
        while True:
            while not self._pending:
                self._wake.clear()
                await self._wake.wait()
            await self._write(list(self._pending))

    async def run_checkpoints(self) -> None:
        """Write checkpoints for ever; blocks do not wait for them."""
        while True:
            while self._checkpoint is None:
                self._checkpoint_due.clear()
                await self._checkpoint_due.wait()
            await self._write_checkpoint(*self._checkpoint)
            async with self._changed:
                self._checkpoint = None
                self._changed.notify_all()

    async def _write(self, blocks: list[_Derived]) -> None:
        pairs = [
            pair
            for block in blocks
            if not block.written
            for pair in derived_puts(self._shard, block.position, block.pairs)
        ]
        for part in cut_puts(pairs):
            await self._put(part)
        for block in blocks:
            if block.snapshot is not None:
                self._checkpoint = block.position, block.snapshot
                self._checkpoint_due.set()
        async with self._changed:
            for block in blocks:
                self._pending.popleft()
                for key, _ in block.pairs:
                    self.overlay.pop(key, None)
            self._changed.notify_all()

    async def _write_checkpoint(self, position: int, snapshot: Iterator[bytes]) -> None:
        slot = self._checkpoints % 2  # the head still names the other slot while this is written
        self._checkpoints += 1
        self.checkpoint_bytes = await write_checkpoint(
            self._put, self._shard, position, self._epoch, slot, snapshot
        )

    async def _put(self, pairs: Pairs) -> None:
        wait_s = self._retry_s
        while True:
            try:
                await self._store.put_many(pairs)
                return
            except Transient:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RETRY_S_MAX)

    async def _wait_below(self, blocks: int) -> None:
        if len(self._pending) < blocks:
            return
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._pending) < blocks)
