"""Owns reading a shard's log from a position of one's own, never past what is applied."""

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Final

from hongbao.domain.errors import Corrupt
from hongbao.shards.block import Block, ShardKey
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import applied_end, read_blocks

_POSITION: Final = struct.Struct(">Q")


class LogReader:
    """Reads blocks in order, each once; what a block derived is in the store before the block.

    The reader's position is its own business: keep it in the transaction that consumes the
    blocks, or in a PositionStore.
    """

    def __init__(self, store: LogStore, plane: str, shard: int, position: int = 0) -> None:
        self.position = position
        """Next position to read."""
        self._store = store
        self._shard = ShardKey(plane, shard)
        self._epoch = 0

    async def read(self, *, limit: int = 16) -> list[tuple[int, Block]]:
        """Return the next blocks, at most `limit`; none when the reader has caught up."""
        end = await applied_end(self._store, self._shard, self.position, limit=limit)
        if end == self.position:
            return []
        blocks = await read_blocks(self._store, self._shard, self.position, end, limit=limit)
        if len(blocks) != end - self.position:
            raise Corrupt(f"log {self._shard}: applied up to {end}, {len(blocks)} blocks found")
        for block in blocks:
            if block.epoch < self._epoch:
                raise Corrupt(f"log {self._shard}: epochs fall at block {block.position}")
            self._epoch = block.epoch
        self.position = end
        return [(block.position, block) for block in blocks]

    async def follow(self, *, poll_s: float, limit: int = 16) -> AsyncIterator[tuple[int, Block]]:
        """Yield blocks for ever, looking for new ones every `poll_s`."""
        while True:
            blocks = await self.read(limit=limit)
            for position, block in blocks:
                yield position, block
            if not blocks:
                await asyncio.sleep(poll_s)


class PositionStore:
    """Keeps a named reader's next position in the LogStore. One reader a name at a time."""

    def __init__(self, store: LogStore, reader: str) -> None:
        self._store = store
        self._reader = reader

    async def load(self, plane: str, shard: int) -> int:
        """Return the saved position; 0 when none was saved."""
        data = await self._store.get(ShardKey(plane, shard).reader(self._reader))
        return 0 if data is None else int(_POSITION.unpack(data)[0])

    async def save(self, plane: str, shard: int, position: int) -> None:
        """Save the position behind the last block whose effects are durable."""
        key = ShardKey(plane, shard).reader(self._reader)
        await self._store.put_many([(key, _POSITION.pack(position))])
