"""Owns what a plan must satisfy before a single packet is drawn; refuses to mint a bad one.

The plan comes from domain/script.py, but money is at stake and a plan may come from a file: each
rule is checked again here, against the formats and the key cap (R45, R54).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from hongbao.domain import ticket
from hongbao.domain.errors import Rejected
from hongbao.domain.manifest import plan_key_uses
from hongbao.domain.plan import Batch, MintPlan
from hongbao.domain.split import CURVES

# A chunk holds its share of every batch, rounded: somewhat more than CHUNK_PACKETS_MAX at worst.
CHUNK_INDEX_BITS: Final = 20
PROBLEMS_TOLD_MAX: Final = 20


def check_plan(plan: MintPlan) -> None:
    """Raise Rejected with every problem of the plan, or return."""
    problems = list(plan_problems(plan))
    if problems:
        more = len(problems) - PROBLEMS_TOLD_MAX
        tail = f"; and {more} more" if more > 0 else ""
        raise Rejected(
            f"plan {plan.scheme_number} of {plan.campaign}: "
            + "; ".join(problems[:PROBLEMS_TOLD_MAX])
            + tail
        )


def plan_problems(plan: MintPlan) -> Iterator[str]:
    """Yield what is wrong with the plan, in words."""
    if not 1 <= plan.scheme_number <= 0xFFFF:
        yield f"scheme number {plan.scheme_number} does not fit 16 bits"
    if not plan.batches:
        yield "no batches"
    for batch in plan.batches:
        yield from _batch_problems(batch)
    if any(batch.count < 1 or not batch.key_ids for batch in plan.batches):
        return  # the formulas below divide by them
    yield from _serial_problems(plan)
    yield from _key_problems(plan)
    for slot in sorted({batch.slot for batch in plan.batches} | {f.slot for f in plan.files}):
        yield from _slot_problems(plan, slot)


def _batch_problems(batch: Batch) -> Iterator[str]:
    name = f"batch {batch.batch}"
    if not 0 <= batch.batch <= ticket.BATCH_MAX:
        yield f"{name}: does not fit 16 bits"
    if not (0 <= batch.slot <= 0xFFFF and 0 <= batch.sponsor <= 0xFFFF):
        yield f"{name}: slot {batch.slot} or sponsor {batch.sponsor} does not fit 16 bits"
    if batch.curve not in CURVES:
        yield f"{name}: unknown curve {batch.curve!r}"
    if batch.count < 1:
        yield f"{name}: {batch.count} packets"
    if not 1 <= batch.min_fen <= batch.max_fen <= ticket.AMOUNT_FEN_MAX:
        yield f"{name}: amounts from {batch.min_fen} to {batch.max_fen} fen"
    if not batch.count * batch.min_fen <= batch.total_fen <= batch.count * batch.max_fen:
        yield (
            f"{name}: {batch.total_fen} fen do not go into {batch.count} packets of "
            f"{batch.min_fen} to {batch.max_fen} fen"
        )
    if not batch.key_ids:
        yield f"{name}: no keys"
    if any(not 1 <= key_id <= ticket.KEY_ID_MAX for key_id in batch.key_ids):
        yield f"{name}: a key id is not within 1 to {ticket.KEY_ID_MAX}"


def _serial_problems(plan: MintPlan) -> Iterator[str]:
    """The serials of all batches must fill one range without hole or overlap."""
    if len({batch.batch for batch in plan.batches}) != len(plan.batches):
        yield "a batch number stands twice"
    expected = plan.serial_base
    for batch in sorted(plan.batches, key=lambda batch: batch.serial_base):
        if batch.serial_base != expected:
            yield f"batch {batch.batch}: serials start at {batch.serial_base}, not {expected}"
        expected = batch.serial_base + batch.count
    if not 0 <= plan.serial_base <= expected - 1 <= ticket.SERIAL_MAX:
        yield f"serials up to {expected - 1} do not fit 36 bits"


def _key_problems(plan: MintPlan) -> Iterator[str]:
    owners: dict[int, int] = {}
    for batch in plan.batches:
        for key_id in batch.key_ids:
            if key_id in owners:
                yield f"key {key_id} guards batch {owners[key_id]} and batch {batch.batch}"
            owners[key_id] = batch.batch
    for use in plan_key_uses(plan):
        if use.fen > plan.key_cap_fen:
            yield f"key {use.key_id} guards {use.fen} fen, over its cap of {plan.key_cap_fen} fen"


def _slot_problems(plan: MintPlan, slot: int) -> Iterator[str]:
    files = sorted((file for file in plan.files if file.slot == slot), key=lambda f: f.chunk_start)
    if not files:
        yield f"slot {slot}: packets but no files"
        return
    if len({file.ticket_shard for file in files}) != len(files):
        yield f"slot {slot}: a ticket shard stands twice"
    joints = [0, *(file.chunk_start for file in files)]
    if joints[1] != 0 or any(a.chunk_end != b.chunk_start for a, b in pairwise(files)):
        yield f"slot {slot}: the files do not cover every chunk once"
    if any(file.chunk_end <= file.chunk_start for file in files):
        yield f"slot {slot}: a file without chunks"
    chunks = files[-1].chunk_end
    batches = [batch for batch in plan.batches if batch.slot == slot]
    largest = max((_chunk_packets(batches, chunk, chunks) for chunk in range(chunks)), default=0)
    if largest > 1 << CHUNK_INDEX_BITS:
        yield f"slot {slot}: a chunk of {largest} packets"


def _chunk_packets(batches: Sequence[Batch], chunk: int, chunks: int) -> int:
    return sum(b.chunk_start(chunk + 1, chunks) - b.chunk_start(chunk, chunks) for b in batches)
