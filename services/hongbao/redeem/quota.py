"""Owns how many opens a second this process has shown it can take, and publishing it.

Access issues no more packets than the redeem side has proved that it can open (R18). The proof
grows only under use and falls at once when opens become slow or fail.
"""

import json
from collections.abc import Callable
from typing import Final

import structlog

from hongbao.domain.errors import Ambiguous, Transient
from hongbao.domain.ids import CampaignId
from hongbao.redeem.limits import RedeemLimits
from hongbao.redeem.service import OpenCounts
from hongbao.shards.ports import Coordination

GROWTH: Final = 1.25
USED_SHARE: Final = 0.8
WRITES_MAX: Final = 5
ENTRY_LIFE_PERIODS: Final = 5

log = structlog.get_logger()


def next_capacity(
    capacity: float, *, opens_per_s: float, open_ms: float, failures: int, limits: RedeemLimits
) -> float:
    """Return the capacity after one period of measuring."""
    if failures or open_ms > limits.open_ms_target:
        capacity = min(capacity, max(opens_per_s, capacity / GROWTH))
    elif opens_per_s >= capacity * USED_SHARE:
        capacity *= GROWTH
    return min(max(capacity, limits.opens_per_s_lowest), limits.opens_per_s_highest)


def merge_quota(
    document: bytes, process: str, opens_per_s: float, now_ms: int, life_ms: int
) -> bytes:
    """Return the quota document with this process's entry renewed and dead or odd ones dropped."""
    live = {name: one for name, one in _entries(document) if now_ms - one["at_ms"] < life_ms}
    live[process] = {"opens_per_s": round(opens_per_s), "at_ms": now_ms}
    total = sum(one["opens_per_s"] for one in live.values())
    return json.dumps({"opens_per_s": total, "processes": live}, sort_keys=True).encode()


def _entries(document: bytes) -> list[tuple[str, dict[str, int]]]:
    """Return the entries that can be read; what is odd is measured anew within a period."""
    try:
        found = json.loads(document)["processes"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    numbers = ("opens_per_s", "at_ms")
    return [
        (name, {number: one[number] for number in numbers})
        for name, one in found
        if isinstance(one, dict) and all(_is_count(one.get(number)) for number in numbers)
    ]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class QuotaMeter:
    """Measures one process's opens between calls of `publish`."""

    def __init__(
        self,
        coordination: Coordination,
        counts: OpenCounts,
        *,
        campaign: CampaignId,
        process: str,
        wall_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
        limits: RedeemLimits,
    ) -> None:
        self._coordination: Final = coordination
        self._counts: Final = counts
        self._key: Final = f"campaigns/{campaign}/quota"
        self._process: Final = process
        self._wall_ms: Final = wall_ms
        self._monotonic_s: Final = monotonic_s
        self._limits: Final = limits
        self._last_s = monotonic_s()
        self._last = _Totals(counts)
        self.opens_per_s = limits.opens_per_s_initial

    def measure(self) -> float:
        """Take the period since the last call into the capacity, and return it."""
        now_s, now = self._monotonic_s(), _Totals(self._counts)
        elapsed_s = max(now_s - self._last_s, 1e-6)
        answered = now.answered - self._last.answered
        waited_s = now.waited_s - self._last.waited_s
        self.opens_per_s = next_capacity(
            self.opens_per_s,
            opens_per_s=answered / elapsed_s,
            open_ms=1000 * waited_s / answered if answered else 0.0,
            failures=now.failures - self._last.failures,
            limits=self._limits,
        )
        self._last_s, self._last = now_s, now
        return self.opens_per_s

    async def publish(self) -> None:
        """Measure, and merge the result into the quota document."""
        opens_per_s = self.measure()
        life_ms = int(1000 * self._limits.quota_period_s * ENTRY_LIFE_PERIODS)
        for _ in range(WRITES_MAX):
            stored = await self._coordination.read(self._key)
            merged = merge_quota(stored.value, self._process, opens_per_s, self._wall_ms(), life_ms)
            try:
                if await self._coordination.compare_and_put(
                    self._key, merged, revision=stored.revision
                ):
                    return
            except Ambiguous:
                continue
        raise Transient(f"{self._key}: {WRITES_MAX} writes lost the race")


class _Totals:
    """Is what the counts say at one moment."""

    def __init__(self, counts: OpenCounts) -> None:
        self.answered = counts.opened + counts.repeated + counts.already_opened
        self.waited_s = counts.open_s
        self.failures = counts.failed + counts.shed
