"""Owns what this pod is told to do, and the pure decisions that follow; refuses any I/O.

Orders are read from the documents under `campaigns/<c>/` and `pods/<pod>/epoch`. A broken
document changes nothing: the last good one stays in force.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

from hongbao.access.service import Exposure
from hongbao.domain.assignment import Assignment, Placement
from hongbao.domain.errors import Corrupt
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Manifest, MintedFile
from hongbao.domain.timeline import Timeline


@dataclass(frozen=True, slots=True)
class MeasuredOpens:
    """Is what one redeem process has shown it can open, and when it said so."""

    opens_per_s: float
    at_ms: int


@dataclass(frozen=True, slots=True)
class Orders:
    """Is the last known good of every document that concerns one pod."""

    timeline: Timeline | None = None
    active: Mapping[int, int] = field(default_factory=dict)  # slot → scheme number
    assignment: Assignment = field(default_factory=lambda: Assignment({}))
    measured: tuple[MeasuredOpens, ...] = ()
    pod_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Is a ticket file that should lie on this pod; `served` when it is this pod's to issue."""

    manifest: Manifest
    minted: MintedFile
    served: bool


def apply_document(
    orders: Orders, campaign: CampaignId, pod: int, key: str, value: bytes
) -> Orders:
    """Return the orders with one document changed (empty: deleted); same object if unknown.

    A deleted timeline leaves the last one in force; other deleted documents fall back to none.
    Raises Corrupt for a broken document.
    """
    try:
        if key == f"campaigns/{campaign}/timeline":
            return replace(orders, timeline=Timeline.from_json(value)) if value else orders
        if key == f"campaigns/{campaign}/active":
            return replace(orders, active=_read_active(value))
        if key == f"campaigns/{campaign}/assignment":
            assignment = Assignment.from_json(value) if value else Assignment({})
            return replace(orders, assignment=assignment)
        if key == f"campaigns/{campaign}/quota":
            return replace(orders, measured=_read_quota(value))
        if key == f"pods/{pod}/epoch":
            return replace(orders, pod_epoch=int(value) if value else 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"document {key} is broken: {error!r}") from error
    return orders


def wants_ack(key: str) -> bool:
    """Say whether somebody may wait until a document is obeyed.

    Nobody waits for a quota: it is measured anew every second by every redeem process, and acks of
    all pods for each of them would be most of what coordination writes.
    """
    return not key.endswith("/quota")


def plan_files(
    orders: Orders, manifests: Mapping[int, Manifest], pod: int, now_ms: int
) -> list[Wanted]:
    """Return the files to have here, the most urgent first.

    Own files of the open slot come first, then of the next ones; then what this pod is home or
    backup of, so that taking over a lost zone's slot needs no fetch (R22). Files of slots that
    are over and of schemes that are not active for their slot are not wanted.
    """
    left = _slots_left(orders, now_ms)
    wanted = []
    for manifest in manifests.values():
        for minted, place in _placed(orders, manifest):
            if minted.slot in left and pod in (place.serving, place.pod, place.backup):
                wanted.append(Wanted(manifest, minted, place.serving == pod))
    wanted.sort(key=lambda each: (not each.served, left[each.minted.slot], each.minted.file))
    return wanted


def plan_exposures(
    orders: Orders, manifests: Mapping[int, Manifest], weights: Mapping[int, int]
) -> dict[int, tuple[Exposure, ...]]:
    """Return which sponsors each slot shows: those with packets in it, by their weight (R16, R34).

    A sponsor's resources in a slot share its weight equally; unnamed sponsors weigh 1.
    """
    shown: dict[int, tuple[Exposure, ...]] = {}
    for slot, scheme_number in orders.active.items():
        manifest = manifests.get(scheme_number)
        batches = [batch for batch in manifest.batches if batch.slot == slot] if manifest else []
        pairs = sorted({(batch.sponsor, batch.resource) for batch in batches})
        resources = Counter(sponsor for sponsor, _ in pairs)
        whole = lcm(*resources.values())
        shown[slot] = tuple(
            Exposure(sponsor, resource, weights.get(sponsor, 1) * whole // resources[sponsor])
            for sponsor, resource in pairs
        )
    return shown


def quota_now(orders: Orders, now_ms: int, *, life_ms: int, floor_per_s: float) -> float:
    """Return the opens per second that the redeem side can take, as far as anybody says so now.

    A process that has been silent for `life_ms` opens nothing; what it once said is no proof.
    """
    fresh = [one.opens_per_s for one in orders.measured if now_ms - one.at_ms < life_ms]
    return sum(fresh) if fresh else floor_per_s


def share_of_quota(
    orders: Orders, manifests: Mapping[int, Manifest], pod: int, slot: int, opens_per_s: float
) -> float:
    """Return the opens per second that this pod may cause: its share of the slot's files."""
    manifest = manifests.get(orders.active.get(slot, 0))
    placed = [place for minted, place in _placed(orders, manifest) if minted.slot == slot]
    mine = sum(place.serving == pod for place in placed)
    return opens_per_s * mine / len(placed) if placed else opens_per_s


def _slots_left(orders: Orders, now_ms: int) -> dict[int, int]:
    """Return the slots that are not over, with their order in time."""
    slots = orders.timeline.slots if orders.timeline else ()
    return {slot.slot: order for order, slot in enumerate(slots) if slot.ends_at_ms > now_ms}


def _placed(orders: Orders, manifest: Manifest | None) -> Iterator[tuple[MintedFile, Placement]]:
    """Yield the assigned files of a scheme whose slot has that scheme active."""
    if manifest is None:
        return
    for minted in manifest.files:
        place = orders.assignment.files.get(minted.file)
        if place is not None and orders.active.get(minted.slot) == manifest.scheme_number:
            yield minted, place


def _read_active(value: bytes) -> dict[int, int]:
    document: dict[str, Any] = json.loads(value) if value else {}
    return {int(slot): int(scheme) for slot, scheme in document.items()}


def _read_quota(value: bytes) -> tuple[MeasuredOpens, ...]:
    """Return what each redeem process last measured; absent means none."""
    processes: dict[str, dict[str, Any]] = json.loads(value)["processes"] if value else {}
    measured = []
    for name, one in processes.items():
        opens_per_s, at_ms = one["opens_per_s"], one["at_ms"]
        if isinstance(opens_per_s, bool) or not math.isfinite(opens_per_s) or opens_per_s < 0:
            raise ValueError(f"opens_per_s of {name} is {opens_per_s!r}")
        measured.append(MeasuredOpens(float(opens_per_s), int(at_ms)))
    return tuple(measured)
