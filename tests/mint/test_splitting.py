"""Facts about splitting: exact sums, bounds, no bias by position (R40, R41)."""

import math

import numpy as np
import pytest
from hongbao.domain.keystream import keystream_words
from hongbao.domain.split import CURVES, split_span
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

SEED = bytes(range(32))
curves = pytest.mark.parametrize("curve", sorted(CURVES))


def split(
    count: int, total_fen: int, min_fen: int, max_fen: int, curve: str, number: int = 0
) -> NDArray[np.uint32]:
    words = keystream_words(SEED, b"test", [number], count)
    return split_span(count, total_fen, min_fen, max_fen, curve, words)


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, int, int, int]:
    count = draw(st.integers(1, 400))
    min_fen = draw(st.integers(0, 5000))
    max_fen = draw(st.integers(min_fen, min(min_fen + 10 ** draw(st.integers(0, 7)), 16_777_215)))
    total_fen = draw(st.integers(count * min_fen, count * max_fen))
    return count, total_fen, min_fen, max_fen


@curves
@given(span=spans(), number=st.integers(0, 1000))
def test_a_span_sums_to_the_fen_and_keeps_its_bounds(
    curve: str, span: tuple[int, int, int, int], number: int
) -> None:
    count, total_fen, min_fen, max_fen = span
    amounts = split(*span, curve, number).tolist()
    assert len(amounts) == count
    assert sum(amounts) == total_fen
    assert min_fen <= min(amounts)
    assert max(amounts) <= max_fen


@curves
@pytest.mark.parametrize("mean_fen", [1, 2, 3, 250, 998, 999, 1000])
def test_a_span_sums_exactly_however_near_its_mean_is_to_a_bound(curve: str, mean_fen: int) -> None:
    for odd_fen in (0, 1, 4095):
        total_fen = min(max(4096 * mean_fen + odd_fen, 4096), 4096 * 1000)
        amounts = split(4096, total_fen, 1, 1000, curve)
        assert int(amounts.sum()) == total_fen
        assert 1 <= int(amounts.min()) <= int(amounts.max()) <= 1000


@curves
@pytest.mark.parametrize(
    ("count", "total_fen", "min_fen", "max_fen"),
    [(2, 1, 1, 9), (2, 19, 1, 9), (0, 0, 0, 9), (1, 5, 9, 1), (1, 5, -1, 9), (1, 1, 0, 1 << 24)],
)
def test_an_impossible_span_is_refused(
    curve: str, count: int, total_fen: int, min_fen: int, max_fen: int
) -> None:
    with pytest.raises(ValueError, match=r"cannot be split|a span has"):
        split(count, total_fen, min_fen, max_fen, curve)


@curves
@pytest.mark.parametrize("max_fen", [100_000, 400])
def test_no_position_gets_more_than_another(curve: str, max_fen: int) -> None:
    """Each of 64 places over 6,000 spans: the mean, and how often it is in the top tenth."""
    rows = np.array([split(64, 64 * 250, 1, max_fen, curve, n) for n in range(6000)])
    assert position_bias(rows) < 4


@curves
def test_the_measure_of_bias_finds_half_a_percent_moved_to_the_front(
    curve: str,
) -> None:
    rows = np.array([split(64, 64 * 250, 1, 100_000, curve, n) for n in range(6000)])
    planted = rows.astype(np.int64)
    planted[:, 0] += planted[:, 1:].sum(axis=1) // 200
    assert position_bias(planted) > 4


def test_the_measure_of_bias_finds_that_the_last_packet_takes_what_is_left() -> None:
    """The usual mistake: draw up to twice the mean of the rest, the last one gets the rest."""
    words = keystream_words(SEED, b"naive", [], 6000 * 64).reshape(6000, 64)
    draws = words.astype(np.float64) / 2.0**64
    rows, left = np.zeros((6000, 64)), np.full(6000, 64 * 250.0)
    for place in range(63):
        rows[:, place] = draws[:, place] * 2 * left / (64 - place)
        left -= rows[:, place]
    rows[:, 63] = left
    assert position_bias(rows) > 4


