"""Owns reading a shard's log behind its owner, never past what is applied."""

from typing import Final

from hongbao.domain.errors import Corrupt
from hongbao.shards.block import Block, ShardKey
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import PAGE_BLOCKS, applied_end, read_blocks

READ_AHEAD_BLOCKS: Final = 256


class LogReader:
    """Reads blocks in order; what a block derived is in the store before the block is read.

    The position is the caller's business: keep it in the transaction that consumes the blocks.
    """

    def __init__(self, store: LogStore, plane: str, shard: int) -> None:
        self.applied = 0
        """End of what is known to be applied, at most READ_AHEAD_BLOCKS ahead."""
        self._store = store
        self._shard = ShardKey(plane, shard)
        self._epochs: dict[int, int] = {}  # of the blocks that were read last, by position

    async def look(self, position: int) -> None:
        """See how far the log is applied, from a position on."""
        self.applied = await applied_end(
            self._store, self._shard, position, limit=READ_AHEAD_BLOCKS
        )

    async def read(self, position: int, *, limit: int = PAGE_BLOCKS) -> list[Block]:
        """Return blocks from a position on; none where the last look ended.

        Raises Corrupt when one is missing or broken, or epochs fall.
        """
        end = min(self.applied, position + limit)
        if end <= position:
            return []
        blocks = await read_blocks(self._store, self._shard, position, end, limit=limit)
        if len(blocks) != end - position:
            raise Corrupt(f"log {self._shard}: applied up to {end}, {len(blocks)} blocks found")
        self._epochs = {at: one for at, one in self._epochs.items() if at >= position - 1}
        for block in blocks:
            if block.epoch < self._epochs.get(block.position - 1, 0):
                raise Corrupt(f"log {self._shard}: epochs fall at block {block.position}")
            self._epochs[block.position] = block.epoch
        return blocks
