"""Owns switching slots to another scheme in Coordination: one compare-and-put, or nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Ambiguous, Corrupt, Transient
from hongbao.domain.ids import SlotNumber
from hongbao.domain.plan import MintPlan
from hongbao.domain.problem import Problem
from hongbao.domain.script import check_activation
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Coordination

TRIES_MAX = 5
LEAD_MS = 5_000  # a switch reaches every pod within this (design §6): later is too late


@dataclass(frozen=True, slots=True)
class Activation:
    """Is what a call did: the active scheme number of each slot before and after."""

    before: dict[SlotNumber, int]
    after: dict[SlotNumber, int]
    revision: int  # of the document; 0 when nothing was written
    problems: tuple[Problem, ...] = ()


async def activate_scheme(
    coordination: Coordination,
    campaign: Campaign,
    plans: Sequence[MintPlan],
    scheme_number: int,
    slots: Sequence[SlotNumber],
    *,
    wall_ms: Callable[[], int],
    lead_ms: int = LEAD_MS,
) -> Activation:
    """Switch these slots (none named: all that have not opened) to a scheme (R42).

    Safe to repeat. Raises Transient when others keep changing the document.
    """
    key = f"campaigns/{campaign.campaign}/active"
    for _ in range(TRIES_MAX):
        timeline = await _read_timeline(coordination, campaign)
        stored = await coordination.read(key)
        current = _parse_active(stored.value)
        # the clock is read last: time that reading took must not shorten the lead
        opened = timeline.opened(wall_ms(), lead_ms=lead_ms)
        wanted = _wanted(plans, scheme_number, slots, opened)
        problems = check_activation(plans, current, wanted, opened, campaign.deposits)
        if not wanted:
            problems = [Problem("", 0, "slot", f"plan {scheme_number} has no slot left to open")]
        after = {**current, **wanted}
        if problems or after == current:
            return Activation(current, current, stored.revision, tuple(problems))
        value = json.dumps({str(slot): number for slot, number in after.items()}, sort_keys=True)
        try:
            written = await coordination.compare_and_put(
                key, value.encode(), revision=stored.revision
            )
        except Ambiguous:
            continue  # the next read shows whether it happened
        if written is not None:
            return Activation(current, after, written.revision)
    raise Transient(f"{key} kept changing or its writes stayed unclear, {TRIES_MAX} times")


def _wanted(
    plans: Sequence[MintPlan],
    scheme_number: int,
    slots: Sequence[SlotNumber],
    opened: frozenset[SlotNumber],
) -> dict[SlotNumber, int]:
    if slots:
        return dict.fromkeys(slots, scheme_number)
    found = (plan.batches for plan in plans if plan.scheme_number == scheme_number)
    planned = {batch.slot for batch in next(found, ())}
    return dict.fromkeys(sorted(planned - opened), scheme_number)


async def _read_timeline(coordination: Coordination, campaign: Campaign) -> Timeline:
    """Return the timeline that the pods follow (it may be a rehearsal), else the campaign's own."""
    stored = await coordination.read(f"campaigns/{campaign.campaign}/timeline")
    return Timeline.from_json(stored.value) if stored.value else Timeline(campaign.slots)


def _parse_active(document: bytes) -> dict[SlotNumber, int]:
    try:
        active: Mapping[str, int] = json.loads(document) if document else {}
        return {SlotNumber(int(slot)): int(number) for slot, number in active.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Corrupt(f"the document of active schemes is broken: {error}") from error
