"""The network and the store behind it: requests and replies that are lost, doubled, late.

A call that fails leaves its outcome open (Ambiguous), as with StoreClient and GrpcPeers: the
request may never arrive, may arrive long after the caller gave up, or may have been executed
although the reply was lost.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous, HongbaoError, Transient
from hongbao.shards.ports import Lease, Versioned

from tests.sim.dice import Dice
from tests.sim.loop import OUTSIDE, VirtualLoop

T = TypeVar("T")
CALL_S_MAX = 0.4


@dataclass
class Faults:
    """Is how bad the network is now: chances per call, and delays."""

    drop: float = 0.0
    lose_reply: float = 0.0
    double: float = 0.0
    late: float = 0.0
    refuse: float = 0.0
    delay_s_max: float = 0.004


class Network:
    """Carries calls between processes."""

    def __init__(self, loop: VirtualLoop, dice: Dice) -> None:
        self.faults = Faults()
        self.closed = False
        self.cut_off: set[str] = set()
        """Names of processes that nothing reaches and that reach nothing."""
        self.at_create: Callable[[str], float] = lambda process: 0.0
        """Asked whenever a process writes to a log, the worst moment for trouble; returns for
        how long the request is held up on its way."""
        self._loop = loop
        self._dice = dice

    async def call(
        self,
        source: str,
        run: Callable[[], Awaitable[T]],
        *,
        target: str = "store",
        timeout_s: float = CALL_S_MAX,
        held_up_s: float = 0.0,
    ) -> T:
        """Carry one request, run it at the other side, carry the reply back."""
        if self.closed:
            raise Transient("the simulation is over")
        faults, dice = self.faults, self._dice
        reply: asyncio.Future[T] = self._loop.create_future()
        reachable = source not in self.cut_off and target not in self.cut_off
        if reachable and not dice.happens(faults.drop):
            late_s = dice.between(0, 3 * timeout_s) if dice.happens(faults.late) else 0.0
            self._deliver(late_s + held_up_s, run, reply, dice.happens(faults.lose_reply))
            if dice.happens(faults.double):
                self._deliver(dice.between(0, 3 * timeout_s), run, reply, False)
        try:
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError:
            raise Ambiguous("no reply in time") from None

    def _deliver(
        self, late_s: float, run: Callable[[], Awaitable[T]], reply: asyncio.Future[T], lost: bool
    ) -> None:
        async def execute() -> None:
            value: T | None = None
            error: HongbaoError | None = None
            try:
                value = await run()
            except HongbaoError as failure:
                error = failure
            back_s = self._dice.between(0, self.faults.delay_s_max)
            if not lost:
                self._loop.call_later(back_s, finish, value, error, context=OUTSIDE)

        def finish(value: Any, error: HongbaoError | None) -> None:
            if reply.done() or self.closed:
                return
            if error is None:
                reply.set_result(value)
            else:
                reply.set_exception(error)

        def start() -> None:
            if not self.closed:
                self._loop.create_task(execute(), context=OUTSIDE.copy())

        delay_s = late_s + self._dice.between(0, self.faults.delay_s_max)
        self._loop.call_later(delay_s, start, context=OUTSIDE)


class SimStore:
    """Is one process's way to the store that all share."""

    def __init__(self, memory: MemoryStore, network: Network, dice: Dice, process: str) -> None:
        self._memory = memory
        self._network = network
        self._dice = dice
        self._process = process

    async def create(self, key: bytes, value: bytes) -> bool:
        held_up_s = self._network.at_create(self._process)
        return await self._write(lambda: self._memory.create(key, value), held_up_s)

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        await self._write(lambda: self._put_some(items))

    async def _put_some(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Write all, or a prefix and fail: nothing promises that a put is atomic."""
        if self._dice.happens(self._network.faults.refuse):
            await self._memory.put_many(items[: self._dice.below(len(items) + 1)])
            raise Ambiguous("written in part")
        await self._memory.put_many(items)

    async def get(self, key: bytes) -> bytes | None:
        await self._travel()
        return await self._memory.get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        await self._travel()
        return await self._memory.scan(start, end, limit)

    async def read(self, key: str) -> Versioned:
        await self._travel()
        return await self._memory.read(key)

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        await self._travel()
        return await self._memory.read_prefix(prefix)

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        return await self._write(
            lambda: self._memory.compare_and_put(key, value, revision=revision)
        )

    async def put(self, key: str, value: bytes) -> Versioned:
        return await self._write(lambda: self._memory.put(key, value))

    async def delete(self, key: str) -> None:
        await self._write(lambda: self._memory.delete(key))

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        async for fact in self._memory.watch(prefix, after_revision=after_revision):
            await asyncio.sleep(self._dice.between(0, self._network.faults.delay_s_max))
            yield fact

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        return await self._write(
            lambda: self._memory.acquire(name, holder, ttl_s=ttl_s, value=value)
        )

    async def renew(self, lease: Lease) -> bool:
        return await self._write(lambda: self._memory.renew(lease))

    async def release(self, lease: Lease) -> None:
        await self._write(lambda: self._memory.release(lease))

    async def _write(self, run: Callable[[], Awaitable[T]], held_up_s: float = 0.0) -> T:
        if self._dice.happens(self._network.faults.refuse):
            await asyncio.sleep(0.001)
            raise Transient("the store refuses")
        return await self._network.call(self._process, run, held_up_s=held_up_s)

    async def _travel(self) -> None:
        """Wait as a read does on its way; it may fail, and then nothing was read."""
        network = self._network
        await asyncio.sleep(self._dice.between(0, network.faults.delay_s_max))
        if (
            network.closed
            or self._process in network.cut_off
            or self._dice.happens(network.faults.drop)
        ):
            raise Transient("the store cannot be read")


class JointSimStore(SimStore):
    """Writes a block and what it derives in one transaction."""

    async def create_with(
        self, key: bytes, value: bytes, puts: Sequence[tuple[bytes, bytes]]
    ) -> bool:
        held_up_s = self._network.at_create(self._process)
        return await self._write(lambda: self._create_with(key, value, puts), held_up_s)

    async def _create_with(
        self, key: bytes, value: bytes, puts: Sequence[tuple[bytes, bytes]]
    ) -> bool:
        """Nothing comes in between: memory never waits."""
        if not await self._memory.create(key, value):
            return False
        await self._memory.put_many(puts)
        return True
