"""Owns how a report's facts and credits follow from the audit's tables; all functions are pure."""

from typing import Any

from hongbao.domain.campaign import Campaign
from hongbao.domain.timeline import OPEN_GRACE_MS, Timeline
from hongbao.report.data import Row


def build_facts(
    audit: Row, campaign: Campaign, timeline: Timeline, *, ended_at_ms: int
) -> dict[str, Any]:
    """Return what report.json holds at least; `timeline` is what the run really played."""
    slots = {row["slot"]: row for row in audit["slots"]}
    return {
        "title": campaign.title,
        "campaign": campaign.campaign,
        "started_at_ms": timeline.slots[0].starts_at_ms,
        "ended_at_ms": ended_at_ms,
        "slots": [
            {
                "slot": slot.slot,
                "name": slot.name,
                "scheme": row["scheme"],
                "starts_at_ms": slot.starts_at_ms,
                "ends_at_ms": slot.ends_at_ms,
                "packets": row["packets_minted"],
                "issued": row["packets_reserved"] - row["residue_packets"],
                "opened": row["packets_opened"],
                "residue_packets": row["residue_packets"],
            }
            for slot in timeline.slots
            if (row := slots.get(slot.slot)) is not None
        ],
        "sponsors": [
            {**row, "sponsor": row["name"] or row["sponsor"]} for row in audit["sponsors"]
        ],
    }


def build_settle_rows(audit: Row) -> list[Row]:
    """Return credits by second, from the ledger's own histogram, and what waited meanwhile.

    Seconds in which nothing was opened or credited are left out, but for the last before one.
    """
    opened = {row["second"]: row["packets"] for row in audit["opened_per_second"]}
    credited = {row["second"]: row for row in audit["credited_per_second"]}
    busy = opened.keys() | credited.keys()
    rows, opened_so_far, credited_so_far = [], 0, 0
    for second in sorted(busy | {second - 1 for second in busy}):
        opened_so_far += opened.get(second, 0)
        row = credited.get(second, {"claims": 0, "p50_s": None, "p99_s": None})
        credited_so_far += row["claims"]
        rows.append(
            {
                "at_ms": (second + 1) * 1000,
                "credited": credited_so_far,
                "lag": max(0, opened_so_far - credited_so_far),
                "p50_s": row["p50_s"],
                "p99_s": row["p99_s"],
            }
        )
    return rows


def find_end_ms(timeline: Timeline, settle: list[Row]) -> int:
    """Return when an evening was over: its last slot, or the last credit soon behind it.

    What is credited days later, released from quarantine, would squeeze the evening to a line.
    """
    last_ms = timeline.slots[-1].ends_at_ms
    credited_ms = max((row["at_ms"] for row in settle), default=last_ms)
    return max(last_ms, min(credited_ms, last_ms + OPEN_GRACE_MS))
