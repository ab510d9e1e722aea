"""Owns the making of records: pack, AES, CMAC, in bulk; refuses to open one (R44).

CMAC over the fixed 22 bytes (header ‖ ticket) is two AES passes over whole arrays, so nothing
here loops over packets. Arrays are worked on in tiles that stay in the cache.
"""

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from hongbao.cipher.derive import TicketKeys, cmac_subkey
from hongbao.domain.ticket import (
    AMOUNT_FEN_MAX,
    RECORD_BYTES,
    RECORD_HEADER,
    SERIAL_MAX,
    TICKET_VERSION,
)

TILE_PACKETS: Final = 1 << 13  # 128 KiB of blocks: several arrays fit the second-level cache

# A record seen as words that do not respect its fields: the six bytes of header and the first
# two of the MAC, the other two of the MAC, the two halves of the ticket.
_RECORD_WORDS: Final = np.dtype(
    {
        "names": ["head", "mac", "ticket_0", "ticket_1"],
        "formats": ["<u8", "<u2", "<u8", "<u8"],
        "offsets": [0, 8, 10, 18],
        "itemsize": RECORD_BYTES,
    }
)

Words = NDArray[np.uint64]


def encipher_span(
    keys: TicketKeys,
    key_id: int,
    slot: int,
    sponsor: int,
    batch: int,
    serials: Words,
    amounts: NDArray[np.uint32],
    *,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return the (n, 26) records of packets that share a header; written to `out` if given.

    `keys` must be those of this header. Raises ValueError for a serial or amount out of range.
    """
    count = len(serials)
    if len(amounts) != count or count == 0:
        raise ValueError("a span needs as many amounts as serials, and at least one")
    if int(serials.max()) > SERIAL_MAX or int(amounts.max()) > AMOUNT_FEN_MAX:
        raise ValueError("a serial or an amount does not fit its field in the ticket")
    records = np.empty((count, RECORD_BYTES), dtype=np.uint8) if out is None else out
    words = records.view(_RECORD_WORDS)[:, 0]
    header = int.from_bytes(RECORD_HEADER.pack(key_id, slot, sponsor), "little")
    fixed = TICKET_VERSION << 60 | key_id << 48 | batch << 32
    bulk = _BulkCipher(keys)
    for start in range(0, count, TILE_PACKETS):
        tile = slice(start, min(start + TILE_PACKETS, count))
        tickets = bulk.encipher(fixed, serials[tile], amounts[tile])
        macs = bulk.mac(header, tickets)
        words["head"][tile] = (macs << np.uint64(48)) | np.uint64(header)
        words["mac"][tile] = (macs >> np.uint64(16)) & np.uint64(0xFFFF)
        words["ticket_0"][tile] = tickets[:, 0]
        words["ticket_1"][tile] = tickets[:, 1]
    return records


class _BulkCipher:
    """Keeps the two ECB contexts of a span: single blocks only, never chained."""

    def __init__(self, keys: TicketKeys) -> None:
        self._enc = Cipher(algorithms.AES(keys.enc), modes.ECB()).encryptor()
        self._mac = Cipher(algorithms.AES(keys.mac), modes.ECB()).encryptor()
        subkey = cmac_subkey(keys.mac)
        # The last block is six bytes of ticket, 0x80, zeros; all masked with the subkey.
        self._mask_0 = np.uint64(int.from_bytes(subkey[:8], "little") ^ 0x80 << 48)
        self._mask_1 = np.uint64(int.from_bytes(subkey[8:], "little"))

    def encipher(self, fixed: int, serials: Words, amounts: NDArray[np.uint32]) -> Words:
        """Return the (n, 2) little-endian halves of the tickets."""
        plain = np.empty((len(serials), 2), dtype=">u8")
        plain[:, 0] = (serials >> np.uint64(4)) | np.uint64(fixed)
        low = serials << np.uint64(60)
        low |= amounts.astype(np.uint64) << np.uint64(36)
        plain[:, 1] = low
        return _ecb(self._enc, plain)

    def mac(self, header: int, tickets: Words) -> Words:
        """Return the truncated CMACs, as words whose low 32 bits are the bytes in order."""
        first, second = tickets[:, 0], tickets[:, 1]
        block = np.empty(tickets.shape, dtype="<u8")
        block[:, 0] = (first << np.uint64(48)) | np.uint64(header)
        block[:, 1] = (first >> np.uint64(16)) | (second << np.uint64(48))
        chained = _ecb(self._mac, block)
        chained[:, 0] ^= (second >> np.uint64(16)) ^ self._mask_0
        chained[:, 1] ^= self._mask_1
        return _ecb(self._mac, chained)[:, 0] & np.uint64(0xFFFFFFFF)


def _ecb(context: CipherContext, blocks: NDArray[np.uint64]) -> Words:
    # update_into wants a block of slack behind the output.
    result = np.empty((len(blocks) + 1, 2), dtype="<u8")
    context.update_into(blocks.view(np.uint8).data.cast("B"), result.data.cast("B"))
    return result[:-1]
