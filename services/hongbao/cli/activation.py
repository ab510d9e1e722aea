"""Owns switching slots to another scheme in Coordination: all of them at once, or nothing.

The order is what makes a late edit safe on a run that plays (R35, R37, R42): the scheme must be
minted, then its files get pods, then edited slot times are written, then `active` changes. Killed
in between, the same call goes on.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hongbao.cli.documents import is_rehearsal
from hongbao.domain.assignment import AccessPod, Assignment, Placement, plan_assignment
from hongbao.domain.campaign import Campaign, Slot
from hongbao.domain.errors import Ambiguous, Corrupt, Rejected, Transient
from hongbao.domain.ids import SlotNumber
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import MintPlan
from hongbao.domain.problem import Problem
from hongbao.domain.script import check_activation
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Coordination, Versioned

TRIES_MAX: Final = 5
LEAD_MS: Final = 5_000  # a switch reaches every pod within this (design §6): later is too late


@dataclass(frozen=True, slots=True)
class Activation:
    """Is what a call did: the active scheme number of each slot before and after."""

    before: dict[SlotNumber, int]
    after: dict[SlotNumber, int]
    revision: int  # of the document; 0 when nothing was written
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Deployment:
    """Is what a scheme needs to be played that its run was not started with."""

    manifest: Manifest  # verified
    pods: Sequence[AccessPod]
    slots_before: tuple[Slot, ...]  # of the campaign that the run plays until now
    file: str = ""  # the campaign file, for problems with the slots in it


def check_minted(
    manifests: Sequence[Manifest],
    plans: Sequence[MintPlan],
    scheme_number: int,
    claims_shards: int,
) -> list[Problem]:
    """Return why a scheme of these plans cannot be played with what a run has minted.

    `manifests` are all of the run's, verified. Claims shards that no process owns would take no
    claim.
    """
    minted = {one.scheme_number: one for one in manifests}
    problems = []
    for plan in plans:
        found = minted.get(plan.scheme_number)
        if found is not None and found.batches != plan.batches:
            problems.append(_problem("plans", f"plan {plan.scheme_number} is not what was minted"))
    if (manifest := minted.get(scheme_number)) is None:
        message = "it is not minted into the run's objects: `hongbao mint --plans … --out …`"
        return [*problems, _problem(f"plan {scheme_number}", message)]
    shards = max(file.claims_shard for file in manifest.files) + 1
    if shards > claims_shards:
        message = f"minted for {shards} claims shards, the run has {claims_shards}"
        problems.append(_problem(f"plan {scheme_number}", message))
    return problems


async def activate_scheme(
    coordination: Coordination,
    campaign: Campaign,
    plans: Sequence[MintPlan],
    scheme_number: int,
    slots: Sequence[SlotNumber],
    *,
    wall_ms: Callable[[], int],
    lead_ms: int = LEAD_MS,
    deployment: Deployment | None = None,
) -> Activation:
    """Switch these slots (none named: all that have not opened) to a scheme (R42).

    Without a deployment the run was started with this scheme: files and times are in place. Safe
    to repeat. Raises Transient when others keep changing the documents.
    """
    key = f"campaigns/{campaign.campaign}/active"
    for _ in range(TRIES_MAX):
        told = await coordination.read(f"campaigns/{campaign.campaign}/timeline")
        timeline = Timeline.from_json(told.value) if told.value else Timeline(campaign.slots)
        stored = await coordination.read(key)
        current = _parse_active(stored.value)
        # the clock is read last: time that reading took must not shorten the lead
        now_ms = wall_ms()
        opened = timeline.opened(now_ms, lead_ms=lead_ms)
        problems: list[Problem] = []
        edited = timeline
        if deployment is not None:
            rehearsal = is_rehearsal(told.value)
            edited, problems = _edit_times(
                timeline, rehearsal, campaign, deployment, current, opened
            )
            opened |= edited.opened(now_ms, lead_ms=lead_ms)
        wanted = _wanted(plans, scheme_number, slots, current, opened)
        problems += check_activation(plans, current, wanted, opened, campaign.deposits)
        if not wanted:
            problems = [_problem("slot", f"plan {scheme_number} has no slot left to open")]
        if problems:
            return Activation(current, current, stored.revision, tuple(problems))
        if deployment is not None:
            await _assign_files(coordination, campaign, deployment)
            if edited != timeline and not await _replace(coordination, told, edited.to_json()):
                continue
        after = {**current, **wanted}
        if after == current:
            return Activation(current, current, stored.revision)
        document = {str(slot): number for slot, number in after.items()}
        value = json.dumps(document, sort_keys=True).encode()
        if written := await _replace(coordination, stored, value):
            return Activation(current, after, written.revision)
    raise Transient(f"{key} kept changing or its writes stayed unclear, {TRIES_MAX} times")


def _edit_times(
    told: Timeline,
    rehearsal: bool,
    campaign: Campaign,
    deployment: Deployment,
    current: Mapping[SlotNumber, int],
    opened: frozenset[SlotNumber],
) -> tuple[Timeline, list[Problem]]:
    """Return the timeline that the campaign wants, and why the run cannot have it.

    A rehearsal keeps its times, and none of its campaign's may be edited.
    """
    if rehearsal and campaign.slots != deployment.slots_before:
        message = "the run is a rehearsal: its times cannot be edited"
        return told, [_problem("slots", message, deployment.file)]
    if rehearsal or campaign.slots == told.slots:
        return told, []
    before = {slot.slot: slot for slot in told.slots}
    after = {slot.slot: slot for slot in campaign.slots}
    problems = [
        _problem(f"slot {slot}", "it has opened and its times cannot change", deployment.file)
        for slot in sorted(opened)
        if (after.get(slot) is None or _times(after[slot]) != _times(before[slot]))
    ]
    problems += [
        _problem(f"slot {slot}", "it has an active scheme and cannot be removed", deployment.file)
        for slot in sorted(current.keys() - after.keys() - opened)
    ]
    return Timeline(campaign.slots), problems


def _times(slot: Slot) -> tuple[int, int]:
    return slot.starts_at_ms, slot.ends_at_ms


async def _assign_files(
    coordination: Coordination, campaign: Campaign, deployment: Deployment
) -> None:
    """Give every file of the scheme that has no place one; places that exist stay (R22)."""
    key = f"campaigns/{campaign.campaign}/assignment"
    files = [(one.file, one.slot, one.ticket_shard) for one in deployment.manifest.files]
    for _ in range(TRIES_MAX):
        stored = await coordination.read(key)
        placed = _parse_assignment(stored)
        missing = [one for one in files if one[0] not in placed]
        if not missing:
            return
        if not deployment.pods:
            raise Rejected("the run has no access process to serve the files", field="run")
        after = Assignment({**plan_assignment(missing, deployment.pods).files, **placed})
        if await _replace(coordination, stored, after.to_json()):
            return
    raise Transient(f"{key} kept changing or its writes stayed unclear, {TRIES_MAX} times")


async def _replace(coordination: Coordination, stored: Versioned, value: bytes) -> Versioned | None:
    """Write a document unless it changed; None when the next read must show what happened."""
    try:
        return await coordination.compare_and_put(stored.key, value, revision=stored.revision)
    except Ambiguous:
        return None


def _wanted(
    plans: Sequence[MintPlan],
    scheme_number: int,
    slots: Sequence[SlotNumber],
    current: Mapping[SlotNumber, int],
    opened: frozenset[SlotNumber],
) -> dict[SlotNumber, int]:
    if slots:
        return dict.fromkeys(slots, scheme_number)
    found = (plan.batches for plan in plans if plan.scheme_number == scheme_number)
    planned = {batch.slot for batch in next(found, ())}
    if all(current.get(slot) == scheme_number for slot in planned):
        return dict.fromkeys(sorted(planned), scheme_number)  # repeated: all of it is in force
    return dict.fromkeys(sorted(planned - opened), scheme_number)


def _parse_active(document: bytes) -> dict[SlotNumber, int]:
    try:
        active: Mapping[str, int] = json.loads(document) if document else {}
        return {SlotNumber(int(slot)): int(number) for slot, number in active.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Corrupt(f"the document of active schemes is broken: {error}") from error


def _parse_assignment(stored: Versioned) -> dict[int, Placement]:
    try:
        return dict(Assignment.from_json(stored.value).files) if stored.value else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{stored.key} is broken: {error!r}") from error


def _problem(what: str, message: str, file: str = "") -> Problem:
    return Problem(file, 0, what, message)
