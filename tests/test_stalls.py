"""Proves that a stall excuses what it spoilt, and nothing else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.stalls import STORIES_MAX, Stalls, judged, undisturbed
from tests.waiting import until


class Machine:
    """Tells stories, in the first of which it stands still."""

    def __init__(self, stalled: int, failing: int = 0) -> None:
        self.stalls = Stalls()
        self.told = 0
        self._stalled = stalled
        self._failing = failing

    @contextmanager
    def story(self) -> Iterator[int]:
        yield self.tell()

    async def judge(self, _number: int) -> None:
        self.tell()

    def tell(self) -> int:
        self.told += 1
        if self.told <= self._stalled:
            now_s = time.monotonic()
            self.stalls.note(now_s, now_s + 2.0)
            while time.monotonic() < now_s + 1.1:
                time.sleep(0.1)
        assert self.told > self._failing, "the story failed"
        return self.told


@pytest.mark.parametrize("failing", [0, 1])
def test_a_story_is_played_again_after_a_stall_whether_it_failed_or_not(failing: int) -> None:
    machine = Machine(stalled=1, failing=failing)
    with undisturbed(machine.stalls, machine.story) as left:
        assert left == 2


def test_a_story_that_fails_without_a_stall_fails_at_once() -> None:
    machine = Machine(stalled=0, failing=1)
    with (
        pytest.raises(AssertionError, match="failed"),
        undisturbed(machine.stalls, machine.story),
    ):
        pass
    assert machine.told == 1


def test_the_last_story_is_judged_however_it_went() -> None:
    machine = Machine(stalled=STORIES_MAX)
    with undisturbed(machine.stalls, machine.story) as left:
        assert left == STORIES_MAX


@pytest.mark.parametrize("late", [1, 2])
def test_a_story_that_was_late_is_played_again_once_and_then_judged(late: int) -> None:
    machine = Machine(stalled=0)
    with undisturbed(machine.stalls, machine.story, late=lambda told: told <= late) as left:
        assert left == 2


def test_a_stall_counts_before_the_thread_that_measures_has_woken_from_it() -> None:
    now_s = 102.0
    stalls = Stalls(monotonic_s=lambda: now_s)
    stalls._ticked_s = 100.0  # the thread does not run
    assert stalls.within_s(0.0, 200.0) == 2.0
    stalls.note(100.0, 102.0)
    assert stalls.within_s(0.0, 200.0) == 2.0
    stalls._ticked_s = now_s = 102.2
    assert stalls.within_s(0.0, 200.0) == 2.0


async def test_what_judges_itself_is_judged_again_only_after_a_stall() -> None:
    machine = Machine(stalled=1, failing=1)
    await judged(machine.stalls, machine.judge)
    assert machine.told == 2
    machine = Machine(stalled=0, failing=1)
    with pytest.raises(AssertionError, match="failed"):
        await judged(machine.stalls, machine.judge)
    assert machine.told == 1


async def test_what_never_happens_is_told_by_name() -> None:
    with pytest.raises(AssertionError, match=r"never happened within 0\.01 s: rain"):
        await until(lambda: False, "rain", limit_s=0.01)
