"""Owns who opened which packet of one claims shard; refuses to know tokens, keys of users or I/O.

For every packet the state holds one number: the block of the log that opened it, or none. Who
opened it stands in the claim, which is that block's entry and lies nowhere else. So an open costs
its log entry alone, an open of a packet that was never opened needs no read, and a repeat costs
one (seed 000 §10, R43, R51 b, c, e).
"""

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from hongbao.domain.claim import (
    CLAIM_BYTES,
    CLAIM_CORE,
    CLAIM_CORE_AT,
    CLAIM_VERSION,
    CLOSING,
    closed_key,
    logged_claims,
)
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.shards.block import ShardKey, decode_block
from hongbao.shards.machine import Answer, Append, Decision, Lookup

PAGES_MAX: Final = 1 << 17
"""Half a billion packets in one shard: 2 GiB."""
STEP_PAGES: Final = 64
"""Are restored at a time: a megabyte."""

_PAGE_BITS: Final = 12
_PAGE_PACKETS: Final = 1 << _PAGE_BITS
_FILE_SHIFT: Final = 32 - _PAGE_BITS
"""A page's number is file ‖ the upper bits of the packet's bit, both of which are u32."""
_NO_PAGE: Final = array("I", bytes(4 * _PAGE_PACKETS))
_RESULT: Final = struct.Struct(">BI")
_RESULT_BYTES: Final = _RESULT.size
_pack_result = _RESULT.pack
_core_of = CLAIM_CORE.unpack_from
_SNAPSHOT: Final = struct.Struct(">4sB?I")  # magic, version, closed, pages
_SNAPSHOT_PAGE: Final = struct.Struct(">QI")
_MAGIC: Final = b"HBCM"
_VERSION: Final = 3

assert _NO_PAGE.itemsize == 4


class ClaimOutcome(IntEnum):
    """Says what became of an operation."""

    OPENED = 1
    ALREADY_OPENED = 2  # by another user
    REPEATED = 3  # by the same user before: the same answer as then
    REFUSED = 4  # the key was denied while the operation was on its way
    CONTRADICTION = 5  # the packet is open, but its claim is missing or another packet's
    CLOSED = 6  # the campaign is over: nothing is opened behind this


class ClaimResult(NamedTuple):
    """Is an operation's result; the amount is 0 unless the packet is the user's."""

    outcome: int  # a ClaimOutcome
    amount_fen: int


_ALREADY_OPENED: Final = _pack_result(ClaimOutcome.ALREADY_OPENED, 0)
_REFUSED: Final = _pack_result(ClaimOutcome.REFUSED, 0)
_CLOSED: Final = _pack_result(ClaimOutcome.CLOSED, 0)
_CONTRADICTION: Final = _pack_result(ClaimOutcome.CONTRADICTION, 0)


def parse_result(result: bytes) -> ClaimResult:
    """Decode what an owner answered. Raises Corrupt when it is no result."""
    if len(result) != _RESULT_BYTES:
        raise Corrupt(f"claim result of {len(result)} bytes, want {_RESULT_BYTES}")
    return ClaimResult(*_RESULT.unpack(result))


