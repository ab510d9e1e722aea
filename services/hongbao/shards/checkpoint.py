"""Owns snapshots of a shard's state in the store; refuses to be trusted.

A checkpoint only shortens replay. Whatever is wrong with it (torn by a crash, overwritten by a
paused owner's late write), its digest does not fit and the log is replayed from the start.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from hongbao.shards.block import ShardKey
from hongbao.shards.ports import LogStore

CHUNK_BYTES: Final = 512 << 10
CHUNKS_MAX: Final = 1 << 16
_HEAD: Final = struct.Struct(">QQBII32s")  # position, epoch, slot, chunks, size, digest
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Is the state after the block at `position`; all derived keys up to it are written."""

    position: int
    epoch: int
    snapshot: bytes


def checkpoint_items(
    shard: ShardKey, checkpoint: Checkpoint, slot: int
) -> list[tuple[bytes, bytes]]:
    """Return what to put, in order: the chunks, then the head that makes them count."""
    snapshot = checkpoint.snapshot
    chunks = [snapshot[at : at + CHUNK_BYTES] for at in range(0, len(snapshot), CHUNK_BYTES)]
    head = _HEAD.pack(
        checkpoint.position,
        checkpoint.epoch,
        slot,
        len(chunks),
        len(snapshot),
        _digest(checkpoint.position, snapshot),
    )
    items = [
        (shard.checkpoint_chunk(checkpoint.epoch, slot, index), chunk)
        for index, chunk in enumerate(chunks)
    ]
    return [*items, (shard.checkpoint(), head)]


async def read_checkpoint(store: LogStore, shard: ShardKey) -> Checkpoint | None:
    """Return the last checkpoint, or None when there is none that can be trusted."""
    head = await store.get(shard.checkpoint())
    if head is None or len(head) != _HEAD.size:
        return None
    position, epoch, slot, chunks, size, digest = _HEAD.unpack(head)
    if chunks > CHUNKS_MAX:
        return None
    found = [await store.get(shard.checkpoint_chunk(epoch, slot, index)) for index in range(chunks)]
    snapshot = b"".join(chunk for chunk in found if chunk is not None)
    if len(snapshot) != size or _digest(position, snapshot) != digest:
        return None
    return Checkpoint(position, epoch, snapshot)


def _digest(position: int, snapshot: bytes) -> bytes:
    hasher = hashlib.blake2b(struct.pack(">Q", position), digest_size=_DIGEST_BYTES)
    hasher.update(snapshot)
    return hasher.digest()
