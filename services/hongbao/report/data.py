"""Owns the files that a report is drawn from; refuses to draw.

A demo's report folder holds (of another run, `hongbao report` builds the first two itself):

    report.json     one object:
        {"title": str, "campaign": str, "started_at_ms": int, "ended_at_ms": int,
         "seed": int (a demo's), "machine": {name: value},
         "figures": {name: value}  (free rows, shown as they are),
         "slots": [{"slot", "name", "scheme", "starts_at_ms", "ends_at_ms", "packets",
                    "issued", "opened", "residue_packets"}],
         "sponsors": [{"sponsor": name, "minted_fen", "credited_fen", "pending_fen",
                       "quarantined_fen", "refunded_fen", "unclaimed_fen"}]}
        `packets` of a slot is what was minted for it in the scheme that was active; the plan
        curve issues them evenly over the slot. `unclaimed_fen` includes what was refunded.
    audit.json      the audit's JSON object (minted_fen … equations)
    samples.jsonl   client/stats.py Sample.to_json, one a line
    settle.jsonl    {"at_ms", "credited": claims so far, "credited_fen": so far, "lag": claims
                     waiting, "p50_s", "p99_s": open → credited over the interval}, one a line
    faults.jsonl    {"at_ms", "until_ms" | null, "kind", "text"}, one a line; kind is one of
                     kill, zone, key, switch, scheme, store, other

Missing .jsonl files count as empty: their plots are left out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hongbao.domain.errors import NotFound, Rejected

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportData:
    """Is everything that one page shows."""

    facts: Row
    audit: Row
    samples: list[Row]
    settle: list[Row]
    faults: list[Row]

    @property
    def start_ms(self) -> int:
        return int(self.facts["started_at_ms"])

    @property
    def end_ms(self) -> int:
        return int(self.facts["ended_at_ms"])

    def second(self, at_ms: int) -> float:
        """Return a wall time as seconds of the run."""
        return (at_ms - self.start_ms) / 1000


def read_report_data(folder: Path) -> ReportData:
    """Read a report folder. Raises NotFound or Rejected with the file's name."""
    return ReportData(
        facts=_read_object(folder / "report.json"),
        audit=_read_object(folder / "audit.json"),
        samples=read_lines(folder / "samples.jsonl"),
        settle=read_lines(folder / "settle.jsonl"),
        faults=read_lines(folder / "faults.jsonl"),
    )


def _read_object(path: Path) -> Row:
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing: a report is drawn from it") from error
    except ValueError as error:
        raise Rejected(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Rejected(f"{path} holds no JSON object")
    return document


def read_lines(path: Path) -> list[Row]:
    """Read JSON lines; none where the file is missing. Raises Rejected with the line's number."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # cut by a kill
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise Rejected(f"{path}:{number} is not JSON: {error}") from error
    return rows
