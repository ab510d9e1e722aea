"""Owns reading a shard's log back into a machine, and completing what its last owner derived."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from hongbao.domain.errors import Corrupt
from hongbao.shards.block import Block, ShardKey, decode_block, position_of
from hongbao.shards.checkpoint import read_checkpoint
from hongbao.shards.machine import Machine
from hongbao.shards.ports import LogStore

PAGE_BLOCKS: Final = 16
PAGE_MARKERS: Final = 512
"""One request of TiKV's client: longer pages would have to be read twice (adapters/tikv.py)."""
PUT_BYTES_MAX: Final = 512 << 10

Pairs = Sequence[tuple[bytes, bytes]]


async def read_blocks(
    store: LogStore, shard: ShardKey, start: int, end: int, *, limit: int = PAGE_BLOCKS
) -> list[Block]:
    """Return at most `limit` blocks of [start, end). Raises Corrupt when one is missing."""
    pairs = await store.scan(shard.log(start), shard.log(end), limit)
    for index, (key, _) in enumerate(pairs):
        if position_of(key) != start + index:
            raise Corrupt(f"log {shard}: block {start + index} is missing")
    return [decode_block(data, position=position_of(key)) for key, data in pairs]


async def applied_end(store: LogStore, shard: ShardKey, start: int, *, limit: int) -> int:
    """Return the end of the run of applied blocks from `start`, at most `limit` long."""
    pairs = await store.scan(shard.applied(start), shard.applied(start + limit), limit)
    end = start
    for key, _ in pairs:
        if position_of(key) != end:
            break
        end += 1
    return end


class Replay:
    """Is the state of a take-over: a machine and how far it has read the log."""

    def __init__(self, store: LogStore, shard: ShardKey, machine: Machine) -> None:
        self._store = store
        self._shard = shard
        self._machine = machine
        self.start = 0
        """First position that the checkpoint did not cover."""
        self.position = 0
        """Next position to read."""
        self.epoch = 0
        """Highest epoch seen."""
        self.checkpoint_bytes = 0
        """Size of the checkpoint."""
        self.entry_bytes = 0
        """Of all entries that were read since."""

    async def restore(self) -> None:
        """Start from the last checkpoint that can be trusted."""
        checkpoint = await read_checkpoint(self._store, self._shard)
        if checkpoint is not None:
            for _ in self._machine.restore(checkpoint.snapshot):
                await asyncio.sleep(0)  # leases want renewing
            self.checkpoint_bytes = len(checkpoint.snapshot)
            self.start = self.position = checkpoint.position + 1
            self.epoch = checkpoint.epoch

    async def run(self) -> None:
        """Apply every block from here to the end of the log."""
        while True:
            blocks = await read_blocks(
                self._store, self._shard, self.position, self.position + PAGE_BLOCKS
            )
            for block in blocks:
                self.apply(block)
            if len(blocks) < PAGE_BLOCKS:
                return
            await asyncio.sleep(0)  # a local store never yields, and leases want renewing

    def apply(self, block: Block) -> None:
        """Apply the block at the next position. Raises Corrupt when epochs fall."""
        if block.epoch < self.epoch:
            raise Corrupt(
                f"log {self._shard}: block {block.position} of epoch {block.epoch} "
                f"lies behind epoch {self.epoch}"
            )
        for entry in block.entries:
            self._machine.apply(entry, block.position)
            self.entry_bytes += len(entry)
        self.epoch = block.epoch
        self.position = block.position + 1

    async def missing_derived(self, end: int) -> AsyncIterator[Pairs]:
        """Yield, in order, the puts that the blocks before `end` still lack."""
        first = self.start
        while first < end:
            run_end = await applied_end(self._store, self._shard, first, limit=PAGE_MARKERS)
            if run_end == first:
                break
            first = run_end
        while first < end:
            blocks = await read_blocks(self._store, self._shard, first, end)
            if not blocks:
                raise Corrupt(f"log {self._shard}: block {first} is missing")
            for block in blocks:
                pairs = [pair for entry in block.entries for pair in self._machine.derive(entry)]
                for part in cut_puts(derived_puts(self._shard, block.position, pairs)):
                    yield part
                first = block.position + 1


def derived_puts(shard: ShardKey, position: int, pairs: Pairs) -> Pairs:
    """Return all that a block derives; the last says that the others are there."""
    return [*pairs, (shard.applied(position), b"\x01")]


def cut_puts(pairs: Pairs, *, bytes_max: int = PUT_BYTES_MAX) -> list[Pairs]:
    """Cut pairs into puts of bounded size, keeping their order."""
    parts, size, first = [], 0, 0
    for index, (key, value) in enumerate(pairs):
        size += len(key) + len(value)
        if size > bytes_max and index > first:
            parts.append(pairs[first:index])
            first, size = index, len(key) + len(value)
    return [*parts, pairs[first:]] if first < len(pairs) else parts
