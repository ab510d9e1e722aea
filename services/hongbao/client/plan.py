"""Owns what a load run is told to do: rate over time, users, gateways, limits.

Refuses to know how it is done (client/load.py).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from hongbao.client.gateways import Gateway
from hongbao.domain.ids import CampaignId


@dataclass(frozen=True, slots=True)
class Phase:
    """Is a stretch of time in which the wanted rate of shakes goes from one value to another."""

    name: str
    duration_s: float
    start_per_s: float
    end_per_s: float

    def rate_per_s(self, elapsed_s: float) -> float:
        share = elapsed_s / self.duration_s
        return self.start_per_s + (self.end_per_s - self.start_per_s) * share

    def arrivals(self, elapsed_s: float) -> float:
        """Return how many shakes are wanted in the phase's first seconds."""
        return (self.start_per_s + self.rate_per_s(elapsed_s)) / 2 * elapsed_s


@dataclass(frozen=True)
class LoadPlan:
    """Is one open-loop run: shakes arrive by the plan, whatever the servers do."""

    campaign: CampaignId
    gateways: Sequence[Gateway]
    phases: Sequence[Phase]
    users: int = 2_000
    """Simulated users; each shakes every users/rate seconds, unless told to wait."""
    first_user: int = 1
    rude_share: float = 0.0
    """Share of users that ignore every order to wait; they shake again even while one runs."""
    open_packets: bool = True
    connections: int = 4
    """Connections to each gateway; a gateway takes 128 calls at once on each."""
    shake_timeout_s: float = 2.0
    open_timeout_s: float = 5.0
    session_give_up_s: float = 30.0
    drain_s: float = 30.0
    """How long opens are still repeated after the last phase."""
    sample_every_s: float = 0.5
    acknowledged: Path | None = None
    """JSON lines of every acknowledged open (client/acknowledged.py); None: not kept."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.gateways or not self.phases or self.users < 1:
            raise ValueError("a load plan needs gateways, phases and users")
        if any(p.duration_s <= 0 or min(p.start_per_s, p.end_per_s) < 0 for p in self.phases):
            raise ValueError("a phase needs a positive duration and rates that are not negative")

    @cached_property
    def _ends_s(self) -> list[float]:
        return list(accumulate(phase.duration_s for phase in self.phases))

    @cached_property
    def _arrivals(self) -> list[float]:
        return list(accumulate((p.arrivals(p.duration_s) for p in self.phases), initial=0.0))

    @property
    def duration_s(self) -> float:
        return self._ends_s[-1]

    def phase_at(self, elapsed_s: float) -> tuple[int, float]:
        """Return the phase's index and the time in it; behind the end, the end of the last."""
        index = min(bisect_right(self._ends_s, elapsed_s), len(self.phases) - 1)
        phase = self.phases[index]
        started_s = self._ends_s[index] - phase.duration_s
        return index, min(elapsed_s - started_s, phase.duration_s)

    def rate_per_s(self, elapsed_s: float) -> float:
        if elapsed_s >= self.duration_s:
            return 0.0
        index, inside_s = self.phase_at(elapsed_s)
        return self.phases[index].rate_per_s(inside_s)

    def arrivals_until(self, elapsed_s: float) -> int:
        """Return how many shakes are wanted from the start until then."""
        index, inside_s = self.phase_at(elapsed_s)
        return int(self._arrivals[index] + self.phases[index].arrivals(inside_s))
