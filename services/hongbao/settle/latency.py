"""Owns the compact histogram of credit latencies; refuses to keep it (the ledger does).

Latency of a claim = credited time − opened_at. Buckets are logarithmic, BUCKETS_PER_OCTAVE to a
doubling: bucket b ends at 2^(b / BUCKETS_PER_OCTAVE) − 1 ms, so a percentile read back is at most
4.5 % too high and never too low.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hongbao.settle.ports import Transfer

BUCKETS_PER_OCTAVE: Final = 16
LATENCY_MS_MAX: Final = 1 << 40


class LatencyCount(NamedTuple):
    """Counts claims that were credited in one second with about the same latency."""

    second: int  # wall time of the credit
    bucket: int
    claims: int


def count_latency(transfers: Sequence[Transfer], credited_at_ms: int) -> list[LatencyCount]:
    """Sort transfers that are credited at one time into buckets."""
    if not transfers:
        return []
    opened = np.fromiter((transfer.opened_at_ms for transfer in transfers), np.int64)
    waited = np.clip(credited_at_ms - opened, 0, LATENCY_MS_MAX)
    buckets = np.ceil(np.log2(waited + 1) * BUCKETS_PER_OCTAVE).astype(np.int64)
    found, claims = np.unique(buckets, return_counts=True)
    second = credited_at_ms // 1000
    return [
        LatencyCount(second, *pair) for pair in zip(found.tolist(), claims.tolist(), strict=True)
    ]
