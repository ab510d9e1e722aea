"""Owns what a load run counts: live totals for the terminal, and one sample per interval.

A sample is what `report` plots (report/data.py documents the JSON lines).
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from hongbao.client.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Latency:
    """Is a summary of durations, from the time the call was due."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, histogram: Histogram) -> "Latency":
        return cls(
            histogram.count,
            round(histogram.percentile_ms(50), 3),
            round(histogram.percentile_ms(99), 3),
            round(histogram.max_us / 1000, 3),
        )


@dataclass
class Totals:
    """Counts what happened; the keys of the counters are outcome or status names."""

    wanted: int = 0
    """Shakes that the plan asked for."""
    held_back: int = 0
    """Wanted shakes that an obeying client did not send, as the server had told it to wait."""
    shakes: Counter[str] = field(default_factory=Counter)
    """Answers to shakes: ShakeOutcome names, else gRPC status names, LOST, NO_GATEWAY."""
    opens: Counter[str] = field(default_factory=Counter)
    """Definite ends of opens: OpenOutcome names, refusing status names, or UNRESOLVED."""
    open_repeats: Counter[str] = field(default_factory=Counter)
    """Why opens were repeated."""
    shed: int = 0
    """Calls that a server refused because it had too much to do."""
    opened_fen: int = 0
    shake_latency: Histogram = field(default_factory=Histogram)
    open_latency: Histogram = field(default_factory=Histogram)
    late_s_max: float = 0.0
    """How late the generator itself was; figures of a run where it is large are not to be used."""

    def add(self, other: "Totals") -> None:
        self.wanted += other.wanted
        self.held_back += other.held_back
        self.shakes.update(other.shakes)
        self.opens.update(other.opens)
        self.open_repeats.update(other.open_repeats)
        self.shed += other.shed
        self.opened_fen += other.opened_fen
        self.shake_latency.add(other.shake_latency)
        self.open_latency.add(other.open_latency)
        self.late_s_max = max(self.late_s_max, other.late_s_max)


@dataclass(frozen=True, slots=True)
class Sample:
    """Is one interval of a load run; counts are of the interval, gauges are at its end."""

    at_ms: int
    """Wall time of the interval's end."""
    elapsed_s: float
    interval_s: float
    phase: str
    wanted: int
    held_back: int
    shakes: dict[str, int]
    opens: dict[str, int]
    open_repeats: dict[str, int]
    shed: int
    opened_fen: int
    shake_latency: Latency
    open_latency: Latency
    shakes_in_flight: int
    opens_waiting: int
    gateways_up: int
    late_ms: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class LoadStats:
    """Is the live view of a run: read it at any time, from the same event loop."""

    total: Totals = field(default_factory=Totals)
    """All closed intervals."""
    interval: Totals = field(default_factory=Totals)
    """The interval being counted now."""
    phase: str = ""
    shakes_in_flight: int = 0
    opens_waiting: int = 0
    gateways_up: int = 0
    sessions: int = 0

    def cut(self, *, at_ms: int, elapsed_s: float, interval_s: float) -> Sample:
        """Close the interval, add it to the totals and return it."""
        done, self.interval = self.interval, Totals()
        self.total.add(done)
        return Sample(
            at_ms=at_ms,
            elapsed_s=round(elapsed_s, 3),
            interval_s=round(interval_s, 3),
            phase=self.phase,
            wanted=done.wanted,
            held_back=done.held_back,
            shakes=dict(done.shakes),
            opens=dict(done.opens),
            open_repeats=dict(done.open_repeats),
            shed=done.shed,
            opened_fen=done.opened_fen,
            shake_latency=Latency.of(done.shake_latency),
            open_latency=Latency.of(done.open_latency),
            shakes_in_flight=self.shakes_in_flight,
            opens_waiting=self.opens_waiting,
            gateways_up=self.gateways_up,
            late_ms=round(done.late_s_max * 1000, 1),
        )
