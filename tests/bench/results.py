"""What a bench writes: machine, results with their peers and targets, as JSON and as a table."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BUSY_LOAD = 0.5
STEPS = 1_000_000


@dataclass(frozen=True)
class Result:
    """Is one row: ours beside one peer, both medians of the same alternating rounds."""

    name: str
    value: float | None
    unit: str
    peer: str = ""
    peer_value: float | None = None
    target: float | None = None
    """What ours should reach; None: only shown."""
    target_ratio: float | None = None
    """What ours over the peer's should reach."""
    lower_is_better: bool = False
    rounds: list[float] = field(default_factory=list)
    peer_rounds: list[float] = field(default_factory=list)
    note: str = ""
    skipped: str = ""

    @property
    def ratio(self) -> float | None:
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    @property
    def verdict(self) -> str:
        """Return met, missed, or nothing where there is no target or no value."""
        checks = []
        if self.value is not None and self.target is not None:
            met = self.value <= self.target if self.lower_is_better else self.value >= self.target
            checks.append(met)
        if self.peer_value is not None and self.target_ratio is not None:
            # A peer that answered nothing is a broken comparison, not a win.
            checks.append(self.ratio is not None and self.ratio >= self.target_ratio)
        if not checks:
            return ""
        return "met" if all(checks) else "missed"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "verdict": self.verdict}


def compare(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: str = "",
    theirs: Sequence[float] = (),
    **more: Any,
) -> Result:
    """Build a row of medians from the rounds."""
    return Result(
        name,
        statistics.median(ours),
        unit,
        peer,
        statistics.median(theirs) if theirs else None,
        rounds=[round(value, 3) for value in ours],
        peer_rounds=[round(value, 3) for value in theirs],
        **more,
    )


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return what the figures depend on; `folder` lies on the disk that is measured."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "load_before": round(os.getloadavg()[0], 2),
        "python_step_ns": round(_python_step_ns(), 1),
        "fsync_ms_p50": round(_fsync_ms(folder), 3),
    }


def _python_step_ns() -> float:
    """Return what one step of a plain loop costs: the speed by which runs can be compared."""
    best = float("inf")
    for _ in range(5):
        total, began = 0, time.perf_counter()
        for number in range(STEPS):
            total += number
        best = min(best, time.perf_counter() - began)
    return best / STEPS * 1e9


def write_results(path: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "results": [result.to_json() for result in results]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def show_results(machine: dict[str, Any], results: Sequence[Result]) -> None:
    table = Table(title=" · ".join(f"{name} {value}" for name, value in machine.items()))
    for column in ("name", "value", "unit", "peer", "peer value", "ratio", "target", ""):
        table.add_column(column, justify="left" if column in ("name", "unit", "peer") else "right")
    for row in results:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        wanted = [f"{_number(row.target)}" if row.target is not None else ""]
        wanted += [f"×{row.target_ratio:g}" if row.target_ratio else ""]
        verdict = {"met": "[green]met[/]", "missed": "[red]missed[/]"}.get(row.verdict, "")
        table.add_row(
            row.name,
            _number(row.value),
            row.unit,
            row.peer,
            _number(row.peer_value),
            ratio,
            " ".join(wanted).strip(),
            "[yellow]skipped[/]" if row.skipped else verdict,
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    if machine["load_before"] > BUSY_LOAD:
        console.print(
            f"[yellow]The machine was busy before (load {machine['load_before']}): "
            "figures are lower than it can do.[/]"
        )
    for row in results:
        if row.skipped or row.note:
            console.print(f"{row.name}: {row.skipped or row.note}", style="dim")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _fsync_ms(folder: Path) -> float:
    """Return the median time of writing and syncing 4 KiB."""
    path = folder / "fsync"
    times = []
    with path.open("wb") as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    path.unlink()
    return statistics.median(times)
