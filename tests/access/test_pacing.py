"""Pacing: never ahead of the plan, done by the slot's end, bounded bursts (R16, R17, R18)."""

import math
from collections.abc import Callable

import pytest
from hongbao.domain import pacing
from hongbao.domain.pacing import Pace, burst, issue_rate, refill
from hypothesis import given, settings
from hypothesis import strategies as st

START_MS = 1_000_000

slots_ms = st.integers(2_000, 60_000)
totals = st.integers(1, 50_000)
steps_ms = st.integers(1, 50)


def issued_over_time(
    total: int, pace: Pace, step_ms: int, demand: Callable[[int], float]
) -> list[tuple[int, int]]:
    """Issue as much as pace and demand (packets per ms) allow; return (time, issued so far)."""
    issued, allowance, wanted = 0, 0.0, 0.0
    history = []
    for now_ms in range(pace.starts_at_ms, pace.ends_at_ms, step_ms):
        rate = issue_rate(total - issued, now_ms, pace)
        allowance = refill(allowance, step_ms, rate, total - issued)
        wanted = min(wanted + demand(now_ms) * step_ms, 10_000)
        leaving = min(int(allowance), int(wanted))
        issued, allowance, wanted = issued + leaving, allowance - leaving, wanted - leaving
        history.append((now_ms, issued))
    return history


@settings(max_examples=60, deadline=None)
@given(total=totals, slot_ms=slots_ms, step_ms=steps_ms, demand=st.floats(0, 5))
def test_never_more_is_issued_than_the_plan_allows(
    total: int, slot_ms: int, step_ms: int, demand: float
) -> None:
    pace = Pace(START_MS, START_MS + slot_ms)
    for now_ms, issued in issued_over_time(total, pace, step_ms, lambda _: demand):
        planned = total * (now_ms + step_ms - START_MS) / (pace.aim_ms - START_MS)
        assert issued <= min(total, planned + 1)


@settings(max_examples=60, deadline=None)
@given(total=totals, slot_ms=slots_ms, step_ms=st.integers(1, 10))
def test_everything_is_issued_by_the_end_when_enough_people_shake(
    total: int, slot_ms: int, step_ms: int
) -> None:
    pace = Pace(START_MS, START_MS + slot_ms)
    assert issued_over_time(total, pace, step_ms, lambda _: math.inf)[-1][1] == total


@settings(max_examples=40, deadline=None)
@given(total=totals, slot_ms=slots_ms, weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=8))
def test_everything_is_issued_by_the_end_along_any_curve(
    total: int, slot_ms: int, weights: list[float]
) -> None:
    pace = Pace(START_MS, START_MS + slot_ms, weights=tuple(weights))
    assert issued_over_time(total, pace, 5, lambda _: math.inf)[-1][1] == total


def test_a_curve_moves_packets_to_its_heavy_parts() -> None:
    pace = Pace(START_MS, START_MS + 20_000, weights=(1.0, 3.0))
    history = issued_over_time(10_000, pace, 5, lambda _: math.inf)
    half = next(issued for now_ms, issued in history if now_ms >= START_MS + 19_500 // 2)
    assert half == pytest.approx(2_500, rel=0.02)


def test_what_a_quiet_start_left_over_is_spread_over_the_rest() -> None:
    pace = Pace(START_MS, START_MS + 20_000)
    quiet_until_ms = START_MS + 10_000
    history = issued_over_time(
        10_000, pace, 5, lambda now_ms: math.inf if now_ms >= quiet_until_ms else 0
    )
    assert next(issued for now_ms, issued in history if now_ms >= quiet_until_ms) <= 110
    assert history[-1][1] == 10_000


@given(remaining=st.integers(1, 10**7), pause_ms=st.integers(0, 10**7), rate=st.floats(0.001, 1e6))
def test_after_any_pause_no_more_than_the_named_burst_leaves_at_once(
    remaining: int, pause_ms: int, rate: float
) -> None:
    allowance = 0.0
    for elapsed_ms in (pause_ms, pause_ms, 1):
        allowance = refill(allowance, elapsed_ms, rate, remaining)
    assert allowance <= burst(rate) <= max(1.0, rate * pacing.BURST_MS / 1000)
    assert allowance <= remaining


@given(elapsed_ms=st.integers(-(10**9), 0))
def test_a_clock_that_was_set_back_adds_and_takes_nothing(elapsed_ms: int) -> None:
    """F9."""
    assert refill(3.5, elapsed_ms, 100.0, 1000) == 3.5


@settings(max_examples=40, deadline=None)
@given(total=totals, slot_ms=slots_ms, quota=st.floats(0, 2_000), speed=st.floats(0, 10))
def test_no_second_issues_more_than_the_quota_and_one_burst(
    total: int, slot_ms: int, quota: float, speed: float
) -> None:
    pace = Pace(START_MS, START_MS + slot_ms, speed=speed, quota_per_s=quota)
    history = dict(issued_over_time(total, pace, 10, lambda _: math.inf))
    for now_ms, issued in history.items():
        second_ago = history.get(now_ms - 1000)
        if second_ago is not None:
            assert issued - second_ago <= quota + burst(quota) + 1


def test_half_speed_leaves_packets_and_double_speed_is_done_early() -> None:
    def middle(speed: float) -> int:
        pace = Pace(START_MS, START_MS + 20_000, speed=speed)
        history = issued_over_time(10_000, pace, 5, lambda _: math.inf)
        return next(issued for now_ms, issued in history if now_ms >= START_MS + 10_000)

    assert middle(0.5) < middle(1.0) < middle(2.0)
    assert middle(0.0) == 0


@pytest.mark.parametrize("now_ms", [START_MS - 1, START_MS + 10_000, START_MS + 10**9])
def test_nothing_leaves_outside_the_slot(now_ms: int) -> None:
    assert issue_rate(1000, now_ms, Pace(START_MS, START_MS + 10_000)) == 0.0
