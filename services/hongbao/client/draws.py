"""Owns reproducible draws for load and jitter (SplitMix64); never used for money or secrets."""

from collections.abc import Callable

Draw = Callable[[], float]  # uniform in [0, 1)

_MASK = (1 << 64) - 1


def seeded_draw(seed: int) -> Draw:
    """Return a generator of uniform numbers that repeats itself for the same seed."""
    state = seed & _MASK

    def draw() -> float:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _MASK
        return ((mixed ^ mixed >> 31) >> 11) / (1 << 53)

    return draw
