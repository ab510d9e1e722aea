"""Owns the layouts of ticket, record, ticket file and tokens; refuses to hold any cipher.

Ticket plaintext, one AES block, big-endian bits:
    version 4 | key_id 12 | batch 16 | serial 36 | amount_fen 24 | zero 36
Record, 26 bytes, big-endian:
    key_id u16 | slot u16 | sponsor u16 | mac u32 | ticket 16 B
Source: seed 000 §10; shared design §4; encode-then-encipher (Bellare and Rogaway 2000).
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

TICKET_VERSION: Final = 1
TICKET_BYTES: Final = 16
RECORD: Final = struct.Struct(">HHHI16s")
RECORD_BYTES: Final = RECORD.size
RECORD_HEADER: Final = struct.Struct(">HHH")
KEY_ID_MAX: Final = (1 << 12) - 1
BATCH_MAX: Final = (1 << 16) - 1
SERIAL_MAX: Final = (1 << 36) - 1
AMOUNT_FEN_MAX: Final = (1 << 24) - 1  # 167,772.15 yuan

assert RECORD_BYTES == 26


def campaign_hash(campaign: str) -> bytes:
    """Return BLAKE2b-128 of the campaign's id, as it stands in headers, MACs and key derivation."""
    return hashlib.blake2b(campaign.encode("ascii"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Packet:
    """Is a deciphered ticket together with the authenticated header of its record."""

    key_id: int
    slot: int
    sponsor: int
    batch: int
    serial: int
    amount_fen: int


# Ticket file: this header, then `count` records, nothing behind them.
# magic 4s | version u16 | campaign hash 16s (BLAKE2b-128 of the id) | scheme u16 | slot u16 |
# ticket shard u16 | claims shard u16 | file index u32 | count u64 | sha256 of the records 32s
FILE_HEADER: Final = struct.Struct(">4sH16sHHHHIQ32s")
FILE_MAGIC: Final = b"HBTF"
FILE_VERSION: Final = 1
FILE_SIGNATURE_BYTES: Final = 64  # Ed25519 over the packed header, right behind it
FILE_RECORDS_AT: Final = FILE_HEADER.size + FILE_SIGNATURE_BYTES

# Claim token: this, then MAC-128 (BLAKE2b keyed by pod and epoch) over
# packed head ‖ campaign hash 16 B ‖ user u64.
# version u8 | pod u16 | pod epoch u32 | claims shard u16 | expiry u32 (unix s) | record 26s
TOKEN_HEAD: Final = struct.Struct(">BHIHI26s")
TOKEN_VERSION: Final = 1
TOKEN_MAC_BYTES: Final = 16
TOKEN_BYTES: Final = TOKEN_HEAD.size + TOKEN_MAC_BYTES

assert TOKEN_BYTES == 55

# Session token: this, then MAC-128 (BLAKE2b keyed by the session key) over it ‖ campaign hash.
# version u8 | priority u8 | user u64 | expiry u32 (unix s)
SESSION_HEAD: Final = struct.Struct(">BBQI")
SESSION_VERSION: Final = 1
SESSION_BYTES: Final = SESSION_HEAD.size + TOKEN_MAC_BYTES
