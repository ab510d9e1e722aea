"""Owns the connections to the gateways of all zones; refuses to know what is sent over them.

A gateway that is gone is tried again with growing, jittered waits; meanwhile its users go to
the next gateway of the same zone, then to other zones (R26).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hongbao.client.draws import Draw
from hongbao.client.wire import Wire

_RECONNECT_S_MIN: Final = 0.05
_RECONNECT_S_MAX: Final = 1.0
_CONNECT_TIMEOUT_S: Final = 1.0
SILENCE_S: Final = 2.0  # calls time out and nothing is heard for this long: the peer is gone


@dataclass(frozen=True, slots=True)
class Gateway:
    """Is one address where a gateway of a zone listens."""

    zone: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Gateway":
        """Return the gateway of `zone=host:port` or `host:port`; raises ValueError."""
        zone, _, address = text.rpartition("=")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{text!r} is not [zone=]host:port")
        return cls(zone or "local", host, int(port))


class GatewayPool:
    """Keeps `connections` connections to each gateway alive."""

    def __init__(self, gateways: Sequence[Gateway], *, connections: int, draw: Draw) -> None:
        self._gateways = tuple(gateways)
        self._connections = connections
        self._draw = draw
        self._live: list[list[Wire]] = [[] for _ in gateways]
        self._turns = [0] * len(self._gateways)
        self._orders = [self._order(index) for index in range(len(self._gateways))]
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def count(self) -> int:
        return len(self._gateways)

    @property
    def up(self) -> int:
        """Say how many gateways can be reached now."""
        return sum(1 for wires in self._live if wires)

    async def start(self, *, wait_s: float) -> None:
        """Connect; return when every gateway is reached, or at least one after `wait_s`."""
        loop = asyncio.get_running_loop()
        self._keepers = [
            loop.create_task(self._keep(index))
            for index in range(len(self._gateways))
            for _ in range(self._connections)
        ]
        give_up = loop.time() + wait_s
        while self.up < len(self._gateways) and loop.time() < give_up:  # noqa: ASYNC110 - once
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.sleep(0)  # lets the closed transports say so

    def pick(self, home: int) -> Wire | None:
        """Return a live connection, nearest to the home gateway first; None if there is none."""
        for index in self._orders[home]:
            wires = self._live[index]
            if wires:
                turn = self._turns[index] = self._turns[index] + 1
                wire = wires[turn % len(wires)]
                if wire.alive:
                    return wire
        return None

    def expire(self, now: float) -> None:
        """Answer the calls whose deadline has passed."""
        for wires in self._live:
            for wire in list(wires):
                wire.expire(now, SILENCE_S)

    def _order(self, home: int) -> tuple[int, ...]:
        indexes = [*range(home, len(self._gateways)), *range(home)]
        zone = self._gateways[home].zone
        return tuple(sorted(indexes, key=lambda index: self._gateways[index].zone != zone))

    async def _keep(self, index: int) -> None:
        """Hold one connection for ever, making it anew whenever it is lost."""
        loop = asyncio.get_running_loop()
        gateway, live = self._gateways[index], self._live[index]
        wait_s = _RECONNECT_S_MIN
        while True:
            lost = asyncio.Event()
            wire = Wire(loop, lost.set)
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await loop.create_connection(_giving(wire), gateway.host, gateway.port)
            except OSError:  # TimeoutError is one
                await asyncio.sleep(wait_s * (0.5 + self._draw()))
                wait_s = min(wait_s * 2, _RECONNECT_S_MAX)
                continue
            live.append(wire)
            connected_at = loop.time()
            try:
                await lost.wait()
            finally:
                live.remove(wire)
                wire.close()
            if loop.time() - connected_at > _RECONNECT_S_MAX:
                wait_s = _RECONNECT_S_MIN
            else:
                await asyncio.sleep(wait_s * (0.5 + self._draw()))
                wait_s = min(wait_s * 2, _RECONNECT_S_MAX)


def _giving(wire: Wire) -> Callable[[], Wire]:
    return lambda: wire
