"""Proves the ledger's histogram of credit latencies."""

from hongbao.audit.tables import bucket_quantile_s
from hongbao.settle.latency import count_latency
from hongbao.settle.ports import Transfer
from hypothesis import given
from hypothesis import strategies as st

AT_MS = 1_700_000_000_000


def waited(*latencies_ms: int) -> list[Transfer]:
    return [Transfer(n, 1, 1, 1, 1, 1, AT_MS - ms) for n, ms in enumerate(latencies_ms)]


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=50), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_quantile_is_never_too_low_and_at_most_5_percent_too_high(
    latencies_ms: list[int], share: float
) -> None:
    counts = count_latency(waited(*latencies_ms), AT_MS)
    assert sum(row.claims for row in counts) == len(latencies_ms)
    ranked = sorted(latencies_ms)
    seen = next(ms for n, ms in enumerate(ranked, 1) if n >= len(ranked) * share)
    found_ms = bucket_quantile_s([(row.bucket, row.claims) for row in counts], share) * 1000
    assert seen - 0.01 <= found_ms <= (seen + 1) * 1.045


def test_a_redeem_clock_ahead_of_ours_counts_as_no_latency() -> None:
    """F9: opened_at is another process's wall clock."""
    assert [(row.bucket, row.claims) for row in count_latency(waited(-5000, -1), AT_MS)] == [(0, 2)]


def test_nothing_credited_counts_nothing() -> None:
    assert count_latency([], AT_MS) == []
