"""Owns the step from a scheme of the model to its mint plans, and what may be active together.

Refuses to draw an amount and to read a file. Serials, batches, keys and files are numbered
over all schemes of a campaign, so any mix of schemes has unique packets (R42). A re-plan
after an edit covers only what has not been issued (R35, R37): issued money is a fact.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hongbao.domain.campaign import Allocation, Campaign, Scheme
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import BatchId, FileIndex, KeyId, Serial, ShardId, SlotNumber
from hongbao.domain.money import format_yuan
from hongbao.domain.plan import CHUNK_PACKETS_MAX, Batch, FilePlan, MintPlan
from hongbao.domain.problem import Problem
from hongbao.domain.ticket import BATCH_MAX, KEY_ID_MAX, SERIAL_MAX

SHARDS_MAX: Final = (1 << 16) - 1
SCHEME_NUMBER_MAX: Final = (1 << 16) - 1


@dataclass(frozen=True)
class PlanRecord:
    """Is all plans of a campaign so far, with the sponsors that their indexes mean."""

    campaign: str
    sponsors: tuple[str, ...]  # by index, from 1
    plans: tuple[MintPlan, ...]  # by scheme number

    def find_plan(self, scheme_number: int) -> MintPlan | None:
        return next((plan for plan in self.plans if plan.scheme_number == scheme_number), None)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Is the next free number of each kind."""

    scheme: int = 1
    serial: int = 1
    batch: int = 1
    key: int = 1
    file: int = 0


@dataclass(frozen=True, slots=True)
class EditFiles:
    """Names the files of an edited campaign, so that problems can say where to correct it."""

    campaign: str = ""
    sponsors: str = ""
    script: str = ""


def plan_campaign(
    campaign: Campaign, *, ticket_shards: int, claims_shards: int
) -> tuple[MintPlan, ...]:
    """Return one plan per scheme. Raises Rejected when the numbers do not suffice.

    The same model gives the same plans, whatever the order of rows in its files.
    """
    plans: list[MintPlan] = []
    for scheme in campaign.schemes:
        numbers = next_numbers(plans)
        plans.append(_plan(campaign, scheme, numbers, frozenset(), ticket_shards, claims_shards))
    return tuple(plans)


def record_plans(campaign: Campaign, plans: Sequence[MintPlan]) -> PlanRecord:
    """Return the record that a later re-plan starts from."""
    sponsors = tuple(sponsor.sponsor for sponsor in campaign.sponsors)
    return PlanRecord(campaign.campaign, sponsors, tuple(plans))


def replan(
    campaign: Campaign,
    record: PlanRecord,
    *,
    scheme: str,
    issued: Mapping[SlotNumber, int],
    ticket_shards: int,
    claims_shards: int,
) -> MintPlan:
    """Return a new plan of the edited campaign's scheme for the slots that are not issued.

    `issued` says from which scheme number each issued (or open) slot was served. Raises
    Rejected with every problem of `check_replan`.
    """
    problems = check_replan(campaign, record, scheme=scheme, issued=issued)
    edited = campaign.find_scheme(scheme)
    if problems or edited is None:
        raise Rejected("; ".join(str(problem) for problem in problems))
    numbers = next_numbers(record.plans)
    plan = _plan(campaign, edited, numbers, frozenset(issued), ticket_shards, claims_shards)
    spent = spent_fen((*record.plans, plan), _served(plan, issued))
    if any(spent[index] != deposit for index, deposit in campaign.deposits.items()):
        raise Rejected("issued and re-planned money do not make the deposits")  # totals twice
    return plan


def check_replan(
    campaign: Campaign,
    record: PlanRecord,
    *,
    scheme: str,
    issued: Mapping[SlotNumber, int],
    files: EditFiles = EditFiles(),
) -> list[Problem]:
    """Return why this edit cannot follow these plans; nothing means that it can."""
    edited = campaign.find_scheme(scheme)
    if campaign.campaign != record.campaign:
        return [_problem("campaign", f"the plans are of {record.campaign}", files.campaign)]
    if edited is None:
        return [_problem(f"scheme {scheme}", "not in the campaign", files.campaign)]
    problems = _check_sponsors(campaign, record, files.sponsors)
    for slot, number in sorted(issued.items()):
        plan = record.find_plan(number)
        if plan is None or not plan.slot_batches(slot):
            problems.append(_problem(f"slot {slot}", f"plan {number} has no packets for it"))
        elif not problems:
            problems += _check_issued_slot(campaign, edited, plan, slot, files.script)
    left = [one for one in edited.allocations if one.slot not in issued]
    if not left:
        message = "all of it is issued: nothing to plan"
        problems.append(_problem(f"scheme {scheme}", message, files.script))
    exhausted = check_numbers(left, campaign.key_cap_fen, next_numbers(record.plans))
    return problems + [replace(one, file=files.campaign) for one in exhausted]