class ClaimsMachine:
    """Is the state of one claims shard (`shards.machine.Machine`); operations are packed claims,
    and CLOSING.

    Packets lie in pages of 4,096 of one file, which come into being with their first claim: 4
    bytes a packet, and files are opened from front to back. `key_allowed` is this process's deny
    list (R46): it may refuse an operation, never change what an entry means, so replay does not
    ask it.
    """

    def __init__(
        self, shard: ShardKey, *, key_allowed: Callable[[int], bool] | None = None
    ) -> None:
        self._shard = shard
        self._key_allowed = key_allowed
        self._pages: dict[int, array[int]] = {}
        """Per packet 1 + the position of the block with its claim; 0: nobody opened it."""
        self._frozen: dict[int, array[int]] = {}
        """Pages as the last snapshot has them; an open copies its page to the others first."""
        self._closed = False

    def decide(self, operation: bytes, position: int) -> Decision:
        """Open the packet for the user, or look up whose it is."""
        if len(operation) != CLAIM_BYTES or operation[1] != CLAIM_VERSION or operation[0]:
            if operation == CLOSING:
                return self._close()
            raise Rejected(f"operation of {len(operation)} bytes is no claim", field="operation")
        if self._closed:
            return Answer(_CLOSED)
        file, bit, amount_fen, _, _ = _core_of(operation, CLAIM_CORE_AT)
        if self._key_allowed is not None:
            key_id = operation[4] << 8 | operation[5]
            if not self._key_allowed(key_id):
                return Answer(_REFUSED)
        if self._open(file, bit, position):
            return Append(operation, _pack_result(ClaimOutcome.OPENED, amount_fen))
        return Lookup(self._shard.log(self._opened_at(file, bit)))

    def answer(self, operation: bytes, value: bytes | None) -> bytes:
        """Compare the operation with the claim that opened the packet, in its block.

        A contradiction is a result and no exception: one broken packet must not stop a shard.
        """
        file, bit, _, serial, user = _core_of(operation, CLAIM_CORE_AT)
        claim = None if value is None else self._find(value, file, bit, serial)
        if claim is None:
            return _CONTRADICTION
        _, _, amount_fen, _, owner = _core_of(claim, CLAIM_CORE_AT)
        if user != owner:
            return _ALREADY_OPENED
        return _pack_result(ClaimOutcome.REPEATED, amount_fen)

    def apply(self, entry: bytes, position: int) -> None:
        """Open the packet of a logged claim. Raises Corrupt when it was open, or all closed."""
        if self._closed:
            raise Corrupt(f"log {self._shard}: an entry lies behind its closing")
        if entry == CLOSING:
            self._closed = True
            return
        if len(entry) != CLAIM_BYTES:
            raise Corrupt(f"claim of {len(entry)} bytes, want {CLAIM_BYTES}")
        file, bit, _, serial, _ = _core_of(entry, CLAIM_CORE_AT)
        if not self._open(file, bit, position):
            raise Corrupt(f"packet {serial} (file {file}, bit {bit}) has two claims in one log")

    def derive(self, entry: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Return nothing for a claim: it is found by its position in the log."""
        return ((closed_key(self._shard.shard), b"\x01"),) if entry == CLOSING else ()

    def snapshot(self) -> Iterator[bytes]:
        """Freeze where every claim lies, and give it by pages, the same bytes for the same log."""
        self._frozen |= self._pages
        self._pages = {}
        return _encoded(sorted(self._frozen.items()), closed=self._closed)

    def restore(self, snapshot: bytes | bytearray) -> Iterator[None]:
        """Replace the state by a snapshot. Raises Corrupt when it is none."""
        if len(snapshot) < _SNAPSHOT.size:
            raise Corrupt(f"claims snapshot of {len(snapshot)} bytes")
        magic, version, closed, pages = _SNAPSHOT.unpack_from(snapshot)
        if magic != _MAGIC or version != _VERSION:
            raise Corrupt(f"claims snapshot: magic {magic!r}, version {version}")
        restored, at = {}, _SNAPSHOT.size
        for index in range(pages):
            if index % STEP_PAGES == 0:
                yield
            if at + _SNAPSHOT_PAGE.size > len(snapshot):
                raise Corrupt(f"claims snapshot ends inside its {pages} pages")
            number, opened = _SNAPSHOT_PAGE.unpack_from(snapshot, at)
            at += _SNAPSHOT_PAGE.size
            end = at + 4 * opened
            if opened > _PAGE_PACKETS or end > len(snapshot):
                raise Corrupt(f"claims snapshot: {opened} packets in page {number}")
            page = restored[number] = _NO_PAGE[:]
            places = np.frombuffer(snapshot, ">u4", opened, at)
            np.frombuffer(page, np.uint32)[:opened] = places
            at = end
        if at != len(snapshot):
            raise Corrupt(f"claims snapshot of {len(snapshot)} bytes says it has {at}")
        self._pages, self._frozen, self._closed = restored, {}, closed

    def _close(self) -> Decision:
        if self._closed:
            return Answer(_CLOSED)
        self._closed = True
        return Append(CLOSING, _CLOSED)

    def _open(self, file: int, bit: int, position: int) -> bool:
        """Note where the packet's claim lies; False when an earlier one opened it."""
        at = bit & _PAGE_PACKETS - 1
        page = self._pages.get(file << _FILE_SHIFT | bit >> _PAGE_BITS)
        if page is None:
            frozen = self._frozen.get(file << _FILE_SHIFT | bit >> _PAGE_BITS)
            if frozen is not None and frozen[at]:
                return False
            page = self._add_page(file, bit)
        if page[at]:
            return False
        page[at] = position + 1
        return True

    def _opened_at(self, file: int, bit: int) -> int:
        number = file << _FILE_SHIFT | bit >> _PAGE_BITS
        page = self._pages.get(number) or self._frozen[number]
        return page[bit & _PAGE_PACKETS - 1] - 1

    def _add_page(self, file: int, bit: int) -> "array[int]":
        """Let the packet's page be changed: a new one, or a copy of what a snapshot holds."""
        number = file << _FILE_SHIFT | bit >> _PAGE_BITS
        frozen = self._frozen.pop(number, None)
        if frozen is None and len(self._pages) + len(self._frozen) >= PAGES_MAX:
            raise Rejected(f"packet {bit} of file {file} passes the limits of a shard")
        page = self._pages[number] = (_NO_PAGE if frozen is None else frozen)[:]
        return page

    def _find(self, block: bytes, file: int, bit: int, serial: int) -> bytes | None:
        """Return the packet's claim in the block that opened it."""
        try:
            entries = decode_block(block, position=self._opened_at(file, bit)).entries
        except Corrupt:
            return None
        for entry in logged_claims(entries):
            its_file, its_bit, _, its_serial, _ = _core_of(entry, CLAIM_CORE_AT)
            if (its_file, its_bit, its_serial) == (file, bit, serial):
                return entry
        return None


def _encoded(pages: Sequence[tuple[int, "array[int]"]], *, closed: bool) -> Iterator[bytes]:
    yield _SNAPSHOT.pack(_MAGIC, _VERSION, closed, len(pages))
    for number, page in pages:
        places = np.frombuffer(page, np.uint32).astype(">u4").tobytes()
        opened = (len(places.rstrip(b"\0")) + 3) // 4
        yield _SNAPSHOT_PAGE.pack(number, opened) + places[: 4 * opened]
