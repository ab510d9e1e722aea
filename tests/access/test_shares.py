"""The user cap and the exposure cycle: never over the cap, every sponsor its share (R16, R34)."""

from collections import Counter

import pytest
from hongbao.access.limits import AccessLimits
from hongbao.domain.campaign import PER_USER_PACKETS_MAX
from hongbao.domain.exposure import CYCLE_MAX, exposure_cycle
from hongbao.domain.user_cap import CAP_MAX, UserCap
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=50, deadline=None)
@given(
    cap=st.integers(1, CAP_MAX),
    users=st.lists(st.integers(1, 40), max_size=600),
    columns_log2=st.integers(4, 8),
)
def test_no_user_wins_more_than_the_cap_however_small_the_memory(
    cap: int, users: list[int], columns_log2: int
) -> None:
    counters, won = UserCap(cap, columns_log2=columns_log2), Counter[int]()
    for user in users:
        if not counters.reached(user):
            counters.add(user)
            won[user] += 1
    assert max(won.values(), default=0) <= cap


def test_users_reach_exactly_the_cap_while_memory_is_ample() -> None:
    counters, won = UserCap(3, columns_log2=16), Counter[int]()
    for user in [*range(1, 2001)] * 5:
        if not counters.reached(user):
            counters.add(user)
            won[user] += 1
    assert set(won.values()) == {3}


def test_few_users_are_stopped_early_at_the_load_that_the_default_is_meant_for() -> None:
    """The default is 1.2 winners for each counter of a row; here in small."""
    counters = UserCap(3, columns_log2=14)
    users = range(10**9, 10**9 + int(1.2 * (1 << 14)))
    for user in users:
        counters.add(user)
    early = sum(counters.reached(user) for user in users)
    assert early / len(users) < 1 / 5000


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=40))
def test_every_sponsor_gets_its_share_of_a_cycle(weights: list[int]) -> None:
    cycle = exposure_cycle(list(enumerate(weights)))
    shown, total = Counter(cycle), sum(weights)
    assert len(cycle) <= CYCLE_MAX
    for sponsor, weight in enumerate(weights):
        if weight == 0:
            assert shown[sponsor] == 0
        else:
            assert shown[sponsor] >= 1
            assert abs(shown[sponsor] - weight / total * len(cycle)) <= len(weights)


def test_small_weights_are_exact_and_evenly_spaced() -> None:
    assert exposure_cycle([("a", 200), ("b", 100), ("c", 100)]) in (("a", "b", "c", "a"),)


def test_no_goals_give_an_empty_cycle() -> None:
    assert exposure_cycle([("a", 0)]) == ()
    assert exposure_cycle([]) == ()


def test_no_cap_is_taken_that_could_not_be_kept() -> None:
    """A counter is one byte: the campaign file, the limits and the counters agree on 255."""
    assert PER_USER_PACKETS_MAX == CAP_MAX
    for packets_max in (0, CAP_MAX + 1):
        with pytest.raises(AssertionError):
            UserCap(packets_max)
        with pytest.raises(AssertionError):
            AccessLimits(user_packets_max=packets_max)
