"""Owns how a settle process obeys the switch settle_pause; refuses any other switch."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Final

from hongbao.api import switches
from hongbao.domain.errors import Corrupt
from hongbao.shards.ports import Coordination, Versioned

SWITCH: Final = "settle_pause"


class PauseSwitch:
    """Lets rounds of work begin unless the switch is on; acknowledges what is in effect.

    All shards of a process share one. A pause is in effect once no round is running: one that
    began before may be paying still.
    """

    def __init__(
        self, coordination: Coordination, process: str, wall_ms: Callable[[], int]
    ) -> None:
        self._coordination = coordination
        self._process = process
        self._wall_ms = wall_ms
        self._board = switches.SwitchBoard()
        self._revision = 0
        self._to_ack: int | None = None
        self._running = 0
        self._reading = asyncio.Lock()
        self._reads = 0

    @contextlib.asynccontextmanager
    async def round(self) -> AsyncIterator[bool]:
        """Read the switch and tell whether work may begin; count it until this context ends."""
        await self._observe()
        if self.paused():
            yield False
            return
        self._running += 1  # nothing was awaited since `paused`, so no ack comes in between
        try:
            yield True
        finally:
            self._running -= 1

    def paused(self) -> bool:
        """Tell whether settlement is paused, as last read: every round of any shard reads it."""
        return bool(self._board.value(SWITCH, self._wall_ms()))

    async def _observe(self) -> None:
        """Read one by one, so that no older answer comes behind a newer; who waited shares it."""
        asked = self._reads
        async with self._reading:
            if self._reads != asked:
                return
            self._apply(await self._coordination.read(f"{switches.PREFIX}{SWITCH}"))
            if self._to_ack is not None and not (self.paused() and self._running):
                await self._coordination.put(
                    f"{switches.ACKS}{SWITCH}/{self._process}",
                    json.dumps({"revision": self._to_ack}).encode(),
                )
                self._to_ack = None
            self._reads += 1

    def _apply(self, found: Versioned) -> None:
        """Take a new document; a broken one leaves the last known good."""
        if found.revision == self._revision:
            return
        self._revision = found.revision
        try:
            self._board.apply(found.key, found.value)
        except Corrupt:
            return  # whoever wrote it sees that nobody acknowledges
        self._to_ack = found.revision
