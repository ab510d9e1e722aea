"""What the etcd adapter remembers of the keys that it was shown: bounded, at little cost."""

import itertools
import time

import pytest
from hongbao.adapters.etcd_facts import SHOWN_KEYS_MAX, Shown
from hongbao.shards.ports import Versioned

NEW_KEYS = 2048


def show(shown: Shown, first: int, count: int) -> float:
    """Show new living keys; return the processor time that it took."""
    began_s = time.process_time()
    for number in range(first, first + count):
        shown.there(Versioned(f"k/{number}", b"1", number + 1))
    return time.process_time() - began_s


THERE, BACK = Versioned("a", b"1", 50), Versioned("a", b"2", 95)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_key_that_came_back_is_known_in_whatever_order_answers_came(
    order: tuple[int, ...],
) -> None:
    """Else its next deletion, when etcd compacts it away, would reach no watch (F8)."""
    shown = Shown()
    showings = [
        lambda: shown.there(THERE),
        lambda: shown.absent("a", 90),
        lambda: shown.there(BACK),
    ]
    for index in order:
        showings[index]()
    assert shown.keys("", 100) == {"a"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_a_key_that_went_behind_its_last_showing_is_known_to_be_gone(
    order: tuple[int, ...],
) -> None:
    shown = Shown()
    shown.there(THERE)
    showings = [lambda: shown.there(BACK), lambda: shown.absent("a", 120)]
    for index in order:
        showings[index]()
    assert shown.keys("", 100) == {"a"}
    assert shown.keys("", 120) == set()


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
