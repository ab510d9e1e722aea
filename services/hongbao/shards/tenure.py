"""Owns serving the shards that a host holds: take-over, service, hand-over."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from hongbao.domain.errors import Fenced
from hongbao.shards.lease import HeldLease
from hongbao.shards.machine import Machine
from hongbao.shards.owner import Owner, OwnerLimits
from hongbao.shards.ports import LogStore

log = structlog.get_logger()


class Owners:
    """Is the owners of a plane's shards in this process, one for each that it holds."""

    def __init__(
        self,
        store: LogStore,
        plane: str,
        machines: Callable[[int], Machine],
        nonces: Callable[[], bytes],
        limits: OwnerLimits | None = None,
        owner_type: type[Owner] = Owner,
    ) -> None:
        self._store = store
        self._plane = plane
        self._machines = machines
        self._nonces = nonces
        self._limits = limits or OwnerLimits()
        self._owner_type = owner_type
        self._owners: dict[int, Owner] = {}

    def find(self, plane: str, shard: int) -> Owner | None:
        """Return the owner of a shard if it is served here now."""
        owner = self._owners.get(shard) if plane == self._plane else None
        return owner if owner is not None and owner.stopped_by is None else None

    async def serve(self, shard: int, held: HeldLease, leave: asyncio.Event) -> None:
        """Serve a shard until its owner stops or is told to leave (a host's Serve).

        Raises whatever ended it; Fenced for a hand-over.
        """
        owner = await self._owner_type.take_over(
            self._store,
            self._plane,
            shard,
            epoch=held.lease.epoch,
            nonce=self._nonces(),
            lease_valid=held.valid,
            machine=self._machines(shard),
            limits=self._limits,
        )
        log.info(
            "shard_taken_over",
            shard=str(owner.shard),
            epoch=owner.epoch,
            position=owner.position,
        )
        self._owners[shard] = owner
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(owner.wait_stopped()),
            asyncio.ensure_future(leave.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            # Without its lease the owner begins nothing, but finds out about a block in flight.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.drain_s):
                    await owner.drain()
        finally:
            for wait in waits:
                wait.cancel()
            del self._owners[shard]
            reason = f"{owner.shard}: epoch {owner.epoch} lost its lease or was told to stop"
            await owner.stop(Fenced(reason))
        raise await owner.wait_stopped()
