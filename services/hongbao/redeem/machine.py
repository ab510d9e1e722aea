"""Owns who opened which packet of one claims shard; refuses to know tokens, keys of users or I/O.

A bit per packet says that it was opened; who opened it stands in the claim itself, which is the
log entry and the value of `claim/<serial>`. So the state is dense, an open of a packet that was
never opened needs no read, and a repeat costs one (seed 000 §10, R43, R51 b, c, e).
"""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from hongbao.domain.claim import (
    CLAIM_BYTES,
    CLAIM_CORE,
    CLAIM_CORE_AT,
    CLAIM_VERSION,
    claim_key,
)
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.shards.machine import Answer, Append, Decision, Lookup

FILES_MAX: Final = 1 << 16
FILE_PACKETS_MAX: Final = 1 << 28

_GROWTH_BYTES: Final = 4096
_RESULT: Final = struct.Struct(">BI")
_RESULT_BYTES: Final = _RESULT.size
_pack_result = _RESULT.pack
_core_of = CLAIM_CORE.unpack_from
_SNAPSHOT: Final = struct.Struct(">4sBI")
_SNAPSHOT_FILE: Final = struct.Struct(">II")
_MAGIC: Final = b"HBCM"
_VERSION: Final = 1


class ClaimOutcome(IntEnum):
    """Says what became of an operation."""

    OPENED = 1
    ALREADY_OPENED = 2  # by another user
    REPEATED = 3  # by the same user before: the same answer as then
    REFUSED = 4  # the key was denied while the operation was on its way
    CONTRADICTION = 5  # the packet's bit is set, but its claim is missing or another packet's


class ClaimResult(NamedTuple):
    """Is an operation's result; the amount is 0 unless the packet is the user's."""

    outcome: int  # a ClaimOutcome
    amount_fen: int


_ALREADY_OPENED: Final = _pack_result(ClaimOutcome.ALREADY_OPENED, 0)
_REFUSED: Final = _pack_result(ClaimOutcome.REFUSED, 0)
_CONTRADICTION: Final = _pack_result(ClaimOutcome.CONTRADICTION, 0)


def parse_result(result: bytes) -> ClaimResult:
    """Decode what an owner answered. Raises Corrupt when it is no result."""
    if len(result) != _RESULT_BYTES:
        raise Corrupt(f"claim result of {len(result)} bytes, want {_RESULT_BYTES}")
    return ClaimResult(*_RESULT.unpack(result))


class ClaimsMachine:
    """Is the state of one claims shard (`shards.machine.Machine`); operations are packed claims.

    `key_allowed` is this process's deny list (R46): it may refuse an operation, never change
    what an entry means, so replay does not ask it.
    """

    def __init__(
        self,
        *,
        key_allowed: Callable[[int], bool] | None = None,
    ) -> None:
        self._key_allowed = key_allowed
        self._files: dict[int, bytearray] = {}

    def decide(self, operation: bytes) -> Decision:
        """Open the packet for the user, or tell whose it is."""
        if len(operation) != CLAIM_BYTES or operation[1] != CLAIM_VERSION or operation[0]:
            raise Rejected(f"operation of {len(operation)} bytes is no claim", field="operation")
        file, bit, amount_fen, serial, _ = _core_of(operation, CLAIM_CORE_AT)
        if self._key_allowed is not None:
            key_id = operation[4] << 8 | operation[5]
            if not self._key_allowed(key_id):
                return Answer(_REFUSED)
        if self._open(file, bit):
            return Append(operation, _pack_result(ClaimOutcome.OPENED, amount_fen))
        return Lookup(claim_key(serial))

    def answer(self, operation: bytes, value: bytes | None) -> bytes:
        """Compare the operation with the claim that opened the packet.

        A contradiction is a result and no exception: one broken packet must not stop a shard.
        """
        if value is None or len(value) != CLAIM_BYTES:
            return _CONTRADICTION
        file, bit, _, serial, user = _core_of(operation, CLAIM_CORE_AT)
        their_file, their_bit, amount_fen, their_serial, owner = _core_of(value, CLAIM_CORE_AT)
        if (file, bit, serial) != (their_file, their_bit, their_serial):
            return _CONTRADICTION
        if user != owner:
            return _ALREADY_OPENED
        return _pack_result(ClaimOutcome.REPEATED, amount_fen)

    def apply(self, entry: bytes) -> None:
        """Open the packet of a logged claim. Raises Corrupt when it was open already."""
        if len(entry) != CLAIM_BYTES:
            raise Corrupt(f"claim of {len(entry)} bytes, want {CLAIM_BYTES}")
        file, bit, _, serial, _ = _core_of(entry, CLAIM_CORE_AT)
        if not self._open(file, bit):
            raise Corrupt(f"packet {serial} (file {file}, bit {bit}) has two claims in one log")

    def derive(self, entry: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Return the claim under its packet's serial."""
        return ((claim_key(_core_of(entry, CLAIM_CORE_AT)[3]), entry),)

    def snapshot(self) -> bytes:
        """Return the bits, the same for the same opened packets."""
        parts = [_SNAPSHOT.pack(_MAGIC, _VERSION, len(self._files))]
        for file, bits in sorted(self._files.items()):
            dense = bytes(bits).rstrip(b"\0")
            parts += (_SNAPSHOT_FILE.pack(file, len(dense)), dense)
        return b"".join(parts)

    def restore(self, snapshot: bytes) -> None:
        """Replace the state by a snapshot. Raises Corrupt when it is none."""
        if len(snapshot) < _SNAPSHOT.size:
            raise Corrupt(f"claims snapshot of {len(snapshot)} bytes")
        magic, version, files = _SNAPSHOT.unpack_from(snapshot)
        if magic != _MAGIC or version != _VERSION:
            raise Corrupt(f"claims snapshot: magic {magic!r}, version {version}")
        restored, at = {}, _SNAPSHOT.size
        for _ in range(files):
            if at + _SNAPSHOT_FILE.size > len(snapshot):
                raise Corrupt(f"claims snapshot ends inside its {files} files")
            file, length = _SNAPSHOT_FILE.unpack_from(snapshot, at)
            at += _SNAPSHOT_FILE.size
            restored[file] = bytearray(snapshot[at : at + length])
            at += length
        if at != len(snapshot):
            raise Corrupt(f"claims snapshot of {len(snapshot)} bytes says it has {at}")
        self._files = restored

    def opened_count(self) -> int:
        """Return how many packets of the shard are open."""
        return sum(int.from_bytes(bits, "big").bit_count() for bits in self._files.values())

    def _open(self, file: int, bit: int) -> bool:
        """Set the packet's bit; False when it was set."""
        at, mask = bit >> 3, 1 << (bit & 7)
        bits = self._files.get(file)
        if bits is None or at >= len(bits):
            bits = self._grown(file, bit)
        if bits[at] & mask:
            return False
        bits[at] |= mask
        return True

    def _grown(self, file: int, bit: int) -> bytearray:
        if bit >= FILE_PACKETS_MAX or (file not in self._files and len(self._files) >= FILES_MAX):
            raise Rejected(f"packet {bit} of file {file} passes the limits of a shard")
        bits = self._files.setdefault(file, bytearray())
        bits.extend(bytes((bit >> 3) + _GROWTH_BYTES - len(bits)))
        return bits