def check_activation(
    plans: Sequence[MintPlan],
    current: Mapping[SlotNumber, int],
    wanted: Mapping[SlotNumber, int],
    opened: frozenset[SlotNumber],
    deposits: Mapping[int, int],
) -> list[Problem]:
    """Return why these slots cannot be switched to these scheme numbers.

    `wanted` changes `current`; a slot that has opened never changes, and the active slots
    together never spend more of a sponsor's money than it deposited.
    """
    by_number = {plan.scheme_number: plan for plan in plans}
    problems = []
    for slot, number in sorted(wanted.items()):
        plan = by_number.get(number)
        if plan is None:
            problems.append(_problem(f"slot {slot}", f"there is no plan {number}"))
        elif not plan.slot_batches(slot):
            problems.append(_problem(f"slot {slot}", f"plan {number} has no packets for it"))
        if slot in opened and current.get(slot) != number:
            was = current.get(slot, "nothing")
            problems.append(_problem(f"slot {slot}", f"it has opened on {was} and cannot change"))
    after = {**current, **wanted}
    for slot in sorted(current.keys() - wanted.keys()):
        if current[slot] not in by_number:
            message = f"it is active on plan {current[slot]}, which is not among these plans"
            problems.append(_problem(f"slot {slot}", message))
    if problems:
        return problems
    for sponsor, active_fen in sorted(spent_fen(plans, after).items()):
        deposit_fen = deposits.get(sponsor, 0)
        if active_fen > deposit_fen:
            active, deposit = format_yuan(active_fen), format_yuan(deposit_fen)
            message = f"the active slots spend {active} yuan of a deposit of {deposit}"
            problems.append(_problem(f"sponsor {sponsor}", message))
    return problems


def spent_fen(plans: Sequence[MintPlan], active: Mapping[SlotNumber, int]) -> Counter[int]:
    """Return each sponsor's money in the active plan of each slot, by sponsor index."""
    spent: Counter[int] = Counter()
    for plan in plans:
        for batch in plan.batches:
            if active.get(batch.slot) == plan.scheme_number:
                spent[batch.sponsor] += batch.total_fen
    return spent


def check_numbers(
    allocations: Sequence[Allocation], key_cap_fen: int, first: Numbers
) -> list[Problem]:
    """Return which of the ticket's number ranges these allocations would exhaust."""
    keys = sum(key_count(one.count, one.total_fen, key_cap_fen) for one in allocations)
    packets = sum(one.count for one in allocations)
    wanted = (
        ("keys", first.key + keys - 1, KEY_ID_MAX, "raise key_cap_yuan or merge rows"),
        ("batches", first.batch + len(allocations) - 1, BATCH_MAX, "merge rows"),
        ("packets", first.serial + packets - 1, SERIAL_MAX, "mint fewer schemes"),
        ("schemes", first.scheme, SCHEME_NUMBER_MAX, "start a new campaign"),
    )
    return [
        _problem(what, f"{last:,} are needed with all schemes, at most {most:,} exist: {advice}")
        for what, last, most, advice in wanted
        if last > most
    ]