def position_bias(rows: NDArray[np.integer] | NDArray[np.float64]) -> float:
    """Return the largest of three measures, each in standard deviations from what chance gives.

    By place: the largest z-score of the mean (less 0.5: of 64 places one passes 4.5 in 2,300
    seeds), chi-square of the means, chi-square of the top tenth.
    """
    spans_count, count = rows.shape
    z_scores = (rows.mean(axis=0) - rows.mean()) / (rows.std() / math.sqrt(spans_count))
    top = rows >= np.quantile(rows, 0.9)
    expected, share = top.sum() / count, top.mean()
    tops = (top.sum(axis=0) - expected) / math.sqrt(expected * (1 - share))
    return max(float(np.abs(z_scores).max()) - 0.5, chi_square_z(z_scores), chi_square_z(tops))


@curves
def test_neighbours_are_as_independent_as_places_far_apart(curve: str) -> None:
    """Exchangeable: every pair has the covariance that the fixed sum implies, none its own."""
    rows = np.array([split(16, 16 * 250, 1, 100_000, curve, n) for n in range(8000)])
    correlation = np.corrcoef(rows.T)
    pairs = correlation[np.triu_indices(16, 1)]
    assert float(np.abs(pairs + 1 / 15).max()) < 4.5 / math.sqrt(8000) * 1.5
    near = np.diagonal(correlation, 1).mean()
    assert abs(near + 1 / 15) < 4.5 / math.sqrt(8000)


def chi_square_z(deviations: NDArray[np.float64]) -> float:
    """Return how many standard deviations the sum of squares lies off what chance gives."""
    freedom = len(deviations) - 1
    return abs(float((deviations**2).sum()) - freedom) / math.sqrt(2 * freedom)


def test_the_curves_differ_as_promised() -> None:
    uniform = split(50_000, 50_000 * 1000, 1, 1_000_000, "uniform")
    lucky = split(50_000, 50_000 * 1000, 1, 1_000_000, "lucky")
    assert float(uniform.max()) < 2 * 1000 * 1.02
    assert abs(float(np.median(uniform)) - 1000) < 30
    assert float(np.median(lucky)) < 600
    assert 0.003 < float((lucky > 10_000).mean()) < 0.02


def test_a_high_mean_mirrors_the_uniform_curve_instead_of_piling_up_at_the_cap() -> None:
    amounts = split(50_000, 50_000 * 800, 0, 1000, "uniform")
    assert float((amounts == 1000).mean()) < 0.02
    assert int(amounts.min()) > 1000 - 2 * 200 * 1.05


def test_the_keystream_depends_on_seed_purpose_and_numbers() -> None:
    def draw(seed: bytes, purpose: bytes, *numbers: int) -> tuple[int, ...]:
        return tuple(keystream_words(seed, purpose, numbers, 4).tolist())

    other = bytes([1]) * 32
    streams = [
        draw(SEED, b"split", 1, 2),
        draw(other, b"split", 1, 2),
        draw(SEED, b"shuffle", 1, 2),
        draw(SEED, b"split", 2, 1),
        draw(SEED, b"split", 1),
    ]
    assert len(set(streams)) == len(streams)
    assert draw(SEED, b"split", 1, 2) == streams[0]


def test_the_keystream_never_changes() -> None:
    """Re-runs, years apart and on other machines, must draw the same amounts."""
    assert keystream_words(SEED, b"split", [1, 2, 3], 2).tolist() == [
        9193776243746290129,
        6767727336559379135,
    ]
    assert split(5, 1000, 1, 500, "lucky").tolist() == [450, 160, 101, 210, 79]
    assert split(5, 1000, 1, 500, "uniform").tolist() == [330, 192, 137, 228, 113]


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keystream_words(SEED[:31], b"split", [1], 4)
