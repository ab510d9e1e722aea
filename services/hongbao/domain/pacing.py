"""Owns how fast packets leave: a pure rate and a token bucket; refuses to read a clock.

The rate follows from what is left and the time left, so too few or too many people, a pause or
a late pod all correct themselves (seed 000 §6, R16, R17); a quota caps it at what redeem has
shown it can open (R18).
"""

from dataclasses import dataclass
from typing import Final

BURST_MS: Final = 100
"""The bucket holds at most this much time of the current rate: the burst after any pause."""

FINISH_MS_MAX: Final = 500
"""Aim to be finished this long before the slot ends, or FINISH_SHARE of a short slot."""

FINISH_SHARE: Final = 20

FLUSH_MS: Final = 10
"""What is still left when the aim has passed goes out over this time."""

WEIGHTS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Pace:
    """Is what steers the rate inside one slot.

    `weights` cut the slot into equal parts and say how much more one part issues than another;
    one weight means evenly. `quota_per_s` None means no quota.
    """

    starts_at_ms: int
    ends_at_ms: int
    speed: float = 1.0
    quota_per_s: float | None = None
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        assert self.ends_at_ms > self.starts_at_ms
        assert 0 < len(self.weights) <= WEIGHTS_MAX
        assert all(weight > 0 for weight in self.weights)

    @property
    def aim_ms(self) -> int:
        """Return when everything should have been issued."""
        open_ms = self.ends_at_ms - self.starts_at_ms
        return self.ends_at_ms - min(FINISH_MS_MAX, open_ms // FINISH_SHARE)


def issue_rate(remaining: int, now_ms: int, pace: Pace) -> float:
    """Return packets per second that should leave now; 0 outside the slot."""
    if remaining <= 0 or not pace.starts_at_ms <= now_ms < pace.ends_at_ms:
        return 0.0
    rate = remaining * 1000 / _left_ms(now_ms, pace) * pace.speed
    return rate if pace.quota_per_s is None else min(rate, pace.quota_per_s)


def refill(allowance: float, elapsed_ms: int, rate: float, remaining: int) -> float:
    """Return how many packets may leave after `elapsed_ms` more at `rate`.

    A clock that was set back or forward counts as no time or as BURST_MS (F9).
    """
    elapsed_ms = min(max(elapsed_ms, 0), BURST_MS)
    allowance += rate * elapsed_ms / 1000
    return min(allowance, burst(rate), remaining)


def burst(rate: float) -> float:
    """Return the most packets that may leave at one instant."""
    return max(1.0, rate * BURST_MS / 1000) if rate > 0 else 0.0


def _left_ms(now_ms: int, pace: Pace) -> float:
    """Return the time that the rest would take at this instant's weight."""
    if len(pace.weights) == 1:
        return max(pace.aim_ms - now_ms, FLUSH_MS)
    parts = len(pace.weights)
    part_ms = (pace.aim_ms - pace.starts_at_ms) / parts
    at = (now_ms - pace.starts_at_ms) / part_ms
    part = min(int(at), parts - 1)
    mass_left = pace.weights[part] * (part + 1 - at) + sum(pace.weights[part + 1 :])
    return max(mass_left * part_ms / pace.weights[part], FLUSH_MS)
