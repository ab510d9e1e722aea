"""Owns the document `campaigns/<c>/keys`: which ticket keys may be opened (R46).

The deny list stops leaked keys, the allow list keys that were never used. Without an allow list,
every key of the manifests is allowed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hongbao.domain.errors import Rejected
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.ticket import KEY_ID_MAX


@dataclass(frozen=True, slots=True)
class KeyLists:
    """Is the two lists; no key id is on both."""

    deny: frozenset[KeyId] = frozenset()
    allow: frozenset[KeyId] | None = None

    def permits(self, key_id: int) -> bool:
        return key_id not in self.deny and (self.allow is None or key_id in self.allow)


def document_name(campaign: CampaignId) -> str:
    return f"campaigns/{campaign}/keys"


def parse_key_lists(data: bytes) -> KeyLists:
    """Return the lists; empty bytes mean that nothing is denied.

    Raises Rejected for malformed lists, ids out of range, ids named twice or on both lists.
    """
    if not data:
        return KeyLists()
    try:
        shape = json.loads(data)
        deny, allow = shape["deny"], shape["allow"]
    except (ValueError, TypeError, KeyError) as error:
        raise Rejected("key lists: not an object with deny and allow") from error
    return build_key_lists(deny, allow)


def build_key_lists(deny: Sequence[int], allow: Sequence[int] | None) -> KeyLists:
    """Check the ids and return the lists. Raises Rejected as parse_key_lists does."""
    for name, ids in (("deny", deny), ("allow", allow if allow is not None else [])):
        if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
            raise Rejected(f"key lists: {name} is not a list")
        for key_id in ids:
            if type(key_id) is not int or not 1 <= key_id <= KEY_ID_MAX:
                raise Rejected(
                    f"key lists: {name} has {key_id!r}, not a key id of 1 to {KEY_ID_MAX}"
                )
        if len(set(ids)) != len(ids):
            raise Rejected(f"key lists: {name} names a key twice")
    both = sorted(set(deny) & set(allow or ()))
    if both:
        raise Rejected(f"key lists: key {both[0]} is on the deny list and on the allow list")
    allowed = None if allow is None else frozenset(KeyId(key_id) for key_id in allow)
    return KeyLists(frozenset(KeyId(key_id) for key_id in deny), allowed)


def pack_key_lists(lists: KeyLists) -> bytes:
    allow = None if lists.allow is None else sorted(lists.allow)
    return json.dumps({"deny": sorted(lists.deny), "allow": allow}, sort_keys=True).encode("ascii")
