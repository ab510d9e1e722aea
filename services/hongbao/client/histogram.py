"""Owns latency percentiles in fixed memory, in the manner of HdrHistogram: error below 1.6 %."""

_SUB_BITS = 6  # 64 steps per power of two


class Histogram:
    """Counts durations by log-linear bucket of microseconds."""

    __slots__ = ("_counts", "count", "max_us")

    def __init__(self) -> None:
        self._counts = [0] * (64 << _SUB_BITS)
        self.count = 0
        self.max_us = 0

    def record(self, seconds: float) -> None:
        """Count one duration; a negative one (clock granularity) counts as 0."""
        value_us = int(seconds * 1e6)
        if value_us < 0:
            value_us = 0
        shift = value_us.bit_length() - _SUB_BITS - 1
        if shift < 0:
            shift = 0
        self._counts[(shift << _SUB_BITS) + (value_us >> shift)] += 1
        self.count += 1
        if value_us > self.max_us:
            self.max_us = value_us

    def percentile_ms(self, percent: float) -> float:
        """Return an upper bound of the duration that `percent` of the counted stay within."""
        if not self.count:
            return 0.0
        wanted = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_upper_us(index), self.max_us) / 1000
        return self.max_us / 1000

    def add(self, other: "Histogram") -> None:
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.max_us = max(self.max_us, other.max_us)


def _upper_us(index: int) -> int:
    shift = max(0, (index >> _SUB_BITS) - 1)
    return ((index - (shift << _SUB_BITS)) + 1 << shift) - 1
