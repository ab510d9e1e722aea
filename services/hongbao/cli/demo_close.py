"""Owns the end of the demo: drain, catch up, refund, audit, and the report's data."""

import asyncio
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hongbao.cli.demo_faults import find_silence_s
from hongbao.cli.demo_script import EventLog
from hongbao.cli.prepare import Prepared
from hongbao.cli.rain import Rain
from hongbao.client.acknowledged import AcknowledgedOpen, read_acknowledged
from hongbao.domain.errors import Transient
from hongbao.report.facts import build_facts, build_settle_rows

CATCH_UP_S_MAX = 60.0
CATCH_UP_PAUSE_S = 0.2
SERVICE_BACK_S_MAX = 5.0


async def close_evening(
    up: Rain,
    prepared: Prepared,
    folder: Path,
    told: EventLog,
    *,
    seed: int,
    figures: Mapping[str, object],
) -> tuple[dict[str, Any], int | None]:
    """Stop taking calls, credit what was opened, refund the rest, prove it; write report data.

    `figures` are shown in the report beside its own.

    Returns the audit's line and how many opens clients were promised: None, nobody wrote it down.
    """
    for role in ("access", "redeem"):
        await up.supervisor.drain(up.of(role=role))
    await _refund_when_settled(up)
    promised = folder / "acknowledged.txt"
    written = folder / "acknowledged.jsonl"
    kept = list(read_acknowledged(written)) if written.exists() else []
    promised.write_text("".join(f"{one.packet}\n" for one in kept))
    tables = folder / "audit.json"
    options = ("--tables", str(tables), "--acknowledged", str(promised), "--json")
    status, output = await hongbao("audit", str(up.run.path), *options)
    if not tables.exists():
        raise Transient(f"the audit did not end ({status}): {output}")
    document = json.loads(tables.read_text())
    rows = "".join(json.dumps(row) + "\n" for row in build_settle_rows(document))
    (folder / "settle.jsonl").write_text(rows)
    silences = _find_silences(up, kept, prepared, told)
    figures = {
        "opens acknowledged to clients": len(kept),
        "processes that died": len(up.supervisor.deaths),
        **{f"no opens after: {text}": f"{back_s} s" for text, back_s in silences.items()},
        **figures,
    }
    _write_json(folder / "report.json", _facts(up, document, figures, seed))
    line: dict[str, Any] = json.loads(output.splitlines()[-1])
    if silences:
        known = [back_s for back_s in silences.values() if back_s is not None]
        line["service_back_s_max"] = max(known) if len(known) == len(silences) else None
    return line, len(kept) if written.exists() else None


def _find_silences(
    up: Rain, kept: Sequence[AcknowledgedOpen], prepared: Prepared, told: EventLog
) -> dict[str, float | None]:
    """Return how long service stood still after each fault of a store, in seconds.

    None: nothing was opened when it came, or its slot ended before service had to be back.
    """
    silences: dict[str, float | None] = {}
    for row in told.rows:
        at_ms = int(str(row["at_ms"]))
        slot = up.timeline.slot_at(at_ms)
        if row["kind"] == "store" and slot is not None:
            second = (at_ms - up.timeline.slots[0].starts_at_ms) // 1000
            text, manifests = f"{row['text']} ({second} s)", prepared.manifests
            watched_s = (slot.ends_at_ms - at_ms) / 1000
            silence_s = find_silence_s(kept, manifests, at_ms, slot.ends_at_ms)
            silences[text] = silence_s if watched_s > SERVICE_BACK_S_MAX else None
    return silences


def find_unproved(
    line: dict[str, Any], load_status: int | None, promises: int | None, failed: Sequence[str]
) -> list[str]:
    """Return why equations that hold would say nothing: there was too little to hold."""
    problems = [f"event failed: {text}" for text in failed]
    if load_status is None:
        problems.append("the load did not end in time: see logs/load.log")
    elif load_status:
        problems.append(f"the load ended with status {load_status}: see logs/load.log")
    if promises is None:
        problems.append("the load wrote no file of acknowledged opens")
    elif not promises:
        problems.append("no client saw a packet opened")
    if not line["packets_opened"]:
        problems.append("no packet was opened")
    back_s = line.get("service_back_s_max", 0.0)
    if back_s is None:
        problems.append("when a store was broken nothing was opened, or too late in its slot")
    elif back_s > SERVICE_BACK_S_MAX:
        problems.append(f"service was back only {back_s:g} s after a fault of a store")
    return problems


async def hongbao(*arguments: str) -> tuple[int, str]:
    """Run a `hongbao` command as an operator would; return its exit status and output."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hongbao.cli.main",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await child.communicate()
    return child.returncode or 0, output.decode().strip()


async def _refund_when_settled(up: Rain) -> None:
    """Refund as soon as every claim is settled: nothing can be opened any more."""
    give_up_s = up.clock.monotonic_s() + CATCH_UP_S_MAX
    while True:
        status, output = await hongbao(
            "fund", "refund", "--grace-s", "0", "--run", str(up.run.path)
        )
        if status == 0:
            return
        if up.clock.monotonic_s() > give_up_s:
            raise Transient(f"no refunds after {CATCH_UP_S_MAX:g} s: {output}")
        await asyncio.sleep(CATCH_UP_PAUSE_S)


def _facts(
    up: Rain, audit: dict[str, Any], figures: Mapping[str, object], seed: int
) -> dict[str, Any]:
    ended_at_ms = max(up.timeline.slots[-1].ends_at_ms, up.clock.wall_ms())
    return {
        **build_facts(audit, up.campaign, up.timeline, ended_at_ms=ended_at_ms),
        "seed": seed,
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(terse=True),
            "served by": "Envoy with Python inside" if up.embedding.library else "grpcio",
        },
        "figures": figures,
    }


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
