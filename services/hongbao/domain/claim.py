"""Owns the durable form of a claim: one log entry; refuses to decide who may open what.

A claim is the entry of a block in `log/claims/<shard>/…` and the operation that asks a shard's
owner for it: the same 52 bytes, so an owner never re-encodes and settle reads whole blocks as one
numpy array (seed 000 §10, R43: an open is one insert).
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hongbao.domain.errors import Corrupt

CLAIM_VERSION: Final = 1
# version u16 | batch u16 | key_id u16 | slot u16 | sponsor u16 | pod u16 |
# pod epoch u32 | file u32 | bit u32 | amount_fen u32 | serial u64 | user u64 | opened at u64 (ms)
CLAIM: Final = struct.Struct(">HHHHHHIIIIQQQ")
CLAIM_BYTES: Final = CLAIM.size
# What decides who opened what, inside a claim: file | bit | amount_fen | serial | user.
CLAIM_CORE: Final = struct.Struct(">IIIQQ")
CLAIM_CORE_AT: Final = 16
CLAIM_DTYPE: Final = np.dtype(
    [
        ("version", ">u2"),
        ("batch", ">u2"),
        ("key_id", ">u2"),
        ("slot", ">u2"),
        ("sponsor", ">u2"),
        ("pod", ">u2"),
        ("pod_epoch", ">u4"),
        ("file", ">u4"),
        ("bit", ">u4"),
        ("amount_fen", ">u4"),
        ("serial", ">u8"),
        ("user", ">u8"),
        ("opened_at_ms", ">u8"),
    ]
)
CLOSING: Final = b"closed"
"""Is the last entry of a claims log that is closed, and the operation that asks for it.

The log decides: whoever owns the shard later has read it, so no claim comes behind it (R36).
"""

assert CLAIM_BYTES == CLAIM_DTYPE.itemsize == 52
assert CLAIM_DTYPE.fields is not None
assert CLAIM_DTYPE.fields["file"][1] == CLAIM_CORE_AT
assert CLAIM_CORE_AT + CLAIM_CORE.size == CLAIM_DTYPE.fields["opened_at_ms"][1]


class Claim(NamedTuple):
    """Is the durable fact that a user opened a packet, with all that the open checked."""

    batch: int
    key_id: int
    slot: int
    sponsor: int
    pod: int  # the access pod that bound the ticket to the user
    pod_epoch: int
    file: int  # the ticket file that holds the packet
    bit: int  # index of the packet in its file
    amount_fen: int
    serial: int
    user: int
    opened_at_ms: int  # wall time of the redeem process, for reports only


def pack_claim(claim: Claim) -> bytes:
    """Encode a claim as a log entry."""
    return CLAIM.pack(CLAIM_VERSION, *claim)


def parse_claim(entry: bytes) -> Claim:
    """Decode a log entry. Raises Corrupt when it is not a claim."""
    if len(entry) != CLAIM_BYTES:
        raise Corrupt(f"claim of {len(entry)} bytes, want {CLAIM_BYTES}")
    version, *fields = CLAIM.unpack(entry)
    if version != CLAIM_VERSION:
        raise Corrupt(f"claim of version {version}, want {CLAIM_VERSION}")
    return Claim(*fields)


def closed_key(shard: int) -> bytes:
    """Return the key whose presence says that a claims shard's log is closed."""
    return b"closed/claims/%010d" % shard


def logged_claims(entries: Sequence[bytes]) -> Sequence[bytes]:
    """Return the claims of a block: all its entries, but for the closing one at the end."""
    return entries[:-1] if entries and entries[-1] == CLOSING else entries


def claims_array(entries: bytes) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """View concatenated log entries as one array of CLAIM_DTYPE, without a copy.

    Raises Corrupt when the length or any version is wrong.
    """
    if len(entries) % CLAIM_BYTES:
        raise Corrupt(f"{len(entries)} bytes of claims are no multiple of {CLAIM_BYTES}")
    claims = np.frombuffer(entries, CLAIM_DTYPE)
    if not (claims["version"] == CLAIM_VERSION).all():
        raise Corrupt(f"a claim among {len(claims)} has not version {CLAIM_VERSION}")
    return claims
