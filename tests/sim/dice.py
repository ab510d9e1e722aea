"""The only source of chance in a simulation: one number decides everything (SplitMix64)."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Dice:
    """Draws numbers that follow from the seed alone, in any process on any machine."""

    def __init__(self, seed: int) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & _MASK

    def bits(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def share(self) -> float:
        """Return a number in [0, 1)."""
        return (self.bits() >> 11) / (1 << 53)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.share()

    def below(self, count: int) -> int:
        """Return an integer in [0, count)."""
        return self.bits() % count

    def choose(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def happens(self, chance: float) -> bool:
        return self.share() < chance

    def nonce(self) -> bytes:
        return self.bits().to_bytes(8, "big") + self.bits().to_bytes(8, "big")
