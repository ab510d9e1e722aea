"""Wraps a LogStore so that a test says what goes wrong, call by call."""

import asyncio
from collections.abc import Sequence

from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous, Transient


class FaultyStore:
    """Fails the next creates and puts as told: `lost`, `dropped`, `refused`, `late`, `held`."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.creates: list[str] = []
        self.puts: list[str] = []
        self.create_count = 0
        self.reads_fail = 0
        self.go = asyncio.Event()
        """Opens what is `held`."""
        self.holds = 0
        """Calls that were held so far: a test waits for them, not for a time."""
        self._late: list[tuple[bytes, bytes]] = []

    async def create(self, key: bytes, value: bytes) -> bool:
        self.create_count += 1
        fault = self.creates.pop(0) if self.creates else "none"
        if fault == "held":
            await self._hold()
        if fault == "refused":
            raise Transient("refused")
        if fault == "late":
            self._late.append((key, value))
        if fault in ("dropped", "late"):
            raise Ambiguous("nobody knows")
        created = await self.inner.create(key, value)
        if fault == "lost":
            raise Ambiguous("nobody knows")
        return created

    async def deliver_late(self) -> list[bool]:
        """Let the creates arrive that were given up as `late`."""
        return [await self.inner.create(key, value) for key, value in self._late]

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        fault = self.puts.pop(0) if self.puts else "none"
        if fault == "held":
            await self._hold()
        if fault == "refused":
            raise Transient("refused")
        if fault == "partly":
            await self.inner.put_many(items[: len(items) // 2])
            raise Ambiguous("nobody knows")
        await self.inner.put_many(items)

    async def _hold(self) -> None:
        self.holds += 1
        await self.go.wait()

    async def get(self, key: bytes) -> bytes | None:
        if self.reads_fail:
            self.reads_fail -= 1
            raise Transient("refused")
        return await self.inner.get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return await self.inner.scan(start, end, limit)


class JointFaultyStore(FaultyStore):
    """Has transactions, too: a create that goes through takes its puts along."""

    async def create_with(
        self, key: bytes, value: bytes, puts: Sequence[tuple[bytes, bytes]]
    ) -> bool:
        lost = self.creates[:1] == ["lost"]
        try:
            created = await self.create(key, value)
        except Ambiguous:
            if lost:
                await self.inner.put_many(puts)
            raise
        if created:
            await self.inner.put_many(puts)
        return created
