"""Owns ending calls whose time is up; refuses to know what they do.

One timer for all calls: asyncio.timeout makes one for each, which cost 5 of the 24 µs that a
durable open spends in Python.
"""

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import Any, Final, TypeVar

TICK_S: Final = 0.01
"""A call may run over by so much."""

T = TypeVar("T")


class Deadlines:
    """Cancels what runs past its deadline, in one event loop."""

    def __init__(self) -> None:
        self._due: dict[int, set[asyncio.Task[Any]]] = {}
        self._next = 0  # no tick before it has calls
        self._ticking = False
        self._ended: set[asyncio.Task[Any]] = set()

    async def run(self, work: Awaitable[T], until_s: float) -> T:
        """Await `work` until the monotonic time; raises TimeoutError behind it."""
        task = asyncio.current_task()
        assert task is not None
        if not self._ticking:
            self._tick_on(int(monotonic() / TICK_S))
        tick = max(int(until_s / TICK_S) + 1, self._next)
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
        due.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._ended:
                task.uncancel()
                raise TimeoutError from None
            raise
        finally:
            due.discard(task)
            self._ended.discard(task)

    def _tick_on(self, now: int) -> None:
        self._next, self._ticking = now + 1, True
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = int(monotonic() / TICK_S)
        for tick in range(self._next, now + 1):
            for task in self._due.pop(tick, ()):
                self._ended.add(task)
                task.cancel()
        if self._due:
            self._tick_on(now)
        else:
            self._ticking = False