def key_count(count: int, total_fen: int, key_cap_fen: int) -> int:
    """Return the fewest keys that guard a batch in equal shares of at most the cap (R45).

    n packets in a row hold at most ceil(n * total / count), so a share of
    floor(cap * count / total) packets is the largest that is surely within the cap.
    """
    share_packets = min(key_cap_fen * count // total_fen, count)
    if share_packets == 0:
        raise Rejected(f"a key cap of {format_yuan(key_cap_fen)} yuan is below a single packet")
    return -(-count // share_packets)


def next_numbers(plans: Sequence[MintPlan]) -> Numbers:
    """Return the first numbers that none of these plans uses."""
    if not plans:
        return Numbers()
    return Numbers(
        scheme=max(plan.scheme_number for plan in plans) + 1,
        serial=max(plan.serial_base + plan.packets for plan in plans),
        batch=max(batch.batch for plan in plans for batch in plan.batches) + 1,
        key=max(max(batch.key_ids) for plan in plans for batch in plan.batches) + 1,
        file=max(file.file for plan in plans for file in plan.files) + 1,
    )


def _plan(
    campaign: Campaign,
    scheme: Scheme,
    first: Numbers,
    left_out: frozenset[SlotNumber],
    ticket_shards: int,
    claims_shards: int,
) -> MintPlan:
    if not (1 <= ticket_shards <= SHARDS_MAX and 1 <= claims_shards <= SHARDS_MAX):
        raise Rejected(f"1 to {SHARDS_MAX:,} shards, not {ticket_shards} and {claims_shards}")
    indexes = campaign.sponsor_indexes
    allocations = sorted(
        (one for one in scheme.allocations if one.slot not in left_out),
        key=lambda one: (one.slot, indexes[one.sponsor], one.kind),
    )
    if problems := check_numbers(allocations, campaign.key_cap_fen, first):
        raise Rejected("; ".join(str(problem) for problem in problems))
    batches = _plan_batches(campaign, allocations, first)
    files = _plan_files(batches, first.file, ticket_shards, claims_shards)
    return MintPlan(
        campaign=campaign.campaign,
        scheme=scheme.scheme,
        scheme_number=first.scheme,
        serial_base=first.serial,
        batches=batches,
        files=files,
        key_cap_fen=campaign.key_cap_fen,
    )


def _plan_batches(
    campaign: Campaign, allocations: Sequence[Allocation], first: Numbers
) -> tuple[Batch, ...]:
    batches = []
    serial, key = first.serial, first.key
    for batch_id, one in enumerate(allocations, start=first.batch):
        keys = key_count(one.count, one.total_fen, campaign.key_cap_fen)
        batches.append(
            Batch(
                batch=BatchId(batch_id),
                sponsor=campaign.sponsor_indexes[one.sponsor],
                slot=one.slot,
                kind=one.kind,
                resource=one.resource,
                curve=one.curve,
                count=one.count,
                total_fen=one.total_fen,
                min_fen=one.min_fen,
                max_fen=one.max_fen,
                serial_base=Serial(serial),
                key_ids=tuple(KeyId(number) for number in range(key, key + keys)),
            )
        )
        serial += one.count
        key += keys
    return tuple(batches)


def _plan_files(
    batches: Sequence[Batch], first_file: int, ticket_shards: int, claims_shards: int
) -> tuple[FilePlan, ...]:
    files: list[FilePlan] = []
    for slot in sorted({batch.slot for batch in batches}):
        counts = [batch.count for batch in batches if batch.slot == slot]
        chunks, shards = _slot_grid(counts, ticket_shards)
        for ticket_shard in range(shards):
            file = first_file + len(files)
            files.append(
                FilePlan(
                    file=FileIndex(file),
                    slot=slot,
                    ticket_shard=ticket_shard,
                    claims_shard=ShardId(file % claims_shards),
                    chunk_start=chunks * ticket_shard // shards,
                    chunk_end=chunks * (ticket_shard + 1) // shards,
                )
            )
    return tuple(files)


def _slot_grid(counts: Sequence[int], ticket_shards: int) -> tuple[int, int]:
    """Return (chunks, files) of a slot: no chunk above the limit, none empty, files alike.

    A chunk holds at most ceil(count / chunks) of each batch, hence the margin of one packet a
    batch. At most BATCH_MAX batches need fewer chunks than a third of the largest batch's
    packets, so every chunk gets a packet of that batch.
    """
    shards = min(ticket_shards, max(counts))
    assert len(counts) <= BATCH_MAX < CHUNK_PACKETS_MAX // 4
    needed = -(-sum(counts) // (CHUNK_PACKETS_MAX - len(counts)))
    return shards * -(-needed // shards), shards


def _check_sponsors(campaign: Campaign, record: PlanRecord, file: str) -> list[Problem]:
    now = [sponsor.sponsor for sponsor in campaign.sponsors]
    problems = []
    for index, sponsor in enumerate(record.sponsors, start=1):
        found = now[index - 1] if index <= len(now) else "nobody"
        if found != sponsor:
            message = f"sponsor {index} was {sponsor} and is {found}: keep the row, append new ones"
            problems.append(_problem(f"sponsor {sponsor}", message, file))
    return problems


def _check_issued_slot(
    campaign: Campaign, edited: Scheme, plan: MintPlan, slot: SlotNumber, file: str
) -> list[Problem]:
    issued = spent_fen([plan], {slot: plan.scheme_number})
    written: Counter[int] = Counter()
    for one in edited.allocations:
        if one.slot == slot:
            written[campaign.sponsor_indexes[one.sponsor]] += one.total_fen
    problems = []
    for sponsor in campaign.sponsors:
        was_fen, is_fen = issued[sponsor.index], written[sponsor.index]
        if was_fen != is_fen:
            was, now = format_yuan(was_fen), format_yuan(is_fen)
            message = f"slot {slot} has issued {was} yuan, the script says {now}: issued stays"
            problems.append(_problem(f"sponsor {sponsor.sponsor}", message, file))
    return problems


def _served(plan: MintPlan, issued: Mapping[SlotNumber, int]) -> dict[SlotNumber, int]:
    return {**{batch.slot: plan.scheme_number for batch in plan.batches}, **issued}


def _problem(what: str, message: str, file: str = "") -> Problem:
    return Problem(file, 0, what, message)
