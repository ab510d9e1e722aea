"""Owns credit latency as the audit counts it: exact to the millisecond, in flat memory."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

LATENCY_MS_MAX: Final = 3_600_000  # one hour; later ones count as that


class Latency:
    """Counts latencies by millisecond."""

    def __init__(self) -> None:
        self._counts = np.zeros(LATENCY_MS_MAX + 1, np.int64)

    def add(self, latencies_ms: NDArray[np.int64]) -> None:
        """Count some latencies; clocks that disagree may make them negative: those count as 0."""
        if len(latencies_ms):
            clipped = np.clip(latencies_ms, 0, LATENCY_MS_MAX)
            found = np.bincount(clipped)
            self._counts[: len(found)] += found

    def quantile_s(self, share: float) -> float | None:
        """Return the latency that `share` of all did not pass; None when there are none."""
        total = int(self._counts.sum())
        if not total:
            return None
        rank = max(1, math.ceil(total * share))
        return int(np.searchsorted(np.cumsum(self._counts), rank)) / 1000
