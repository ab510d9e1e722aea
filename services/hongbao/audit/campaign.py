"""Owns the audit of a campaign: it recomputes all money from logs, amount tables and ledger.

The order is what makes a live audit sound: the ledger's snapshot first, then the logs, which
only grow. So whatever the ledger moved must be in the logs, and a claim that the ledger has not
seen yet lies behind its position and counts as pending (design §4; R51, R54).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hongbao.audit import totals
from hongbao.audit.findings import Findings
from hongbao.audit.ledger_pass import LedgerSums, read_ledger
from hongbao.audit.log_pass import LogSums, read_logs
from hongbao.audit.packets import Packets
from hongbao.audit.residue import FileCursor, Instance, read_cursors
from hongbao.audit.tables import Tables, build_tables
from hongbao.audit.totals import Totals
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected
from hongbao.domain.manifest import Manifest
from hongbao.shards.ports import LogStore


@dataclass(frozen=True)
class AuditInput:
    """Is everything that an audit reads."""

    campaign: Campaign
    schemes: Sequence[tuple[Manifest, Path]]  # verified manifests, local amount tables
    active: Mapping[int, int]  # slot → scheme number
    log_store: LogStore
    ledger: sa.Engine
    alive: Collection[Instance] = ()
    """Pods and epochs that still run: what they reserved is no residue."""
    acknowledged: Iterable[int] = ()
    """Serials that clients saw opened, where somebody kept them."""


@dataclass(frozen=True)
class AuditReport:
    """Is the outcome of an audit."""

    line: dict[str, Any]
    """The one JSON object of the demo's last line."""
    tables: Tables

    @property
    def holds(self) -> bool:
        return bool(self.line["equations"] == "hold")

    def document(self) -> dict[str, Any]:
        """Return the line's fields and every table as one JSON object, for the report."""
        return {**self.line, **self.tables.document()}


async def audit_campaign(given: AuditInput) -> AuditReport:
    """Audit a campaign, live or closed. Raises Rejected when no scheme is active."""
    if not given.active:
        raise Rejected("no scheme is active in any slot: nothing to audit", field="campaign")
    findings = Findings()
    packets = Packets(given.schemes, given.active)
    packets.check_tables(findings)
    ledger = read_ledger(given.ledger, packets, findings)
    logs = await read_logs(given.log_store, packets, ledger.positions, findings)
    cursors = await read_cursors(given.log_store, packets.active_files(), given.alive, findings)
    slots, sponsors, whole = totals.sum_packets(packets)
    for place in totals.paid_without_claim(packets):
        findings.add("paid_as_claimed", place=place, says="a transfer without a claim")
    missing = totals.find_missing(packets, given.acknowledged)
    for serial in missing:
        findings.add("acknowledged_claims_kept", serial=serial)
    _check_sums(whole, packets, ledger, logs, findings)
    _check_sponsors(given.campaign, sponsors, ledger, findings)
    _check_keys(packets, logs, findings)
    _check_files(cursors, logs, findings)
    line = _line(whole, ledger, logs, cursors, findings, len(missing))
    tables = build_tables(given.campaign, packets, slots, sponsors, ledger, logs, cursors, findings)
    return AuditReport(line, tables)


def _check_sums(
    whole: Totals, packets: Packets, ledger: LedgerSums, logs: LogSums, findings: Findings
) -> None:
    """Compare sums that come from different sources: manifests, tables, logs, ledger."""
    minted_fen = sum(batch.total_fen for _, batch in packets.active_batches())
    opened_fen = logs.by_key.fen.total()
    findings.must_equal("minted_is_accounted", minted_fen, opened_fen + whole.unclaimed_fen)
    accounted_fen = ledger.credited_fen + whole.pending_fen + whole.quarantined_fen
    findings.must_equal("opened_is_accounted", whole.opened_fen, accounted_fen)


def _check_sponsors(
    campaign: Campaign, sponsors: dict[int, Totals], ledger: LedgerSums, findings: Findings
) -> None:
    known = set(sponsors) | set(ledger.paid_in) | set(ledger.refunded) | set(campaign.deposits)
    for sponsor in sorted(known):
        found = sponsors.get(sponsor, Totals())
        refunded = ledger.refunded[sponsor]
        where = {"sponsor": sponsor}
        deposit = campaign.deposits.get(sponsor, 0)
        findings.must_cover("minted_within_deposits", deposit, found.minted_fen, **where)
        findings.must_cover("refunds_within_unclaimed", found.unclaimed_fen, refunded, **where)
        spent = ledger.credited_by_sponsor[sponsor] + ledger.pending_by_sponsor[sponsor]
        surplus = ledger.surplus[sponsor]
        unminted = max(0, ledger.paid_in[sponsor] - found.minted_fen)
        findings.must_cover("surplus_within_paid_in", unminted, surplus, **where)
        spent += found.quarantined_fen + refunded + surplus
        findings.must_cover("pools_cover_payments", ledger.paid_in[sponsor], spent, **where)


def _check_keys(packets: Packets, logs: LogSums, findings: Findings) -> None:
    for manifest in packets.manifests:
        for use in manifest.keys:
            opened = logs.by_key.fen[use.key_id]
            cap = min(manifest.key_cap_fen, use.fen)
            findings.must_cover("keys_within_caps", cap, opened, key=int(use.key_id))


def _check_files(cursors: Mapping[int, FileCursor], logs: LogSums, findings: Findings) -> None:
    """A packet that nobody can have won was opened by an insider, past the gateways.

    Counts only: the order of a file's records tells nothing about their packets. Cursors are
    read after the logs and only grow, so a live audit finds no honest open.
    """
    for file, cursor in cursors.items():
        opened = logs.by_file.packets[file]
        findings.must_cover("opened_within_reserved", cursor.reserved, opened, file=file)


def _line(
    whole: Totals,
    ledger: LedgerSums,
    logs: LogSums,
    cursors: Mapping[int, FileCursor],
    findings: Findings,
    missing: int,
) -> dict[str, Any]:
    sums = asdict(whole)
    return {
        "minted_fen": sums["minted_fen"],
        "opened_fen": sums["opened_fen"],
        "credited_fen": ledger.credited_fen,
        "pending_fen": sums["pending_fen"],
        "quarantined_fen": sums["quarantined_fen"],
        "unclaimed_fen": sums["unclaimed_fen"],
        "refunded_fen": sum(ledger.refunded.values()),
        "packets_minted": sums["packets_minted"],
        "packets_opened": sums["packets_opened"],
        "paid_twice": ledger.paid_twice,
        "claims_lost": logs.claims_lost + missing,
        "residue_packets": sum(cursor.residue_packets for cursor in cursors.values()),
        "credit_p99_s": ledger.latency.quantile_s(0.99),
        "equations": findings.broken or "hold",
    }
