"""Owns talking to an Envoy's admin interface over its Unix socket: readiness, drain, statistics."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx

from hongbao.domain.errors import Transient

ANSWER_S_MAX: Final = 2.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class DrainTimes:
    """Is how long each step of a drain may take.

    `settle_s`: callers and balancers notice that health is gone before calls are refused.
    `finish_s`: calls in flight end; what is left then is broken off.
    """

    settle_s: float = 1.0
    finish_s: float = 10.0


class EnvoyAdmin:
    """Talks to one Envoy; every method may raise Transient while it is not there."""

    def __init__(self, admin_path: str) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=admin_path),
            base_url="http://envoy",
            timeout=ANSWER_S_MAX,
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def is_ready(self) -> bool:
        """Say whether Envoy takes calls (its Python has started by then)."""
        try:
            return (await self._client.get("/ready")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def wait_ready(
        self, timeout_s: float, is_alive: Callable[[], bool] = lambda: True
    ) -> None:
        """Return once Envoy takes calls; raises Transient after `timeout_s` or when it died."""
        for _ in range(max(1, int(timeout_s / POLL_S))):
            if await self.is_ready():
                return
            if not is_alive():
                raise Transient("the gateway ended before it was ready")
            await asyncio.sleep(POLL_S)
        raise Transient(f"the gateway was not ready within {timeout_s} s")

    async def drain(self, times: DrainTimes) -> int:
        """Stop taking calls and let the running ones end; returns how many did not.

        Order: readiness goes first, connections are told to go away (GOAWAY, Connection: close),
        then the listener closes. SIGTERM comes after; Envoy then waits for the application's
        `shutdown` hook, so that state is flushed when no call can come any more.
        """
        await self._post("/healthcheck/fail")
        await asyncio.sleep(times.settle_s)
        await self._post("/drain_listeners?graceful")
        for _ in range(max(1, int(times.finish_s / POLL_S))):
            if not await self.calls_in_flight():
                return 0
            await asyncio.sleep(POLL_S)
        return await self.calls_in_flight()

    async def calls_in_flight(self) -> int:
        """Return how many calls the public listener is working on."""
        name = "http.public.downstream_rq_active"
        return (await self.statistics(f"^{name}$")).get(name, 0)

    async def statistics(self, pattern: str) -> dict[str, int]:
        """Return the counters and gauges whose names match. Raises Transient."""
        try:
            answer = await self._client.get("/stats", params={"filter": pattern})
        except httpx.HTTPError as error:
            raise Transient(f"Envoy's admin gave no statistics: {error!r}") from error
        lines = (line.rpartition(": ") for line in answer.text.splitlines())
        return {name: int(value) for name, _, value in lines if value.isdigit()}

    async def _post(self, path: str) -> None:
        try:
            answer = await self._client.post(path)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise Transient(f"Envoy's admin did not take {path}: {error!r}") from error
