"""Judges a recorded history of Coordination; each checker raises AssertionError with an example.

They share no code with the adapter. test_etcd_history.py shows that each can fail.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hongbao.shards.ports import Versioned


@dataclass(frozen=True, slots=True)
class Tenure:
    """Is a time in which a holder relied on a lease, on one monotonic clock."""

    holder: str
    epoch: int
    from_s: float
    until_s: float


@dataclass(slots=True)
class History:
    """Is what clients saw: answers, tenures, and the changes of each watcher."""

    written: list[Versioned] = field(default_factory=list)
    """Acknowledged writes."""
    counted: list[Versioned] = field(default_factory=list)
    """Acknowledged additions to the counter."""
    unknown: int = 0
    """Additions of which nobody knows."""
    tenures: list[Tenure] = field(default_factory=list)
    seen: dict[str, list[Versioned]] = field(default_factory=dict)
    compactions: list[int] = field(default_factory=list)
    answered_at_s: list[float] = field(default_factory=list)
    """When each addition was acknowledged."""


def check_counter(final: int, counted: Sequence[Versioned], unknown: int) -> None:
    """Every acknowledged addition counts once, one of unknown outcome once at most."""
    twice = [value for value, times in Counter(one.value for one in counted).items() if times > 1]
    assert not twice, f"two additions both made the counter {twice[0]!r}: one is lost"
    low, high = len(counted), len(counted) + unknown
    assert low <= final <= high, f"the counter is {final}, {low} additions were acknowledged"


def check_tenures(tenures: Sequence[Tenure], *, early_s: float = 0.0) -> None:
    """Epochs only rise, and no two holders rely on one lease at a time.

    But for `early_s`, where etcd itself may have given a lease away early (docs/stores.md).
    """
    in_order = sorted(tenures, key=lambda tenure: tenure.from_s)
    for before, after in pairwise(in_order):
        assert before.epoch < after.epoch, f"{after} came behind {before}"
        assert before.until_s <= after.from_s + early_s, f"both hold: {before}, {after}"


def check_watch(
    seen: Sequence[Versioned],
    written: Iterable[Versioned],
    truth: Collection[Versioned] = (),
    compactions: Collection[int] = (),
) -> None:
    """F8: every write comes once and in order; only compacted ones may be left out, for later.

    `truth` is what all watchers together saw.
    """
    for before, after in pairwise(seen):
        assert before.revision <= after.revision, f"{after} came behind {before}"
    twice = [one for one, n in Counter((e.key, e.revision) for e in seen).items() if n > 1]
    assert not twice, f"{len(twice)} changes were doubled, as {twice[0]}"
    found = {(event.key, event.revision): event.value for event in seen}
    for write in written:
        got = found.get((write.key, write.revision))
        if got is None:
            left_out = any(_left_out(write, seen, truth, compacted) for compacted in compactions)
            assert left_out, f"lost: {write}"
        else:
            assert got == write.value, f"{write} was seen as {got!r}"


def _left_out(
    write: Versioned, seen: Iterable[Versioned], truth: Iterable[Versioned], compacted: int
) -> bool:
    """Tell whether a change may be missing because a later one, up to the compaction, was seen.

    When that is a deletion, it must be seen if the key was known before.
    """

    def is_later(event: Versioned) -> bool:
        return event.key == write.key and write.revision < event.revision <= compacted

    last = max(filter(is_later, truth), key=lambda event: event.revision, default=None)
    if last is None:
        return False
    if last.value:
        return last in seen
    before = [e for e in seen if e.key == write.key and e.revision < write.revision]
    was_known = bool(before) and bool(before[-1].value)
    return not was_known or any(is_later(event) and not event.value for event in seen)


def check_final_state(seen: Iterable[Versioned], facts: Iterable[Versioned]) -> None:
    """A watcher that applied every change knows what is there."""
    known: dict[str, Versioned] = {event.key: event for event in seen}
    alive = {key: event for key, event in known.items() if event.value}
    there: Mapping[str, Versioned] = {fact.key: fact for fact in facts}
    wrong = [key for key in alive.keys() | there.keys() if alive.get(key) != there.get(key)]
    assert not wrong, f"{wrong[0]}: known {alive.get(wrong[0])}, there {there.get(wrong[0])}"


def longest_gap_s(moments_s: Sequence[float]) -> float:
    """Return the longest time without an answer."""
    return max((after - before for before, after in pairwise(moments_s)), default=0.0)
