"""Owns the bytes of a log block and the names of all keys of a shard; refuses any I/O.

Block, big-endian: magic 4s | version u8 | kind u8 | epoch u64 | writer's nonce 16s |
position u64 | count u32 | count × length u32 | entries | BLAKE2b-128 over all before it.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hongbao.domain.errors import Corrupt

NONCE_BYTES: Final = 16
POSITION_MAX: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct(">4sBBQ16sQI")
_MAGIC: Final = b"HBLB"
_VERSION: Final = 1
_CHECKSUM_BYTES: Final = 16
ENTRY_OVERHEAD_BYTES: Final = 4
BLOCK_OVERHEAD_BYTES: Final = _HEADER.size + _CHECKSUM_BYTES


class BlockKind(IntEnum):
    """Says what a block is: the first of an epoch, or operations."""

    EPOCH = 1
    OPERATIONS = 2


@dataclass(frozen=True, slots=True)
class Block:
    """Is one write to a fenced log."""

    kind: BlockKind
    epoch: int
    nonce: bytes
    position: int
    entries: Sequence[bytes]


def encode_block(block: Block) -> bytes:
    """Return the block's bytes."""
    entries = block.entries
    count = len(entries)
    head = _HEADER.pack(
        _MAGIC, _VERSION, block.kind, block.epoch, block.nonce, block.position, count
    )
    body = b"".join([head, struct.pack(f">{count}I", *map(len, entries)), *entries])
    return body + _checksum(body)


def decode_block(data: bytes, *, position: int) -> Block:
    """Return the block that was read at `position`. Raises Corrupt when any check fails."""
    if len(data) < BLOCK_OVERHEAD_BYTES:
        raise Corrupt(f"block {position}: {len(data)} bytes are too few")
    magic, version, kind, epoch, nonce, written_at, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise Corrupt(f"block {position}: magic {magic!r}, version {version}")
    if _checksum(data[:-_CHECKSUM_BYTES]) != data[-_CHECKSUM_BYTES:]:
        raise Corrupt(f"block {position}: the checksum is wrong")
    if written_at != position:
        raise Corrupt(f"block {position}: says it is block {written_at}")
    body = len(data) - BLOCK_OVERHEAD_BYTES
    if kind not in (BlockKind.EPOCH, BlockKind.OPERATIONS) or count * 4 > body:
        raise Corrupt(f"block {position}: kind {kind}, {count} entries in {body} bytes")
    lengths = struct.unpack_from(f">{count}I", data, _HEADER.size)
    if sum(lengths) + count * 4 != body:
        raise Corrupt(f"block {position}: entries of {sum(lengths)} bytes do not fill the block")
    entries, at = [], _HEADER.size + count * 4
    for length in lengths:
        entries.append(data[at : at + length])
        at += length
    return Block(BlockKind(kind), epoch, nonce, position, tuple(entries))


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


@dataclass(frozen=True, slots=True)
class ShardKey:
    """Names one shard and builds the keys of everything stored for it.

    Every key has one writer or always the same bytes, so that a paused owner's late write can
    never take anything back: `applied` is one marker per block instead of a counter.
    """

    plane: str
    shard: int

    def log(self, position: int) -> bytes:
        """Return the key of the block at a position."""
        return b"log/%s/%010d/%016x" % (self.plane.encode(), self.shard, position)

    def applied(self, position: int) -> bytes:
        """Return the key whose presence says that a block's derived keys are all written."""
        return b"applied/%s/%010d/%016x" % (self.plane.encode(), self.shard, position)

    def checkpoint(self) -> bytes:
        """Return the key of the head that names the last checkpoint."""
        return b"checkpoint/%s/%010d" % (self.plane.encode(), self.shard)

    def checkpoint_chunk(self, epoch: int, slot: int, chunk: int) -> bytes:
        """Return the key of a chunk of a checkpoint; an epoch reuses its two slots in turn."""
        return b"%s/%016x/%d/%08x" % (self.checkpoint(), epoch, slot, chunk)

    def __str__(self) -> str:
        return f"{self.plane}/{self.shard}"


def position_of(key: bytes) -> int:
    """Return the position in a key made by `ShardKey.log` or `ShardKey.applied`."""
    return int(key[-16:], 16)
