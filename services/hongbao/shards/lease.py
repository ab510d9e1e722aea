"""Owns the holder's side of a lease; refuses to be what safety rests on (the log is).

A lease counts from the moment its last renewal was SENT, on the monotonic clock, less a margin
for clocks that run at different speeds; the store counts from when it answered. So the holder
always stops first, whatever the wall clock does (F9) and however long it was paused (F7), unless
the store itself breaks its word, as an etcd leader that wakes may (docs/stores.md).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from hongbao.domain.errors import Transient
from hongbao.shards.ports import Coordination, Lease

MARGIN_SHARE: Final = 0.2
"""Share of the TTL that the holder gives up: clocks may differ by as much."""
RENEWALS_PER_TTL: Final = 4
"""Two renewals may fail before the margin is reached."""


class HeldLease:
    """Is a lease that this process got, and whether it may still rely on it."""

    def __init__(
        self,
        coordination: Coordination,
        lease: Lease,
        sent_at_s: float,
        monotonic_s: Callable[[], float],
    ) -> None:
        self.lease = lease
        self._coordination = coordination
        self._monotonic_s = monotonic_s
        self._trusted_s = lease.ttl_s * (1 - MARGIN_SHARE)
        self._sent_at_s = sent_at_s
        self._lost = False

    @classmethod
    async def acquire(
        cls,
        coordination: Coordination,
        name: str,
        holder: str,
        *,
        ttl_s: float,
        value: bytes,
        monotonic_s: Callable[[], float],
    ) -> Self | None:
        """Take a lease; None while someone else holds it. Raises Transient."""
        sent_at_s = monotonic_s()
        lease = await coordination.acquire(name, holder, ttl_s=ttl_s, value=value)
        return None if lease is None else cls(coordination, lease, sent_at_s, monotonic_s)

    def valid(self) -> bool:
        """Tell whether nobody else can have got the lease yet, if the store keeps its word."""
        return not self._lost and self._monotonic_s() < self._sent_at_s + self._trusted_s

    async def renew(self) -> bool:
        """Extend the lease; False when it is lost for good. Raises Transient."""
        sent_at_s = self._monotonic_s()
        if await self._coordination.renew(self.lease):
            self._sent_at_s = max(self._sent_at_s, sent_at_s)
        else:
            self._lost = True
        return not self._lost

    async def keep(self) -> None:
        """Renew until the lease is lost; a store that does not answer costs nothing but time."""
        while True:
            await asyncio.sleep(self.lease.ttl_s / RENEWALS_PER_TTL)
            with suppress(Transient, TimeoutError):
                async with asyncio.timeout(self.lease.ttl_s / RENEWALS_PER_TTL):
                    await self.renew()
            if not self.valid():
                self._lost = True
                return

    async def release(self) -> None:
        """Give the lease up; when the store does not answer, it runs out by itself."""
        self._lost = True
        with suppress(Transient):
            await self._coordination.release(self.lease)
