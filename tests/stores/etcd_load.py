"""Owns the clients of the etcd fault tests: they count, write, hold a lease and watch, and record.

Each has connections of its own, and starts at another member.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace

from hongbao.adapters.etcd import EtcdCoordination
from hongbao.adapters.etcd_members import EtcdSettings
from hongbao.domain.errors import Ambiguous, Transient
from hongbao.shards.lease import HeldLease
from hongbao.shards.ports import Versioned

from tests.sim.dice import Dice
from tests.stores.etcd_history import History, Tenure
from tests.waiting import LIMIT_S, until

COUNTER = "counter"
PREFIX = "switches/"
LEASE = "claims/1"
LEASE_TTL_S = 2.0
END = f"{PREFIX}end"
KEYS = 6
OPERATIONS_MIN = 50


class Load:
    """Is a crowd of clients of one cluster, their history, and the way to end them."""

    def __init__(self, settings: EtcdSettings, dice: Dice) -> None:
        self.history = History()
        self._settings = settings
        self._dice = dice
        self._stack = AsyncExitStack()
        self._running: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._writing = True
        self.counters: list[EtcdCoordination] = []

    async def start(self, watchers: Sequence[EtcdSettings] = ()) -> None:
        """Let all clients begin; `watchers` have ways of their own to the cluster."""
        self.counters = [await self._client(first) for first in range(2)]
        begin = await self.counters[0].put("begin", b"1")
        ways = [*watchers, *(self._settings_from(first) for first in range(3))]
        for number, way in enumerate(ways):
            store = await self._stack.enter_async_context(connected(way))
            self._watching.append(
                asyncio.create_task(self._watch(store, f"watcher-{number}", begin.revision))
            )
        self._running = [asyncio.create_task(self._count(store)) for store in self.counters]
        self._running += [
            asyncio.create_task(self._write(await self._client(first), first)) for first in (0, 1)
        ]
        self._running += [
            asyncio.create_task(self._hold(await self._client(first), f"holder-{first}"))
            for first in (1, 2)
        ]

    async def until_judgeable(self) -> None:
        """Wait until there is enough history to judge, however slow the machine is."""
        history = self.history
        await until(
            lambda: (
                len(history.counted) > OPERATIONS_MIN
                and len(history.written) > OPERATIONS_MIN
                and history.tenures
            ),
            f"more than {OPERATIONS_MIN} counts and writes, and a lease that was held",
        )

    async def finish(self) -> tuple[int, list[Versioned]]:
        """End the writers, then the watchers; return the counter and what is there at the end."""
        self._writing = False
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*self._running)
            store = self.counters[0]
            while True:
                with suppress(Transient):
                    final = await store.read(COUNTER)
                    await store.put(END, b"1")
                    break
            await asyncio.gather(*self._watching)
            return int(final.value or b"0"), await store.read_prefix(PREFIX)

    async def close(self) -> None:
        """Let go of everything, finished or not."""
        for task in [*self._running, *self._watching]:
            task.cancel()
        await asyncio.gather(*self._running, *self._watching, return_exceptions=True)
        await self._stack.aclose()

    async def _client(self, first: int) -> EtcdCoordination:
        return await self._stack.enter_async_context(connected(self._settings_from(first)))

    def _settings_from(self, first: int) -> EtcdSettings:
        endpoints = self._settings.endpoints
        first %= len(endpoints)
        return replace(self._settings, endpoints=endpoints[first:] + endpoints[:first])

    async def _count(self, store: EtcdCoordination) -> None:
        """Add one again and again by compare-and-put."""
        while self._writing:
            try:
                current = await store.read(COUNTER)
                value = b"%d" % (int(current.value or b"0") + 1)
                written = await store.compare_and_put(COUNTER, value, revision=current.revision)
            except Ambiguous:
                self.history.unknown += 1
            except Transient:
                pass
            else:
                if written is not None:
                    self.history.counted.append(written)
                    self.history.answered_at_s.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def _write(self, store: EtcdCoordination, writer: int) -> None:
        """Put and delete facts of its own."""
        number = 0
        while self._writing:
            number += 1
            key = f"{PREFIX}{writer}/{self._dice.below(KEYS)}"
            with suppress(Transient):
                if self._dice.happens(0.2):
                    await store.delete(key)
                else:
                    self.history.written.append(await store.put(key, b"%d" % number))
            await asyncio.sleep(0.01)

    async def _hold(self, store: EtcdCoordination, holder: str) -> None:
        """Hold the lease for a while, then give it up or let it run out, again and again."""
        while self._writing:
            held = None
            with suppress(Transient):
                held = await HeldLease.acquire(
                    store, LEASE, holder, ttl_s=LEASE_TTL_S, value=b"{}",
                    monotonic_s=time.monotonic,
                )  # fmt: skip
            if held is not None:
                await self._rely_on(held, holder)
            await asyncio.sleep(0.1)

    async def _rely_on(self, held: HeldLease, holder: str) -> None:
        from_s = until_s = time.monotonic()
        ends_s = from_s + self._dice.between(1.0, 6.0)
        keeping = asyncio.create_task(held.keep())
        while until_s < ends_s and self._writing:
            now_s = time.monotonic()  # before it is asked: a stall behind the answer is no tenure
            if not held.valid():
                break
            until_s = now_s
            await asyncio.sleep(0.01)
        if until_s > from_s:  # else it was granted so late that it had run out
            self.history.tenures.append(Tenure(holder, held.lease.epoch, from_s, until_s))
        keeping.cancel()
        await held.release()

    async def _watch(self, store: EtcdCoordination, name: str, after: int) -> None:
        seen = self.history.seen.setdefault(name, [])
        async with aclosing(store.watch(PREFIX, after_revision=after)) as changes:
            async for change in changes:
                seen.append(change)
                if change.key == END:
                    return


@asynccontextmanager
async def connected(settings: EtcdSettings) -> AsyncIterator[EtcdCoordination]:
    """Give an adapter, and close it."""
    store = EtcdCoordination(settings)
    try:
        yield store
    finally:
        await store.close()
