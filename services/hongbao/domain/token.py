"""Owns claim and session tokens: sealed here, checked here; refuses to judge expiry or assignment.

Layouts live in domain/ticket.py. Both tokens end in a BLAKE2b-128 keyed by their own key. The
claim token's MAC also covers the campaign and the user, which the token does not carry: they
come from the session, so a stolen token is worth nothing to its thief (R7, R55). Nothing is
drawn at random, so no nonce can repeat. Keys are 16 to 64 bytes.
"""

import hashlib
import hmac
import struct
from typing import Final, NamedTuple

from hongbao.domain import ticket

KEY_BYTES_MIN: Final = 16
USER_MAX: Final = (1 << 63) - 1
PRIORITY_MAX: Final = (1 << 8) - 1

_MAC_BYTES: Final = ticket.TOKEN_MAC_BYTES
_CAMPAIGN_AND_USER: Final = struct.Struct(">16sQ")
_CLAIM_BYTES: Final = ticket.TOKEN_BYTES
_CLAIM_HEAD_BYTES: Final = ticket.TOKEN_HEAD.size
_SESSION_HEAD_BYTES: Final = ticket.SESSION_HEAD.size
_SESSION_BYTES: Final = ticket.SESSION_BYTES

_pack_claim = ticket.TOKEN_HEAD.pack
_unpack_claim = ticket.TOKEN_HEAD.unpack_from
_unpack_session = ticket.SESSION_HEAD.unpack_from
_pack_bound = _CAMPAIGN_AND_USER.pack
_blake2b = hashlib.blake2b
_equal = hmac.compare_digest


class ClaimHead(NamedTuple):
    """Is what a claim token says; proved only by `verify_claim`."""

    pod: int
    epoch: int
    claims_shard: int
    expiry_s: int
    record: bytes


class SessionHead(NamedTuple):
    """Is what a session token says."""

    user: int
    priority: int
    expiry_s: int


def seal_claim(
    binding_key: bytes,
    campaign_hash: bytes,
    pod: int,
    epoch: int,
    claims_shard: int,
    expiry_s: int,
    record: bytes,
    user: int,
) -> bytes:
    """Bind one record to one user: 55 bytes that only this user can open."""
    head = _pack_claim(ticket.TOKEN_VERSION, pod, epoch, claims_shard, expiry_s, record)
    bound = head + _pack_bound(campaign_hash, user)
    return head + _blake2b(bound, digest_size=_MAC_BYTES, key=binding_key).digest()


def parse_claim_head(token: bytes) -> ClaimHead | None:
    """Read who claims to have sealed the token, so that its key can be found; proves nothing."""
    if len(token) != _CLAIM_BYTES:
        return None
    version, pod, epoch, claims_shard, expiry_s, record = _unpack_claim(token)
    if version != ticket.TOKEN_VERSION:
        return None
    return ClaimHead(pod, epoch, claims_shard, expiry_s, record)


def verify_claim(token: bytes, binding_key: bytes, campaign_hash: bytes, user: int) -> bool:
    """Say whether this pod and epoch sealed the token for this user: what its head says is true.

    The comparison takes constant time, and False says nothing about the cause. Expiry is for
    the caller to judge.
    """
    if len(token) != _CLAIM_BYTES or not 0 <= user <= USER_MAX:
        return False
    bound = token[:_CLAIM_HEAD_BYTES] + _pack_bound(campaign_hash, user)
    mac = _blake2b(bound, digest_size=_MAC_BYTES, key=binding_key).digest()
    return _equal(mac, token[_CLAIM_HEAD_BYTES:])


def seal_session(
    session_key: bytes, campaign_hash: bytes, user: int, priority: int, expiry_s: int
) -> bytes:
    """Make the compact session of one user in one campaign: 30 bytes."""
    head = ticket.SESSION_HEAD.pack(ticket.SESSION_VERSION, priority, user, expiry_s)
    mac = _blake2b(head + campaign_hash, digest_size=_MAC_BYTES, key=session_key)
    return head + mac.digest()


def verify_session(token: bytes, session_key: bytes, campaign_hash: bytes) -> SessionHead | None:
    """Return who the session is of; None for every other bytes. Expiry is the caller's."""
    if len(token) != _SESSION_BYTES:
        return None
    head = token[:_SESSION_HEAD_BYTES]
    mac = _blake2b(head + campaign_hash, digest_size=_MAC_BYTES, key=session_key).digest()
    if not _equal(mac, token[_SESSION_HEAD_BYTES:]):
        return None
    version, priority, user, expiry_s = _unpack_session(token)
    return SessionHead(user, priority, expiry_s) if version == ticket.SESSION_VERSION else None
