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


def deny_keys(lists: KeyLists, key_ids: Sequence[int]) -> KeyLists:
    """Put keys on the deny list; they leave the allow list."""
    denied = lists.deny | set(key_ids)
    allowed = None if lists.allow is None else sorted(lists.allow - denied)
    return build_key_lists(sorted(denied), allowed)


def allow_keys(lists: KeyLists, key_ids: Sequence[int], *, only: bool = False) -> KeyLists:
    """Take keys off the deny list and put them on the allow list, where there is one.

    With `only` they become the whole allow list; without key ids the allow list is dropped.
    """
    if not key_ids:
        return KeyLists(lists.deny, None)
    denied = sorted(lists.deny - set(key_ids))
    if only:
        return build_key_lists(denied, sorted(set(key_ids)))
    return build_key_lists(
        denied, None if lists.allow is None else sorted(lists.allow | set(key_ids))
    )


def parse_key_ids(texts: Sequence[str]) -> list[KeyId]:
    """Parse ids and ranges such as 7 and 20-30, as people write them. Raises Rejected."""
    ids: list[KeyId] = []
    for text in texts:
        first, dash, last = text.partition("-")
        parts = (first, last) if dash else (first,)
        if not all(part.isascii() and part.isdigit() and len(part) <= 4 for part in parts):
            raise Rejected(f"{text!r} is neither a key id nor a range such as 20-30", field="KEY")
        start, end = int(first), int(last or first)
        if not 1 <= start <= end <= KEY_ID_MAX:
            raise Rejected(f"{text!r} is not within 1 to {KEY_ID_MAX}", field="KEY")
        ids += map(KeyId, range(start, end + 1))
    return sorted(set(ids))
