"""What the etcd adapter remembers of the keys that it was shown: bounded, at little cost."""

import time

from hongbao.adapters.etcd_facts import SHOWN_KEYS_MAX, Shown
from hongbao.shards.ports import Versioned

NEW_KEYS = 2048


def show(shown: Shown, first: int, count: int) -> float:
    """Show new living keys; return the processor time that it took."""
    began_s = time.process_time()
    for number in range(first, first + count):
        shown.there(Versioned(f"k/{number}", b"1", number + 1))
    return time.process_time() - began_s


def test_new_keys_cost_no_more_than_a_sweep_when_many_live() -> None:
    """A sweep at each of them would cost tens of times as much."""
    shown = Shown()
    few_s = show(shown, 0, SHOWN_KEYS_MAX)
    many_s = show(shown, SHOWN_KEYS_MAX, NEW_KEYS)
    assert many_s < few_s
    assert len(shown.keys("k/")) == SHOWN_KEYS_MAX + NEW_KEYS


def test_keys_that_came_and_went_are_forgotten_past_the_limit() -> None:
    shown = Shown()
    show(shown, 0, SHOWN_KEYS_MAX)
    for number in range(SHOWN_KEYS_MAX - 1):
        shown.absent(f"k/{number}", SHOWN_KEYS_MAX + 1)
    show(shown, SHOWN_KEYS_MAX, 1)
    assert shown.keys("k/") == {f"k/{SHOWN_KEYS_MAX - 1}", f"k/{SHOWN_KEYS_MAX}"}
