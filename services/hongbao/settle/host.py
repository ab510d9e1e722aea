"""Owns which claims shards this process settles: leases, fair shares, one task a shard.

Correctness rests on the ledger's transactions; leases only keep two processes from doing the
same work. While others live a process takes its share, alone it takes all. Refuses to hold the
`member/<process>` lease by which they are counted: every process of a run does that alike.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from hongbao.domain.errors import Transient
from hongbao.settle.run import Settlement
from hongbao.shards.lease import HeldLease
from hongbao.shards.ports import Coordination

ROLE: Final = "settle"
ROUNDS_PER_TTL: Final = 4
BROKEN_S: Final = 30.0

log = structlog.get_logger()


@dataclass(frozen=True)
class SettleMember:
    """Is this process as others see it."""

    process: str
    zone: str
    lease_ttl_s: float = 2.0

    @property
    def lease_value(self) -> bytes:
        """Return the JSON of its leases."""
        place = {"process": self.process, "zone": self.zone, "address": "", "role": ROLE}
        return json.dumps(place, sort_keys=True).encode()


class SettleHost:
    """Competes for the settle leases of the given shards."""

    def __init__(
        self,
        coordination: Coordination,
        member: SettleMember,
        shards: Iterable[int],
        settlement_of: Callable[[int], Settlement],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._coordination = coordination
        self._member = member
        self._shards = sorted(set(shards))
        self._settlement_of = settlement_of
        self._monotonic_s = monotonic_s
        self._held: dict[int, tuple[HeldLease, asyncio.Task[None]]] = {}
        self._not_before: dict[int, float] = {}  # shards that stopped as Corrupt here

    @property
    def held_shards(self) -> list[int]:
        """Return the shards that this process settles now."""
        return sorted(self._held)

    async def run(self) -> None:
        """Settle until cancelled; then release the leases, so that others go on at once."""
        try:
            while True:
                try:
                    await self.balance()
                except Transient as error:
                    log.warning("settle_balance_failed", reason=str(error))
                await asyncio.sleep(self._member.lease_ttl_s / ROUNDS_PER_TTL)
        finally:
            await self.stop()

    async def balance(self) -> None:
        """Give up what is lost or too much, then take what is free, up to the fair share."""
        for shard, (lease, task) in list(self._held.items()):
            if task.done() or not await lease.renew():
                await self._drop(shard)
        share = math.ceil(len(self._shards) / (1 + await self._others()))
        for shard in self.held_shards[share:]:
            await self._drop(shard)
        for shard in self._shards:
            if len(self._held) >= share:
                break
            await self._take(shard)

    async def stop(self) -> None:
        """Stop all shards and release their leases."""
        for shard in self.held_shards:
            await self._drop(shard)

    async def _take(self, shard: int) -> None:
        if shard in self._held or self._monotonic_s() < self._not_before.get(shard, 0.0):
            return
        lease = await self._acquire(f"{ROLE}/{shard}")
        if lease is not None:
            task = asyncio.create_task(self._settle(shard))
            self._held[shard] = (lease, task)
            log.info("settle_taken", shard=shard, process=self._member.process)

    async def _drop(self, shard: int) -> None:
        lease, task = self._held.pop(shard)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await lease.release()

    async def _settle(self, shard: int) -> None:
        try:
            await self._settlement_of(shard).run()
        except* Exception as errors:  # outermost level of the loop: Corrupt, or a bug
            self._not_before[shard] = self._monotonic_s() + BROKEN_S
            reasons = [f"{type(one).__name__}: {one}" for one in errors.exceptions]
            log.error("settle_stopped", shard=shard, reasons=reasons)

    async def _acquire(self, name: str) -> HeldLease | None:
        return await HeldLease.acquire(
            self._coordination,
            name,
            self._member.process,
            ttl_s=self._member.lease_ttl_s,
            value=self._member.lease_value,
            monotonic_s=self._monotonic_s,
        )

    async def _others(self) -> int:
        """Count the other living settle processes by their `member/<process>` leases."""
        found = await self._coordination.read_prefix("lease/member/")
        members = [json.loads(one.value) for one in found if one.value]
        return sum(
            one.get("role") == ROLE and one.get("process") != self._member.process
            for one in members
        )
