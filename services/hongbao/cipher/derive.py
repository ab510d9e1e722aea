"""Owns how every key follows from a master (HKDF-SHA256, RFC 5869); refuses to use any of them.

A ticket's two keys depend on the header of its record, so a record with a changed header selects
other keys and fails by itself (design §4).
"""

import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hongbao.domain.ids import CampaignId
from hongbao.domain.ticket import RECORD_HEADER, campaign_hash

KEY_BYTES = 32
_BINDING = struct.Struct(">HI")


@dataclass(frozen=True, slots=True)
class TicketKeys:
    """Is the pair of AES-256 keys of one (campaign, key id, slot, sponsor); never printed."""

    enc: bytes = field(repr=False)
    mac: bytes = field(repr=False)


def ticket_keys(
    master: bytes, campaign: CampaignId, key_id: int, slot: int, sponsor: int
) -> TicketKeys:
    """Derive the keys of one record header from the master of its key id."""
    header = RECORD_HEADER.pack(key_id, slot, sponsor)
    both = _expand(master, b"hongbao ticket 1" + campaign_hash(campaign) + header, 2 * KEY_BYTES)
    return TicketKeys(enc=both[:KEY_BYTES], mac=both[KEY_BYTES:])


def binding_key(token_root: bytes, pod: int, epoch: int) -> bytes:
    """Derive the key with which one epoch of one access pod binds records to users."""
    return _expand(token_root, b"hongbao binding 1" + _BINDING.pack(pod, epoch), KEY_BYTES)


def cmac_subkey(mac_key: bytes) -> bytes:
    """Return CMAC's K2 (RFC 4493 §2.3): the mask of a last block that is not full.

    A MAC covers header and ticket, always 22 bytes: one whole block and six bytes.
    """
    zero = Cipher(algorithms.AES(mac_key), modes.ECB()).encryptor().update(bytes(16))
    return _doubled(_doubled(zero))


def _doubled(block: bytes) -> bytes:
    shifted = int.from_bytes(block, "big") << 1
    if shifted >> 128:
        shifted ^= (1 << 128) | 0x87
    return shifted.to_bytes(16, "big")


def _expand(master: bytes, info: bytes, length: int) -> bytes:
    if len(master) != KEY_BYTES:
        raise ValueError(f"a master key has {KEY_BYTES} bytes, not {len(master)}")
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(master)
