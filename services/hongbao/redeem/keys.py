"""Owns the secrets that opening needs, derived as late as possible; refuses to print any.

A slot's ticket keys are derived only once the slot has started (threat model: early leak of
files), and a pod's binding keys when its first token comes.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from hongbao.cipher.decipher import Decipherer
from hongbao.cipher.derive import binding_key
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.manifest import Manifest


class SlotKeys:
    """Gives one Decipherer per started slot, with the keys of that slot alone (R44, R45)."""

    def __init__(
        self,
        campaign: CampaignId,
        ticket_masters: Mapping[KeyId, bytes],
        manifests: Iterable[Manifest],
    ) -> None:
        self._campaign: Final = campaign
        self._masters: Final = dict(ticket_masters)
        self._key_ids: dict[int, set[KeyId]] = {}
        self._loaded: dict[int, Decipherer] = {}
        self.use_manifests(manifests)

    def __repr__(self) -> str:
        return f"SlotKeys({self._campaign}, {len(self._masters)} keys, {len(self._loaded)} loaded)"

    def use_manifests(self, manifests: Iterable[Manifest]) -> None:
        """Take another set of schemes; what was loaded is derived again when it is used."""
        self._key_ids, self._loaded = {}, {}
        for manifest in manifests:
            for batch in manifest.batches:
                self._key_ids.setdefault(batch.slot, set()).update(batch.key_ids)

    def open_at(self, slot: int, starts_at_ms: int, now_ms: int) -> Decipherer | None:
        """Return what deciphers the slot's records; None before it starts or without keys."""
        if now_ms < starts_at_ms:
            self._loaded.pop(slot, None)  # the timeline was moved: forget the keys again
            return None
        loaded = self._loaded.get(slot)
        if loaded is not None:
            return loaded
        masters = {
            key_id: self._masters[key_id]
            for key_id in self._key_ids.get(slot, ())
            if key_id in self._masters
        }
        if not masters:
            return None
        decipherer = Decipherer(masters, self._campaign)
        self._loaded[slot] = decipherer
        return decipherer


class BindingKeys:
    """Caches the keys with which epochs of pods bind records to users."""

    def __init__(self, token_root: bytes, keys_max: int) -> None:
        self._token_root: Final = token_root
        self._keys_max: Final = keys_max
        self._keys: dict[tuple[int, int], bytes] = {}

    def __repr__(self) -> str:
        return f"BindingKeys({len(self._keys)} cached)"

    def of(self, pod: int, epoch: int) -> bytes:
        """Return the key; derive it (about 20 µs) unless it is cached."""
        key = self._keys.get((pod, epoch))
        if key is None:
            if len(self._keys) >= self._keys_max:
                self._keys.pop(next(iter(self._keys)))
            key = self._keys[pod, epoch] = self.derive(pod, epoch)
        return key

    def derive(self, pod: int, epoch: int) -> bytes:
        """Return the key and forget it: a stranger who names epochs must not empty the cache."""
        return binding_key(self._token_root, pod, epoch)
