"""Owns one stay of this process at a shard: lease, take-over, service, hand-over."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog

from hongbao.domain.errors import Corrupt, Fenced, HongbaoError, Transient
from hongbao.shards.lease import HeldLease
from hongbao.shards.owner import Owner

log = structlog.get_logger()

Acquire = Callable[[], Awaitable[HeldLease | None]]
TakeOver = Callable[[HeldLease], Awaitable[Owner]]


class Tenure:
    """Holds one shard's lease and runs its owner until either ends."""

    def __init__(self, name: str, acquire: Acquire, take_over: TakeOver, drain_s: float) -> None:
        self.owner: Owner | None = None
        self.ended_by: HongbaoError | None = None
        self._name = name
        self._acquire = acquire
        self._take_over = take_over
        self._drain_s = drain_s
        self._give_up = asyncio.Event()

    def give_up(self) -> None:
        """Ask for a hand-over: drain the owner, then release the lease."""
        self._give_up.set()

    async def run(self) -> None:
        """Live through one tenure; a shard that someone else holds is no error."""
        try:
            held = await self._acquire()
        except Transient as error:
            self.ended_by = error
            return
        if held is None:
            return
        keeping = asyncio.ensure_future(held.keep())
        try:
            await self._serve(held, keeping)
        except HongbaoError as error:
            self.ended_by = error
        finally:
            keeping.cancel()
            await held.release()
        self._report(held.lease.epoch)

    async def _serve(self, held: HeldLease, keeping: asyncio.Future[None]) -> None:
        self.owner = owner = await self._take_over(held)
        log.info("shard_taken_over", shard=self._name, epoch=owner.epoch, position=owner.position)
        waits: list[asyncio.Future[Any]] = [
            keeping,
            asyncio.ensure_future(owner.wait_stopped()),
            asyncio.ensure_future(self._give_up.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            # Without its lease the owner begins nothing, but finds out about a block in flight.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._drain_s):
                    await owner.drain()
        finally:
            for wait in waits[1:]:
                wait.cancel()
            reason = f"{self._name}: epoch {owner.epoch} lost its lease or was told to stop"
            await owner.stop(Fenced(reason))
            self.ended_by = owner.stopped_by

    def _report(self, epoch: int) -> None:
        if isinstance(self.ended_by, Corrupt):
            log.error("shard_corrupt", shard=self._name, epoch=epoch, reason=str(self.ended_by))
        else:
            log.info("shard_left", shard=self._name, epoch=epoch, reason=str(self.ended_by))
