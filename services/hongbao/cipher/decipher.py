"""Owns the opening of records: one at a time when a packet is opened, in bulk when files are
verified. Refuses to make one: encipher.py is never imported here (R44).

A record is good only if its MAC, its 52 fixed bits and its header agree. Every failure is the same
None, and both ciphers have run by then, so neither answer nor time tells which check failed.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from hongbao.cipher.derive import KEY_BYTES, cmac_subkey, ticket_keys
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.ticket import (
    RECORD,
    RECORD_BYTES,
    RECORD_HEADER,
    TICKET_VERSION,
    Packet,
)

# A key id goes with one slot and one sponsor, so honest headers number at most 4,095.
CACHED_HEADERS_MAX: Final = 8192
TILE_RECORDS: Final = 1 << 13

_HEADER_BYTES: Final = RECORD_HEADER.size
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class OpenedRecords:
    """Is what a bulk opening found, in the order of the records; check `good` before the rest."""

    good: NDArray[np.bool_]
    key_id: NDArray[np.uint16]
    slot: NDArray[np.uint16]
    sponsor: NDArray[np.uint16]
    batch: NDArray[np.uint16]
    serial: Words
    amount_fen: NDArray[np.uint32]


class Decipherer:
    """Opens the records of one campaign with the masters it was given, by key id.

    Not for use by several threads at once. Keeps the derived ciphers of recent headers.
    """

    def __init__(
        self, ticket_masters: Mapping[int, bytes] | Mapping[KeyId, bytes], campaign: CampaignId
    ) -> None:
        self._masters = {int(key_id): master for key_id, master in ticket_masters.items()}
        self._campaign = campaign
        self._openers: dict[bytes, _Opener] = {}
        # An unknown key id costs the same two ciphers as a known one.
        self._decoy = _Opener(bytes([1]) * KEY_BYTES, campaign, bytes(_HEADER_BYTES))

    def __repr__(self) -> str:
        return f"Decipherer({self._campaign}, {len(self._masters)} keys)"

    def open_record(self, record: bytes) -> Packet | None:
        """Return the packet of a 26-byte record, or None whatever is wrong with it."""
        if len(record) != RECORD_BYTES:
            return None
        known, opener = self._opener(record[:_HEADER_BYTES])
        packet = opener.open_one(record)
        return packet if known else None

    def open_records(self, records: NDArray[np.uint8]) -> OpenedRecords:
        """Open (n, 26) records in bulk, in any mix of headers."""
        records = np.ascontiguousarray(records, dtype=np.uint8)
        headers = np.zeros(len(records), dtype=">u8")
        headers.view(np.uint8).reshape(-1, 8)[:, 2:] = records[:, :_HEADER_BYTES]
        order = np.argsort(headers.astype(np.uint64), kind="stable")
        ordered = headers.astype(np.uint64)[order]
        cuts = np.flatnonzero(np.diff(ordered)) + 1
        halves = np.zeros((2, len(records)), dtype=np.uint64)
        good = np.zeros(len(records), dtype=np.bool_)
        for group in np.split(order, cuts) if len(order) else ():
            known, opener = self._opener(records[group[0], :_HEADER_BYTES].tobytes())
            if known:
                for start in range(0, len(group), TILE_RECORDS):
                    tile = group[start : start + TILE_RECORDS]
                    good[tile], halves[0, tile], halves[1, tile] = opener.open_many(records[tile])
        return _opened(good, headers.astype(np.uint64), halves)

    def _opener(self, header: bytes) -> "tuple[bool, _Opener]":
        opener = self._openers.get(header)
        if opener is not None:
            return True, opener
        master = self._masters.get(RECORD_HEADER.unpack(header)[0])
        if master is None:
            return False, self._decoy
        if len(self._openers) >= CACHED_HEADERS_MAX:
            self._openers.pop(next(iter(self._openers)))
        opener = self._openers[header] = _Opener(master, self._campaign, header)
        return True, opener


class _Opener:
    """Keeps the two ECB contexts of one header: single blocks only, never chained."""

    def __init__(self, master: bytes, campaign: CampaignId, header: bytes) -> None:
        self._key_id, self._slot, self._sponsor = RECORD_HEADER.unpack(header)
        keys = ticket_keys(master, campaign, self._key_id, self._slot, self._sponsor)
        self._dec = Cipher(algorithms.AES(keys.enc), modes.ECB()).decryptor()
        self._mac = Cipher(algorithms.AES(keys.mac), modes.ECB()).encryptor()
        self._header = header
        self._header_low = np.uint64(int.from_bytes(header, "little"))
        subkey = cmac_subkey(keys.mac)
        self._mask = int.from_bytes(subkey, "big") ^ 0x80 << 72
        self._mask_0 = np.uint64(int.from_bytes(subkey[:8], "little") ^ 0x80 << 48)
        self._mask_1 = np.uint64(int.from_bytes(subkey[8:], "little"))
        # What the top 16 bits and the low 36 bits of the plain block must be.
        self._fixed_high = TICKET_VERSION << 12 | self._key_id & 0xFFF
        self._key_fits = self._key_id <= 0xFFF

    def open_one(self, record: bytes) -> Packet | None:
        _, _, _, mac, ticket = RECORD.unpack(record)
        first = self._mac.update(record[:_HEADER_BYTES] + ticket[:10])
        last = int.from_bytes(first, "big") ^ self._mask ^ int.from_bytes(ticket[10:], "big") << 80
        mac_good = hmac.compare_digest(
            self._mac.update(last.to_bytes(16, "big"))[:4], mac.to_bytes(4, "big")
        )
        block = int.from_bytes(self._dec.update(ticket), "big")
        fixed = (block >> 112 ^ self._fixed_high) | block & 0xFFFFFFFFF
        if not (mac_good & (fixed == 0) & self._key_fits):
            return None
        return Packet(
            key_id=self._key_id,
            slot=self._slot,
            sponsor=self._sponsor,
            batch=block >> 96 & 0xFFFF,
            serial=block >> 60 & 0xFFFFFFFFF,
            amount_fen=block >> 36 & 0xFFFFFF,
        )

    def open_many(self, records: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], Words, Words]:
        """Return (good, high halves, low halves) of records that all have this header."""
        tickets = np.ascontiguousarray(records[:, 10:]).view("<u8")
        first, second = tickets[:, 0], tickets[:, 1]
        block = np.empty(tickets.shape, dtype="<u8")
        block[:, 0] = (first << np.uint64(48)) | self._header_low
        block[:, 1] = (first >> np.uint64(16)) | (second << np.uint64(48))
        chained = _ecb(self._mac, block)
        chained[:, 0] ^= (second >> np.uint64(16)) ^ self._mask_0
        chained[:, 1] ^= self._mask_1
        macs = _ecb(self._mac, chained).view(np.uint8)[:, :4]
        plain = _ecb(self._dec, tickets).view(">u8").astype(np.uint64)
        high, low = plain[:, 0], plain[:, 1]
        good = (macs == records[:, 6:10]).all(axis=1)
        good &= high >> np.uint64(48) == np.uint64(self._fixed_high)
        good &= low & np.uint64((1 << 36) - 1) == 0
        return good & self._key_fits, high, low


def _opened(good: NDArray[np.bool_], headers: Words, halves: Words) -> OpenedRecords:
    high, low = halves
    return OpenedRecords(
        good=good,
        key_id=(headers >> np.uint64(32)).astype(np.uint16),
        slot=(headers >> np.uint64(16)).astype(np.uint16),
        sponsor=headers.astype(np.uint16),
        batch=(high >> np.uint64(32)).astype(np.uint16),
        serial=((high & np.uint64(0xFFFFFFFF)) << np.uint64(4)) | (low >> np.uint64(60)),
        amount_fen=(low >> np.uint64(36)).astype(np.uint32) & np.uint32(0xFFFFFF),
    )


def _ecb(context: CipherContext, blocks: Words) -> Words:
    # update_into wants a block of slack behind the output.
    result = np.empty((len(blocks) + 1, 2), dtype="<u8")
    context.update_into(blocks.view(np.uint8).data.cast("B"), result.data.cast("B"))
    return result[:-1]
