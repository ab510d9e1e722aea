"""How much a bench measures, and how ours and a peer's figures become words."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.pinned import Unavailable
from tests.bench.results import Result


@dataclass(frozen=True)
class Scale:
    """Is how much is measured."""

    rounds: int
    seconds: float
    packets: int
    """Minted and mapped in the main run."""
    folder: Path
    settle_s: float = 15.0
    """How long an overloaded server and its callers get to come to terms."""


Bench = Callable[[Scale], Awaitable[list[Result]]]
Run = dict[str, Any]  # what tests.bench.drive prints


def try_peer(stack: ExitStack, peer: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a peer gives, or None and why it is skipped."""
    try:
        return stack.enter_context(peer()), ""
    except Unavailable as reason:
        return None, f"peer skipped: {reason}"


def rates(runs: Iterable[Run]) -> list[float]:
    return [run["per_s"] for run in runs]


def describe_cost(runs: Iterable[Run], cost_s: Mapping[str, float]) -> str:
    """Say what a call costs each process: the profile of a miss."""
    answers = sum(sum(run["outcomes"].values()) for run in runs) or 1
    parts = [f"{name} {used / answers * 1e6:.0f} µs" for name, used in sorted(cost_s.items())]
    return f"processor time a call: {', '.join(parts)}"


def describe(runs: list[Run]) -> str:
    """Say what the answers were and how long they took, over all rounds."""
    outcomes: dict[str, int] = {}
    for run in runs:
        for name, count in run["outcomes"].items():
            outcomes[name] = outcomes.get(name, 0) + count
    whole = sum(outcomes.values()) or 1
    shares = [f"{name} {count / whole:.1%}" for name, count in sorted(outcomes.items())]
    p50, p99 = (max(run[name] for run in runs) for name in ("p50_ms", "p99_ms"))
    return f"{', '.join(shares)}; worst round p50 {p50:.1f} ms, p99 {p99:.1f} ms"
