"""Owns which opens are under way, so that a change can wait for all that began before it.

A denied key is acknowledged only when no open that passed the old lists can still become
durable (F20). Opens whose outcome is unknown stay under way for a while.
"""

import asyncio
from typing import Final


class Flights:
    """Counts opens by generation; `settled` begins a new one and waits for all older ones."""

    def __init__(self, unknown_outcome_s: float) -> None:
        self._unknown_outcome_s: Final = unknown_outcome_s
        self._flying: dict[int, int] = {0: 0}
        self._landed = asyncio.Event()
        self.generation = 0
        self.count = 0

    def enter(self) -> int:
        """Begin an open; pass what this returns to `leave` or `leave_later`."""
        generation = self.generation
        self._flying[generation] += 1
        self.count += 1
        return generation

    def leave(self, generation: int) -> None:
        """End an open whose outcome is known."""
        self.count -= 1
        self._land(generation)

    def leave_later(self, generation: int) -> None:
        """End an open that may still become durable: cancelled, or without an answer."""
        self.count -= 1
        asyncio.get_running_loop().call_later(self._unknown_outcome_s, self._land, generation)

    async def settled(self) -> None:
        """Return when every open that began before this call has ended."""
        until = self.generation
        self.generation += 1
        self._flying[self.generation] = 0
        while any(count for generation, count in self._flying.items() if generation <= until):
            self._landed.clear()
            await self._landed.wait()
        for generation in [old for old in self._flying if old <= until]:
            del self._flying[generation]

    def _land(self, generation: int) -> None:
        flying = self._flying
        flying[generation] -= 1
        if generation != self.generation and not flying[generation]:
            self._landed.set()
