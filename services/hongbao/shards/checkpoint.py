"""Owns snapshots of a shard's state in the store; refuses to be trusted.

A checkpoint only shortens replay. The digest of a torn one does not fit, and the log is replayed
from the start. A paused owner that writes late writes chunks of its own epoch and a head that
names them: that checkpoint is whole and true of an older position, so the replay is only longer.
"""

import hashlib
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hongbao.shards.block import ShardKey
from hongbao.shards.ports import LogStore

CHUNK_BYTES: Final = 512 << 10
CHUNKS_MAX: Final = 1 << 16
_HEAD: Final = struct.Struct(">QQBII32s")  # position, epoch, slot, chunks, size, digest
_DIGEST_BYTES: Final = 32

Put = Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Is the state after the block at `position`; all derived keys up to it are written."""

    position: int
    epoch: int
    snapshot: bytes


async def write_checkpoint(put: Put, shard: ShardKey, checkpoint: Checkpoint, slot: int) -> None:
    """Write the chunks, then the head that makes them count; let others run in between."""
    snapshot, hasher = checkpoint.snapshot, _hasher(checkpoint.position)
    starts = range(0, len(snapshot), CHUNK_BYTES)
    for index, at in enumerate(starts):
        chunk = snapshot[at : at + CHUNK_BYTES]
        hasher.update(chunk)
        await put([(shard.checkpoint_chunk(checkpoint.epoch, slot, index), chunk)])
    head = _HEAD.pack(
        checkpoint.position, checkpoint.epoch, slot, len(starts), len(snapshot), hasher.digest()
    )
    await put([(shard.checkpoint(), head)])


async def read_checkpoint(store: LogStore, shard: ShardKey) -> Checkpoint | None:
    """Return the last checkpoint, or None when there is none that can be trusted."""
    head = await store.get(shard.checkpoint())
    if head is None or len(head) != _HEAD.size:
        return None
    position, epoch, slot, chunks, size, digest = _HEAD.unpack(head)
    if chunks > CHUNKS_MAX:
        return None
    found, hasher = [], _hasher(position)
    for index in range(chunks):
        chunk = await store.get(shard.checkpoint_chunk(epoch, slot, index))
        if chunk is None:
            return None
        hasher.update(chunk)  # here, so that leases are renewed between two chunks
        found.append(chunk)
    snapshot = b"".join(found)
    if len(snapshot) != size or hasher.digest() != digest:
        return None
    return Checkpoint(position, epoch, snapshot)


def _hasher(position: int) -> "hashlib.blake2b":
    return hashlib.blake2b(struct.pack(">Q", position), digest_size=_DIGEST_BYTES)
