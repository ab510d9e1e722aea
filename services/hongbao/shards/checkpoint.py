"""Owns snapshots of a shard's state in the store; refuses to be trusted.

A checkpoint only shortens replay. The digest of a torn one does not fit, and the log is replayed
from the start. A paused owner that writes late writes chunks of its own epoch and a head that
names them: that checkpoint is whole and true of an older position, so the replay is only longer.
"""

import asyncio
import hashlib
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
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
    snapshot: bytearray


async def write_checkpoint(
    put: Put, shard: ShardKey, position: int, epoch: int, slot: int, snapshot: Iterable[bytes]
) -> int:
    """Write the snapshot in chunks, then the head that makes them count; return its bytes.

    Others run between two chunks, even if the store never waits.
    """
    size, chunks, hasher = 0, 0, _hasher(position)
    for chunk in _chunks(snapshot):
        hasher.update(chunk)
        await put([(shard.checkpoint_chunk(epoch, slot, chunks), chunk)])
        await asyncio.sleep(0)
        size, chunks = size + len(chunk), chunks + 1
    await put(
        [(shard.checkpoint(), _HEAD.pack(position, epoch, slot, chunks, size, hasher.digest()))]
    )
    return size


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces; none is longer than CHUNK_BYTES unless a piece is."""
    found: list[bytes] = []
    size = 0
    for piece in pieces:
        if found and size + len(piece) > CHUNK_BYTES:
            yield b"".join(found)
            found, size = [], 0
        found.append(piece)
        size += len(piece)
    if found:
        yield b"".join(found)


async def read_checkpoint(store: LogStore, shard: ShardKey) -> Checkpoint | None:
    """Return the last checkpoint, or None when there is none that can be trusted."""
    head = await store.get(shard.checkpoint())
    if head is None or len(head) != _HEAD.size:
        return None
    position, epoch, slot, chunks, size, digest = _HEAD.unpack(head)
    if chunks > CHUNKS_MAX:
        return None
    snapshot, hasher = bytearray(), _hasher(position)
    for index in range(chunks):
        chunk = await store.get(shard.checkpoint_chunk(epoch, slot, index))
        if chunk is None:
            return None
        hasher.update(chunk)
        snapshot += chunk
        await asyncio.sleep(0)  # leases want renewing
    if len(snapshot) != size or hasher.digest() != digest:
        return None
    return Checkpoint(position, epoch, snapshot)


def _hasher(position: int) -> "hashlib.blake2b":
    return hashlib.blake2b(struct.pack(">Q", position), digest_size=_DIGEST_BYTES)
