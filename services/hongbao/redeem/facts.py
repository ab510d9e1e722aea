"""Owns what this process knows from Coordination, last known good; refuses to read it.

Every document is parsed whole before anything is replaced, so a broken one changes nothing.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any, Final

from hongbao.api.switches import PREFIX as SWITCHES
from hongbao.api.switches import SwitchBoard
from hongbao.cipher.key_lists import KeyLists, parse_key_lists
from hongbao.domain.assignment import Assignment
from hongbao.domain.errors import Corrupt
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Manifest
from hongbao.domain.timeline import Closed, Timeline
from hongbao.redeem.limits import RedeemLimits

PODS: Final = "pods/"
EPOCH_MAX: Final = (1 << 32) - 1
_EPOCH_SUFFIX: Final = "/epoch"


def epoch_key(pod: int) -> str:
    """Return where the current epoch of an access pod stands."""
    return f"{PODS}{pod}{_EPOCH_SUFFIX}"


class Facts:
    """Is the timeline, active schemes, assignment, key lists, epochs and switches of one campaign.

    The public attributes are read on every open; only `apply` and `use_manifests` replace them.
    """

    def __init__(
        self, campaign: CampaignId, manifests: Iterable[Manifest], limits: RedeemLimits
    ) -> None:
        self._prefix: Final = f"campaigns/{campaign}/"
        self._limits = limits
        self._timeline: Timeline | None = None
        self._active: dict[int, int] | None = None
        self._slot_batches: dict[tuple[int, int], set[int]] = {}
        self._schemes: set[int] = set()
        self.unknown_slots: frozenset[int] = frozenset()
        """Slots whose active scheme is in no manifest yet: it was minted later (R35, R37)."""
        self.windows_ms: dict[int, tuple[int, int]] = {}
        """When packets of a slot may be opened: [from, until)."""
        self.active_batches: frozenset[int] = frozenset()
        """The batches of the active scheme of every slot; others are not to be paid."""
        self.pods_of_file: dict[int, set[int]] = {}
        """Who was seen to serve each file since this process started.

        Earlier moves need not be known: a file of a slot that has opened never moves (R22, R23), so
        whoever gave out its packets still serves it.
        """
        self.epochs: dict[int, int] = {}
        """The current epoch of every pod."""
        self.key_lists = KeyLists()
        self.closed = False
        """Unclaimed money goes back to the sponsors: nothing may be opened any more, for good."""
        self.switches = SwitchBoard()
        self.missing = self._find_missing()
        """Which documents nobody has written yet; without them nothing can be opened."""
        self.use_manifests(manifests)

    def use_manifests(self, manifests: Iterable[Manifest]) -> None:
        """Take another set of schemes, for instance after a re-plan."""
        self._slot_batches, self._schemes = {}, set()
        for manifest in manifests:
            self._schemes.add(manifest.scheme_number)
            for batch in manifest.batches:
                key = (manifest.scheme_number, batch.slot)
                self._slot_batches.setdefault(key, set()).add(batch.batch)
        self._choose_batches()

    def apply(self, key: str, document: bytes) -> bool:
        """Take in one change; False when the key is not for us.

        Raises Corrupt or Rejected for a broken document, and keeps what was.
        """
        if key.startswith(SWITCHES):
            return self.switches.apply(key, document)
        if key.startswith(PODS) and key.endswith(_EPOCH_SUFFIX):
            return self._apply_epoch(key, document)
        take = {
            f"{self._prefix}timeline": self._apply_timeline,
            f"{self._prefix}active": self._apply_active,
            f"{self._prefix}assignment": self._apply_assignment,
            f"{self._prefix}keys": self._apply_keys,
            f"{self._prefix}closed": self._apply_closed,
        }.get(key)
        if take is None:
            return False
        if not document:
            raise Corrupt(f"{key} was deleted; the last known stays in force")
        take(document)
        self.missing = self._find_missing()
        return True

    def _find_missing(self) -> list[str]:
        found = {
            "timeline": self._timeline is not None,
            "active": self._active is not None,
            "assignment": bool(self.pods_of_file),
        }
        return [name for name, known in found.items() if not known]

    def key_allowed(self, key_id: int) -> bool:
        """Return whether packets under this key may be opened (R46)."""
        return self.key_lists.permits(key_id)

    def _apply_timeline(self, document: bytes) -> None:
        timeline = Timeline.from_json(document)
        lead_ms, grace_ms = self._limits.slot_lead_ms, self._limits.open_grace_ms
        self._timeline = timeline
        self.windows_ms = {
            slot.slot: (slot.starts_at_ms - lead_ms, slot.ends_at_ms + grace_ms)
            for slot in timeline.slots
        }

    def _apply_active(self, document: bytes) -> None:
        try:
            shape: dict[str, Any] = json.loads(document)
            active = {int(slot): int(scheme) for slot, scheme in shape.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise Corrupt(f"{self._prefix}active is broken: {error}") from error
        self._active = active
        self._choose_batches()

    def _apply_assignment(self, document: bytes) -> None:
        try:
            files = Assignment.from_json(document).files
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Corrupt(f"{self._prefix}assignment is broken: {error}") from error
        for file, place in files.items():
            pod = place.serving or place.pod
            self.pods_of_file.setdefault(file, set()).add(pod)

    def _apply_keys(self, document: bytes) -> None:
        self.key_lists = parse_key_lists(document)

    def _apply_closed(self, document: bytes) -> None:
        Closed.from_json(document)
        self.closed = True

    def _apply_epoch(self, key: str, document: bytes) -> bool:
        pod_text = key[len(PODS) : -len(_EPOCH_SUFFIX)]
        if not document:
            return False  # a pod that is gone: its tokens stay good until they expire
        if not (pod_text.isdecimal() and document.isdigit()) or int(document) > EPOCH_MAX:
            raise Corrupt(f"{key} holds {document[:20]!r}, which is no epoch of a pod")
        pod, epoch = int(pod_text), int(document)
        self.epochs[pod] = max(epoch, self.epochs.get(pod, 0))
        return True

    def _choose_batches(self) -> None:
        active = self._active or {}
        self.unknown_slots = frozenset(
            slot for slot, scheme in active.items() if scheme not in self._schemes
        )
        chosen: list[Collection[int]] = [
            self._slot_batches.get((scheme, slot), ()) for slot, scheme in active.items()
        ]
        self.active_batches = frozenset(batch for batches in chosen for batch in batches)
