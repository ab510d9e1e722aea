"""Owns the checks that need no ticket: campaign against plan, plan against manifest, the table.

R54's first two checks, config against budget and files against script.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from hongbao.domain import manifest as manifests
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Corrupt
from hongbao.domain.manifest import FileRange, Manifest
from hongbao.domain.plan import MintPlan
from hongbao.verify.report import Findings

TABLE_READ_BYTES: Final = 1 << 22
Row = tuple[int, int, str, int, int]  # sponsor, slot, kind, packets, fen


def check_budget(campaign: Campaign, plan: MintPlan, findings: Findings) -> None:
    """Compare the plan's batches with the scheme's allocations in the slots it plans."""
    scheme = campaign.find_scheme(plan.scheme)
    if scheme is None or campaign.campaign != plan.campaign:
        findings.add("budget", f"the campaign has no scheme {plan.scheme}")
        return
    slots = {batch.slot for batch in plan.batches}
    wanted: Counter[Row] = Counter(
        (campaign.sponsor_indexes[one.sponsor], one.slot, one.kind, one.count, one.total_fen)
        for one in scheme.allocations
        if one.slot in slots
    )
    planned: Counter[Row] = Counter(
        (batch.sponsor, batch.slot, batch.kind, batch.count, batch.total_fen)
        for batch in plan.batches
    )
    for label, rows in (("not planned", wanted - planned), ("not budgeted", planned - wanted)):
        for sponsor, slot, kind, count, total_fen in sorted(rows.elements()):
            findings.add(
                "budget",
                f"sponsor {sponsor}, slot {slot}, {kind}: {count} packets with {total_fen} fen "
                f"are {label}",
            )


def check_plan_disjoint(plan: MintPlan, findings: Findings) -> None:
    """Check that no serial, no key and no chunk stands twice, which uniqueness rests on."""
    ends = plan.serial_base
    for batch in sorted(plan.batches, key=lambda one: one.serial_base):
        if batch.serial_base != ends:
            findings.add("plan", f"batch {batch.batch}: serials do not follow on {ends}")
        ends = batch.serial_base + batch.count
    keys = Counter(key_id for batch in plan.batches for key_id in batch.key_ids)
    doubled = sorted(key_id for key_id, times in keys.items() if times > 1)
    findings.add_many("plan", doubled, "key {} guards more than one batch")
    for slot in sorted({file.slot for file in plan.files}):
        chunks = [
            chunk
            for file in plan.slot_files(slot)
            for chunk in range(file.chunk_start, file.chunk_end)
        ]
        if sorted(chunks) != list(range(len(chunks))):
            findings.add("plan", f"slot {slot}: the files do not hold every chunk once")


def read_manifest(
    plan: MintPlan, root: Path, verify_key: bytes, findings: Findings
) -> Manifest | None:
    """Return the signed manifest after comparing it with the plan, or None."""
    data = root / manifests.manifest_name(plan.campaign, plan.scheme_number)
    signature = root / manifests.signature_name(plan.campaign, plan.scheme_number)
    if not data.is_file() or not signature.is_file():
        findings.add("missing", "the manifest or its signature is not there")
        return None
    try:
        manifest = manifests.parse_manifest(data.read_bytes(), signature.read_bytes(), verify_key)
    except Corrupt as error:
        findings.add("signature", str(error))
        return None
    for problem in _manifest_problems(plan, manifest):
        findings.add("manifest", problem)
    for use in manifest.keys:
        if use.fen > plan.key_cap_fen:
            findings.add("key_cap", f"key {use.key_id} guards {use.fen} of {plan.key_cap_fen} fen")
    return manifest


def _manifest_problems(plan: MintPlan, manifest: Manifest) -> Iterator[str]:
    for field in (
        "campaign",
        "scheme",
        "scheme_number",
        "serial_base",
        "packets",
        "total_fen",
        "key_cap_fen",
        "batches",
    ):
        if getattr(manifest, field) != getattr(plan, field):
            yield f"{field} is not the plan's"
    if manifest.keys != manifests.plan_key_uses(plan):
        yield "the keys' shares of money are not the plan's"
    if len(manifest.files) != len(plan.files):
        yield f"{len(manifest.files)} files, the plan has {len(plan.files)}"
    for file, planned in zip(manifest.files, plan.files, strict=False):
        ranges = plan.file_ranges(planned)
        wanted = (
            planned.file,
            planned.slot,
            planned.ticket_shard,
            planned.claims_shard,
            sum(end - start for _, start, end in ranges),
            sum(batch.money_fen(end) - batch.money_fen(start) for batch, start, end in ranges),
            tuple(FileRange(batch.batch, start, end) for batch, start, end in ranges),
        )
        if wanted != (
            file.file,
            file.slot,
            file.ticket_shard,
            file.claims_shard,
            file.count,
            file.total_fen,
            file.ranges,
        ):
            yield f"file {file.file} is not the plan's"
    leaves = [*(file.sha256 for file in manifest.files), manifest.amounts.sha256]
    if manifest.merkle_root != manifests.merkle_root(leaves):
        yield "the merkle root does not follow from the hashes"


def check_table(plan: MintPlan, manifest: Manifest | None, root: Path, findings: Findings) -> None:
    """Check the table's size and hash, and sum its amounts by batch."""
    path = root / manifests.amounts_name(plan.campaign, plan.scheme_number)
    if not path.is_file():
        findings.add("missing", "the table of amounts is not there")
        return
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while octets := stream.read(TABLE_READ_BYTES):
            digest.update(octets)
    if manifest is not None and manifest.amounts.sha256 != digest.hexdigest():
        findings.add("hash", "the table's hash is not the manifest's")
    table_bytes = path.stat().st_size
    if table_bytes != plan.packets * 4:
        findings.add("size", f"{table_bytes} bytes instead of {plan.packets * 4}")
        return
    table = np.memmap(path, dtype=">u4", mode="r")
    for batch in plan.batches:
        start = batch.serial_base - plan.serial_base
        fen = int(table[start : start + batch.count].sum(dtype=np.int64))
        if fen != batch.total_fen:
            findings.add(
                "sum", f"batch {batch.batch}: {fen} fen in the table, not {batch.total_fen}"
            )
