"""Owns which opens are under way, so that a change can wait for all that began before it.

A denied key is acknowledged only when no open that passed the old lists can still be answered
(F20). Whether one that nobody waits for any more becomes durable, `barrier` finds out.
"""

import asyncio


class Flights:
    """Counts opens by generation; `settled` begins a new one and waits for all older ones."""

    def __init__(self) -> None:
        self._flying: dict[int, int] = {0: 0}
        self._landed = asyncio.Event()
        self.generation = 0
        self.count = 0

    def enter(self) -> int:
        """Begin an open; pass what this returns to `leave`."""
        generation = self.generation
        self._flying[generation] += 1
        self.count += 1
        return generation

    def leave(self, generation: int) -> None:
        """End an open: nobody waits for its answer any more."""
        self.count -= 1
        flying = self._flying
        flying[generation] -= 1
        if generation != self.generation and not flying[generation]:
            self._landed.set()

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
