"""Owns the writing of derived keys, in log order, behind the blocks they come from."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hongbao.domain.errors import Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.checkpoint import Checkpoint, checkpoint_items
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import Pairs, cut_puts

RETRY_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class _Derived:
    position: int
    pairs: Pairs
    snapshot: bytes | None


class Deriver:
    """Writes derived keys, then the applied marker, then a checkpoint that is due.

    `overlay` holds the derived pairs that a lookup could not find in the store yet.
    """

    def __init__(
        self, store: LogStore, shard: ShardKey, epoch: int, blocks_max: int, retry_s: float
    ) -> None:
        self.overlay: dict[bytes, bytes] = {}
        self._store = store
        self._shard = shard
        self._epoch = epoch
        self._blocks_max = blocks_max
        self._retry_s = retry_s
        self._pending: deque[_Derived] = deque()
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._checkpoints = 0

    def add(self, position: int, pairs: Pairs, snapshot: bytes | None) -> None:
        """Queue what a durable block derives; `snapshot` is the state after it, if one is due."""
        self._pending.append(_Derived(position, pairs, snapshot))
        self._wake.set()

    async def wait_for_room(self) -> None:
        """Wait until less than the limit of blocks is pending."""
        await self._wait_below(self._blocks_max)

    async def finish(self, checkpoint_now: Callable[[], tuple[int, bytes] | None]) -> None:
        """Wait until everything is written, then write a last checkpoint."""
        await self._wait_below(1)
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

    async def _write(self, blocks: list[_Derived]) -> None:
        pairs = [
            pair
            for block in blocks
            for pair in (*block.pairs, (self._shard.applied(block.position), b"\x01"))
        ]
        for part in cut_puts(pairs):
            await self._put(part)
        for block in blocks:
            if block.snapshot is not None:
                await self._write_checkpoint(block.position, block.snapshot)
        async with self._changed:
            for block in blocks:
                self._pending.popleft()
                for key, _ in block.pairs:
                    self.overlay.pop(key, None)
            self._changed.notify_all()

    async def _write_checkpoint(self, position: int, snapshot: bytes) -> None:
        checkpoint = Checkpoint(position, self._epoch, snapshot)
        slot = self._checkpoints % 2  # the head still names the other slot while this is written
        self._checkpoints += 1
        for part in cut_puts(checkpoint_items(self._shard, checkpoint, slot)):
            await self._put(part)

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
