"""Shows that each checker of etcd's histories can fail: a planted fault each (mutation proof)."""

import pytest
from hongbao.shards.ports import Versioned

from tests.stores import etcd_history
from tests.stores.etcd_history import Tenure

WRITTEN = [Versioned("a", b"1", 2), Versioned("a", b"2", 4), Versioned("b", b"1", 5)]
SEEN = [*WRITTEN[:2], Versioned("b", b"1", 5), Versioned("a", b"", 7)]
COUNTED = [Versioned("n", b"1", 3), Versioned("n", b"2", 6)]
TENURES = [Tenure("p", 3, 0.0, 1.0), Tenure("q", 6, 1.5, 2.0)]


def test_a_history_without_faults_passes_every_checker() -> None:
    etcd_history.check_counter(3, COUNTED, 1)
    etcd_history.check_tenures(TENURES)
    etcd_history.check_watch(SEEN, WRITTEN)
    etcd_history.check_watch(SEEN[1:], WRITTEN, SEEN, [4])
    etcd_history.check_watch([WRITTEN[0], SEEN[2], Versioned("a", b"", 8)], WRITTEN, SEEN, [8])
    etcd_history.check_watch(SEEN[2:3], WRITTEN, SEEN, [8])
    etcd_history.check_final_state(SEEN, [WRITTEN[2]])
    assert etcd_history.longest_gap_s([1.0, 2.0, 4.5, 5.0]) == 2.5


@pytest.mark.parametrize(
    ("final", "counted"),
    [(1, COUNTED), (4, COUNTED), (3, [*COUNTED, Versioned("n", b"2", 8)])],
    ids=["lost", "doubled", "overwritten"],
)
def test_a_counter_that_lost_or_doubled_an_addition_is_found(
    final: int, counted: list[Versioned]
) -> None:
    with pytest.raises(AssertionError, match="addition"):
        etcd_history.check_counter(final, counted, 1)


@pytest.mark.parametrize(
    ("tenure", "what"),
    [
        (Tenure("r", 6, 3.0, 4.0), "came behind"),
        (Tenure("r", 5, 3.0, 4.0), "came behind"),
        (Tenure("r", 9, 1.9, 4.0), "both hold"),
    ],
    ids=["the epoch again", "a lower epoch", "two holders"],
)
def test_a_lease_with_two_holders_or_a_falling_epoch_is_found(tenure: Tenure, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        etcd_history.check_tenures([*TENURES, tenure])


def test_a_lease_that_etcd_gave_away_early_has_two_holders_for_a_limited_time() -> None:
    both = [*TENURES, Tenure("r", 9, 1.9, 4.0)]
    etcd_history.check_tenures(both, early_s=0.2)
    with pytest.raises(AssertionError, match="both hold"):
        etcd_history.check_tenures(both, early_s=0.05)
    with pytest.raises(AssertionError, match="came behind"):
        etcd_history.check_tenures([*TENURES, Tenure("r", 6, 1.9, 4.0)], early_s=0.2)


@pytest.mark.parametrize(
    ("seen", "compactions", "what"),
    [
        (SEEN[1:], [], "lost"),
        (SEEN[1:], [3], "lost"),
        (SEEN[:2], [9], "lost"),
        ([SEEN[0], SEEN[2]], [9], "lost"),
        ([*SEEN, SEEN[-1]], [], "doubled"),
        ([SEEN[1], SEEN[0], *SEEN[2:]], [], "came behind"),
        ([SEEN[0], Versioned("a", b"x", 4), *SEEN[2:]], [], "was seen as"),
    ],
    ids=[
        "lost",
        "lost, not compacted",
        "never came later",
        "a known key never vanished",
        "doubled",
        "order",
        "another value",
    ],
)
def test_a_watch_that_lost_or_doubled_a_change_is_found(
    seen: list[Versioned], compactions: list[int], what: str
) -> None:
    with pytest.raises(AssertionError, match=what):
        etcd_history.check_watch(seen, WRITTEN, SEEN, compactions)


@pytest.mark.parametrize(
    "facts",
    [[], [Versioned("b", b"1", 9)], [WRITTEN[2], Versioned("a", b"2", 4)]],
    ids=["gone", "newer", "not deleted"],
)
def test_a_watcher_that_knows_something_else_is_found(facts: list[Versioned]) -> None:
    with pytest.raises(AssertionError, match="known"):
        etcd_history.check_final_state(SEEN, facts)
