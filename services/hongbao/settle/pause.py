"""Owns how a settle process obeys the switch settle_pause; refuses any other switch."""

import json
from collections.abc import Callable
from typing import Final

from hongbao.api import switches
from hongbao.domain.errors import Corrupt
from hongbao.shards.ports import Coordination

SWITCH: Final = "settle_pause"


class PauseSwitch:
    """Reads the switch before each round and acknowledges what it has made effective."""

    def __init__(
        self, coordination: Coordination, process: str, wall_ms: Callable[[], int]
    ) -> None:
        self._coordination = coordination
        self._process = process
        self._wall_ms = wall_ms
        self._board = switches.SwitchBoard()
        self._revision = 0

    async def paused(self) -> bool:
        """Tell whether settlement is paused now; a broken document leaves the last known good."""
        found = await self._coordination.read(f"{switches.PREFIX}{SWITCH}")
        if found.revision != self._revision:
            try:
                self._board.apply(found.key, found.value)
            except Corrupt:
                pass  # whoever wrote it sees that nobody acknowledges
            else:
                await self._coordination.put(
                    f"{switches.ACKS}{SWITCH}/{self._process}",
                    json.dumps({"revision": found.revision}).encode(),
                )
            self._revision = found.revision
        return bool(self._board.value(SWITCH, self._wall_ms()))
