"""Admission by priority (R25): what is shed, in which order, and how it comes back."""

from collections import deque
from heapq import heapify, heappop, heappush

import pytest
from hongbao.domain.errors import Overloaded
from hongbao.transport.admission import (
    KEYS,
    PRIORITIES,
    USER_LEVELS,
    Admission,
    AdmissionLimits,
    Window,
    next_retry,
    next_threshold,
)
from hypothesis import given
from hypothesis import strategies as st

LIMITS = AdmissionLimits()


def window(
    *admitted: int, arrived: int | None = None, wait_s: float = 0.0, refused_part: float = 0.0
) -> Window:
    counts = (*admitted, *[0] * (PRIORITIES - len(admitted)))
    return Window(sum(admitted) if arrived is None else arrived, counts, wait_s, refused_part)


class Clock:
    """Drives one Admission: calls evenly spread over windows, each with the same wait."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.now_s = 1.0
        self.retry_after_s = 0.0

    def offer(self, priority: int, user: int | None, wait_s: float) -> bool:
        self.admission.observe(priority, wait_s, self.now_s)
        if not self.admission.shedding:
            return True
        try:
            self.admission.check(priority, user)
        except Overloaded as error:
            self.retry_after_s = error.retry_after_s
            return False
        return True


class Phones:
    """Is a closed loop: every phone calls once a second, or waits as long as it was told.

    One server takes `SERVE_S` for a call from one FIFO queue; a refusal costs `REFUSAL` of it,
    estimated for an open refused in Python: 39k refusals/s measured, 15k opens/s in the prototype.
    """

    SERVE_S = 0.001
    REFUSAL = 0.4

    def __init__(self, phones: dict[int, int], *, obeying: bool) -> None:
        self.clock = Clock(Admission(LIMITS))
        self.obeying = obeying
        self.coming = [
            (1.0 + user / count, priority, user)
            for priority, count in phones.items()
            for user in range(count)
        ]
        heapify(self.coming)

    def run(self, seconds: float) -> list[float]:
        """Return calls served per second and priority in the second half of the time."""
        queue, served = deque[tuple[float, int, int]](), [0.0] * PRIORITIES
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            while self.coming[0][0] <= self.clock.now_s:
                queue.append(heappop(self.coming))
            if not queue:
                self.clock.now_s = self.coming[0][0]
                continue
            since_s, priority, user = queue.popleft()
            served_now = self.answer(since_s, priority, user)
            served[priority] += served_now and self.clock.now_s > end_s - seconds / 2
        return [count / (seconds / 2) for count in served]

    def answer(self, since_s: float, priority: int, user: int) -> bool:
        clock = self.clock
        served = clock.offer(priority, user * 7919 + priority, clock.now_s - since_s)
        clock.now_s += self.SERVE_S * (1 if served else self.REFUSAL)
        away_s = 1.0 if served else clock.retry_after_s * self.obeying
        heappush(self.coming, (clock.now_s + away_s, priority, user))
        return served


def test_a_process_that_keeps_up_sheds_nothing() -> None:
    assert next_threshold(KEYS, window(1000, 1000), LIMITS) == KEYS


def test_a_standing_queue_sheds_the_least_important_first() -> None:
    after = next_threshold(KEYS, window(500, 500, wait_s=1.0), LIMITS)
    assert USER_LEVELS < after < 2 * USER_LEVELS


def test_a_few_calls_decide_nothing() -> None:
    assert next_threshold(KEYS, window(5, wait_s=1.0), LIMITS) == KEYS


def test_when_hardly_anybody_calls_everything_is_admitted_at_once() -> None:
    assert next_threshold(40, window(10), LIMITS) == KEYS


def test_refusing_stops_at_its_limit_because_it_is_work_too() -> None:
    behind = window(500, arrived=1000, wait_s=1.0, refused_part=0.6)
    assert next_threshold(40, behind, LIMITS) > 40


def test_refused_callers_are_sent_away_for_longer_while_they_are_many() -> None:
    assert next_retry(1.0, window(500, arrived=1000, refused_part=0.5), LIMITS) > 1.0
    assert next_retry(8.0, window(500), LIMITS) < 8.0


@given(
    st.integers(1, KEYS),
    st.lists(st.integers(0, 10_000), min_size=PRIORITIES, max_size=PRIORITIES),
    st.integers(0, 10_000),
    st.floats(0, 10),
    st.floats(0, 1),
)
def test_the_threshold_moves_the_right_way(
    threshold: int, admitted: list[int], refused: int, wait_s: float, part: float
) -> None:
    seen = Window(sum(admitted) + refused, tuple(admitted), wait_s, part)
    after = next_threshold(threshold, seen, LIMITS)
    assert 1 <= after <= KEYS
    if not seen.behind(LIMITS):
        assert after >= min(threshold + 1, KEYS)


def test_obeying_phones_at_five_times_the_capacity_leave_it_to_good_calls() -> None:
    """F17: goodput at least 0.9 of the capacity, and the priority order is kept."""
    served = Phones({0: 500, 1: 1500, 2: 3000}, obeying=True).run(60)
    assert sum(served) >= 0.9 / Phones.SERVE_S
    assert served[0] / 500 > 3 * served[1] / 1500 > 3 * served[2] / 3000


def test_rude_phones_cannot_turn_all_capacity_into_refusals() -> None:
    rude = Phones({0: 5000}, obeying=False).run(60)
    most = LIMITS.refused_max
    floor = (1 - most) / (1 - most + most * Phones.REFUSAL)
    assert rude[0] >= 0.9 * floor / Phones.SERVE_S


def test_one_user_is_shed_or_served_through_a_whole_journey() -> None:
    admission = Admission(LIMITS)
    admission.threshold, admission.shedding = USER_LEVELS // 2, True
    clock = Clock(admission)
    first = {user: clock.offer(0, user, 0.0) for user in range(2000)}
    assert first == {user: clock.offer(0, user, 0.0) for user in range(2000)}
    assert 800 < sum(first.values()) < 1200


def test_calls_without_a_user_are_thinned_evenly() -> None:
    admission = Admission(LIMITS)
    admission.threshold, admission.shedding = USER_LEVELS // 4, True
    clock = Clock(admission)
    assert sum(clock.offer(0, None, 0.0) for _ in range(USER_LEVELS)) == USER_LEVELS // 4


def test_one_slow_caller_cannot_feign_a_queue() -> None:
    clock = Clock(Admission(LIMITS))
    for _ in range(50):
        for wait_s in [5.0] * 99 + [0.0]:
            clock.offer(0, 1, wait_s)
        clock.now_s += 1.0
    assert not clock.admission.shedding


def test_shed_callers_are_told_different_times() -> None:
    admission = Admission(LIMITS)
    admission.threshold, admission.shedding = 1, True
    waits = set()
    for user in range(200):
        admission.observe(1, 0.0, 1.0)
        with pytest.raises(Overloaded) as caught:
            admission.check(1, user)
        waits.add(caught.value.retry_after_s)
    assert len(waits) > 50
    assert 0.5 <= min(waits) <= max(waits) <= 1.5
