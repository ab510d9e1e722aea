"""Owns the detailed tables of an audit, as JSON for the report; refuses to judge."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from hongbao.audit.findings import Findings, Verdict
from hongbao.audit.ledger_pass import LedgerSums
from hongbao.audit.log_pass import LogSums
from hongbao.audit.packets import Packets
from hongbao.audit.residue import FileCursor
from hongbao.audit.totals import Totals
from hongbao.domain.campaign import Campaign, Sponsor

Row = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """Is an audit in detail; every row is plain JSON."""

    verdicts: tuple[Verdict, ...]
    slots: list[Row]
    sponsors: list[Row]
    keys: list[Row]
    files: list[Row]
    pods: list[Row]
    residues: list[Row]
    quarantine: Row
    logs: list[Row]
    opened_per_second: list[Row]
    credited_per_second: list[Row]

    def document(self) -> Row:
        """Return the tables as one JSON object."""
        rows = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "verdicts"
        }
        return {"verdicts": [asdict(one) | {"holds": one.holds} for one in self.verdicts], **rows}


def build_tables(
    campaign: Campaign,
    packets: Packets,
    slots: Mapping[int, Totals],
    sponsors: Mapping[int, Totals],
    ledger: LedgerSums,
    logs: LogSums,
    cursors: Mapping[int, FileCursor],
    findings: Findings,
) -> Tables:
    """Lay out what the passes found."""
    return Tables(
        verdicts=findings.verdicts(),
        slots=_slot_rows(campaign, packets, slots, cursors),
        sponsors=_sponsor_rows(campaign, sponsors, ledger),
        keys=_key_rows(packets, logs),
        files=_file_rows(packets, logs, cursors),
        pods=[
            {"pod": pod, "packets_opened": count, "opened_fen": logs.by_pod.fen[pod]}
            for pod, count in sorted(logs.by_pod.packets.items())
        ],
        residues=[
            asdict(one) | {"packets": one.packets}
            for cursor in cursors.values()
            for one in cursor.residues
        ],
        quarantine={
            "reasons": dict(sorted(ledger.quarantine_reasons.items())),
            "first": ledger.quarantine,
        },
        logs=list(logs.shards),
        opened_per_second=[
            {"second": second, "packets": count}
            for second, count in sorted(logs.opened_per_second.items())
        ],
        credited_per_second=_credited_rows(ledger),
    )


def _slot_rows(
    campaign: Campaign,
    packets: Packets,
    slots: Mapping[int, Totals],
    cursors: Mapping[int, FileCursor],
) -> list[Row]:
    schemes = {one.scheme_number: one.scheme for one in packets.manifests}
    names: dict[int, str] = {slot.slot: slot.name for slot in campaign.slots}
    rows = []
    for slot, found in sorted(slots.items()):
        files = [cursors[int(one.file)] for one in packets.active_files() if one.slot == slot]
        number = packets.active[slot]
        head = {"slot": slot, "name": names.get(slot, ""), "scheme_number": number}
        tail = {
            "scheme": schemes[number],
            "packets_reserved": sum(one.reserved for one in files),
            "residue_packets": sum(one.residue_packets for one in files),
        }
        rows.append(head | tail | asdict(found))
    return rows


def _sponsor_rows(
    campaign: Campaign, sponsors: Mapping[int, Totals], ledger: LedgerSums
) -> list[Row]:
    names: dict[int, Sponsor] = {sponsor.index: sponsor for sponsor in campaign.sponsors}
    rows = []
    for index in sorted(set(sponsors) | set(names)):
        sponsor = names.get(index)
        head = {
            "index": index,
            "sponsor": sponsor.sponsor if sponsor else "",
            "name": sponsor.name if sponsor else "",
            "deposit_fen": sponsor.deposit_fen if sponsor else 0,
            "paid_in_fen": ledger.paid_in[index],
            "refunded_fen": ledger.refunded[index],
            "surplus_fen": ledger.surplus[index],
        }
        rows.append(head | asdict(sponsors.get(index, Totals())))
    return rows


def _key_rows(packets: Packets, logs: LogSums) -> list[Row]:
    return [
        {
            "key_id": int(use.key_id),
            "scheme_number": manifest.scheme_number,
            "minted_fen": use.fen,
            "cap_fen": manifest.key_cap_fen,
            "packets_minted": use.packets,
            "opened_fen": logs.by_key.fen[use.key_id],
            "packets_opened": logs.by_key.packets[use.key_id],
        }
        for manifest in packets.manifests
        for use in manifest.keys
    ]


def _file_rows(packets: Packets, logs: LogSums, cursors: Mapping[int, FileCursor]) -> list[Row]:
    return [
        {
            "file": int(file.file),
            "slot": int(file.slot),
            "ticket_shard": file.ticket_shard,
            "claims_shard": int(file.claims_shard),
            "name": file.name,
            "packets": file.count,
            "minted_fen": file.total_fen,
            "packets_reserved": cursors[int(file.file)].reserved,
            "residue_packets": cursors[int(file.file)].residue_packets,
            "packets_opened": logs.by_file.packets[int(file.file)],
            "opened_fen": logs.by_file.fen[int(file.file)],
        }
        for file in packets.active_files()
    ]


def _credited_rows(ledger: LedgerSums) -> list[Row]:
    rows = []
    for second, buckets in groupby(ledger.credited_per_second, key=lambda row: row[0]):
        pairs = [(bucket, claims) for _, bucket, claims in buckets]
        rows.append(
            {
                "second": second,
                "claims": sum(claims for _, claims in pairs),
                "p50_s": bucket_quantile_s(pairs, 0.5),
                "p99_s": bucket_quantile_s(pairs, 0.99),
            }
        )
    return rows


def bucket_quantile_s(pairs: list[tuple[int, int]], share: float) -> float:
    """Return a quantile of the ledger's histogram: bucket b ends at 2^(b / 16) − 1 ms."""
    total, seen = sum(claims for _, claims in pairs), 0
    for bucket, claims in sorted(pairs):
        seen += claims
        if seen >= total * share:
            return float(round((2 ** (bucket / 16) - 1) / 1000, 6))
    return 0.0
