"""Owns how tests tell a machine that stood still from a product that is slow.

A thread sleeps for a moment again and again; what it oversleeps is time in which this process did
not run, as when a busy host stops a virtual machine for seconds. A promise about time is kept if it
is kept without those.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Self, TypeVar

STEP_S = 0.05
STALL_S_MIN = 0.25
"""Less than this is a busy machine, and no excuse."""
STOOD_STILL_S = 0.5
"""A stall of this length spoils a story whose leases last for one second."""
STORIES_MAX = 3

T = TypeVar("T")


class Stalls:
    """Records, from enter to exit, when this process did not run."""

    def __init__(
        self,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._wall_offset_s = wall_ns() / 1e9 - monotonic_s()
        self._gaps: list[tuple[float, float]] = []
        self._ticked_s: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def within_s(self, from_s: float, until_s: float) -> float:
        """Return for how long this process stood still between two monotonic times."""
        return sum(max(0.0, min(until_s, end) - max(from_s, start)) for start, end in self._known())

    def within_ms(self, from_ms: float, until_ms: float) -> float:
        """Return for how many ms this process stood still between two wall times."""
        offset_s = self._wall_offset_s
        return 1000 * self.within_s(from_ms / 1000 - offset_s, until_ms / 1000 - offset_s)

    def stood_still(self, from_s: float, until_s: float) -> bool:
        """Say whether one stall between two monotonic times was long enough to spoil a story."""
        return any(
            min(until_s, end) - max(from_s, start) >= STOOD_STILL_S for start, end in self._known()
        )

    def note(self, from_s: float, until_s: float) -> None:
        """Take a step of the thread for a stall if it was long enough."""
        if until_s - from_s >= STALL_S_MIN:
            self._gaps.append((from_s, until_s))

    def _known(self) -> list[tuple[float, float]]:
        """Return all stalls, with the one from which others may have woken before the thread."""
        ticked_s, now_s, gaps = self._ticked_s, self._monotonic_s(), [*self._gaps]
        noted = bool(gaps) and gaps[-1][0] == ticked_s
        if ticked_s is not None and not noted and now_s - ticked_s >= STALL_S_MIN:
            gaps.append((ticked_s, now_s))
        return gaps

    def _watch(self) -> None:
        self._ticked_s = before_s = self._monotonic_s()
        while not self._over.wait(STEP_S):
            now_s = self._monotonic_s()
            self.note(before_s, now_s)
            self._ticked_s = before_s = now_s
        self._ticked_s = None


@contextmanager
def undisturbed(
    stalls: Stalls,
    story: Callable[[], AbstractContextManager[T]],
    late: Callable[[T], bool] = lambda left: False,
) -> Iterator[T]:
    """Give what a story left, played again when the machine stood still in its midst.

    A story in which things break at set times tells nothing when all of them passed in a stall. The
    last one is judged however it went, and one that failed without a stall fails at once. `late`
    tells that a time which was promised was not kept: one process may starve on a busy machine, so
    the first story is forgiven that.
    """
    for number in range(STORIES_MAX - 1):
        began_s = time.monotonic()
        with ExitStack() as stack:
            try:
                left = stack.enter_context(story())
            except Exception:
                if not stalls.stood_still(began_s, time.monotonic()):
                    raise
                continue
            if not stalls.stood_still(began_s, time.monotonic()) and (number or not late(left)):
                yield left
                return
        print("the machine stood still, or was slow: the story is played again")
    with story() as left:
        yield left


async def judged(stalls: Stalls, story: Callable[[int], Awaitable[None]]) -> None:
    """Run a story that checks itself; again when it failed while the machine stood still."""
    for number in range(STORIES_MAX - 1):
        began_s = time.monotonic()
        try:
            return await story(number)
        except Exception:
            if not stalls.stood_still(began_s, time.monotonic()):
                raise
    await story(STORIES_MAX - 1)
