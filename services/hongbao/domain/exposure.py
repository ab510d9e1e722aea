"""Owns in which order shakes that win nothing show the sponsors; refuses to know resources.

Sponsors are promised shares of the exposure (seed 000 §6 and §8, R16, R34). One fixed cycle
holds each goal in its exact share, spaced evenly, so any stretch of it is near the shares.
"""

from collections.abc import Sequence
from functools import reduce
from math import gcd
from typing import TypeVar

from hongbao.domain.errors import Rejected

CYCLE_MAX = 1024

Goal = TypeVar("Goal")


def exposure_cycle(goals: Sequence[tuple[Goal, int]]) -> tuple[Goal, ...]:
    """Return one cycle of at most CYCLE_MAX showings; goals of weight 0 are not shown.

    Shares are exact while the reduced weights sum to at most CYCLE_MAX; else they are rounded
    to 1/CYCLE_MAX, and every goal keeps at least one showing. Raises Rejected for too many.
    """
    shown = [(goal, weight) for goal, weight in goals if weight > 0]
    if len(shown) > CYCLE_MAX:
        raise Rejected(f"{len(shown)} exposure goals, the limit is {CYCLE_MAX}", field="weight")
    counts = _counts([weight for _, weight in shown])
    places = [
        ((2 * showing + 1) / (2 * count), order)
        for order, count in enumerate(counts)
        for showing in range(count)
    ]
    return tuple(shown[order][0] for _, order in sorted(places))


def _counts(weights: Sequence[int]) -> list[int]:
    """Scale weights down to showings that sum to at most CYCLE_MAX."""
    divisor = reduce(gcd, weights, 0) or 1
    counts = [weight // divisor for weight in weights]
    total = sum(counts)
    if total <= CYCLE_MAX:
        return counts
    scaled = [max(1, count * CYCLE_MAX // total) for count in counts]
    while sum(scaled) > CYCLE_MAX:  # only when many tiny goals were raised to 1
        scaled[scaled.index(max(scaled))] -= 1
    by_remainder = sorted(
        range(len(counts)), key=lambda order: -(counts[order] * CYCLE_MAX % total)
    )
    for order in by_remainder[: CYCLE_MAX - sum(scaled)]:
        scaled[order] += 1
    return scaled
