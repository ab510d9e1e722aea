"""Owns the in-memory store: both ports, for tests, simulation and the contract suites."""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from hongbao.domain.errors import Exhausted, Rejected
from hongbao.shards.ports import KEY_BYTES_MAX, VALUE_BYTES_MAX, Lease, Versioned

TTL_S_MAX: Final = 3600.0


@dataclass(slots=True)
class _Held:
    lease: Lease
    expires_s: float


class MemoryStore:
    """Keeps a LogStore and a Coordination in one process's memory; nothing survives it."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._values: dict[bytes, bytes] = {}
        self._order: list[bytes] = []
        self._unordered: list[bytes] = []
        self._facts: dict[str, Versioned] = {}
        self._held: dict[str, _Held] = {}
        self._revision = 0
        self._events: list[Versioned] = []
        self._changed = asyncio.Event()

    async def create(self, key: bytes, value: bytes) -> bool:
        check_pair(key, value)
        if key in self._values:
            return False
        self._write(key, value)
        return True

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in items:
            check_pair(key, value)
        for key, value in items:
            self._write(key, value)

    async def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        if self._unordered:
            self._order += self._unordered
            self._order.sort()  # a sorted run and a short tail: linear
            self._unordered = []
        first = bisect_left(self._order, start)
        last = min(bisect_left(self._order, end), first + limit)
        return [(key, self._values[key]) for key in self._order[first:last]]

    def _write(self, key: bytes, value: bytes) -> None:
        if key not in self._values:
            self._unordered.append(key)
        self._values[key] = value

    async def read(self, key: str) -> Versioned:
        self._expire()
        return self._facts.get(key, Versioned(key, b"", 0))

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        self._expire()
        return [self._facts[key] for key in sorted(self._facts) if key.startswith(prefix)]

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        check_fact(key, value)
        self._expire()
        current = self._facts.get(key)
        if (current.revision if current else 0) != revision:
            return None
        return self._set(key, value)

    async def put(self, key: str, value: bytes) -> Versioned:
        check_fact(key, value)
        self._expire()
        return self._set(key, value)

    async def delete(self, key: str) -> None:
        self._expire()
        self._drop(key)

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        while True:
            self._expire()
            first = bisect_right(self._events, after_revision, key=lambda event: event.revision)
            if first == len(self._events):
                await self._wait_for_change()
                continue
            event = self._events[first]
            after_revision = event.revision
            if event.key.startswith(prefix):
                yield event

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        check_lease(name, ttl_s, value)
        self._expire()
        held = self._held.get(name)
        if held and held.lease.holder != holder:
            return None
        fact = self._set(f"lease/{name}", value)
        lease = Lease(name, holder, fact.revision, ttl_s)
        self._held[name] = _Held(lease, self._monotonic_s() + ttl_s)
        return lease

    async def renew(self, lease: Lease) -> bool:
        self._expire()
        held = self._held.get(lease.name)
        if held is None or held.lease.epoch != lease.epoch:
            return False
        held.expires_s = self._monotonic_s() + lease.ttl_s
        return True

    async def release(self, lease: Lease) -> None:
        self._expire()
        held = self._held.get(lease.name)
        if held and held.lease.epoch == lease.epoch:
            del self._held[lease.name]
            self._drop(f"lease/{lease.name}")

    def restart(self) -> None:
        """Behave as a store server that was restarted: every lease gets its full TTL again."""
        for held in self._held.values():
            held.expires_s = self._monotonic_s() + held.lease.ttl_s

    def _expire(self) -> None:
        now_s = self._monotonic_s()
        for name in [name for name, held in self._held.items() if held.expires_s <= now_s]:
            del self._held[name]
            self._drop(f"lease/{name}")

    async def _wait_for_change(self) -> None:
        """Sleep until something was written or the next lease may expire."""
        next_s = min((held.expires_s for held in self._held.values()), default=None)
        wait_s = None if next_s is None else max(next_s - self._monotonic_s(), 0.001)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()

    def _set(self, key: str, value: bytes) -> Versioned:
        fact = self._record(key, value)
        self._facts[key] = fact
        return fact

    def _drop(self, key: str) -> None:
        if self._facts.pop(key, None) is not None:
            self._record(key, b"")

    def _record(self, key: str, value: bytes) -> Versioned:
        self._revision += 1
        fact = Versioned(key, value, self._revision)
        self._events.append(fact)
        self._changed.set()
        self._changed = asyncio.Event()
        return fact


def check_pair(key: bytes, value: bytes) -> None:
    """Refuse a key or value that no store takes. Raises Exhausted."""
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise Exhausted(f"key of {len(key)} bytes, the limit is {KEY_BYTES_MAX}")
    if len(value) > VALUE_BYTES_MAX:
        raise Exhausted(f"value of {len(value)} bytes, the limit is {VALUE_BYTES_MAX}")


def check_fact(key: str, value: bytes) -> None:
    """Refuse a fact that no store takes: an empty value means a deletion. Raises Exhausted."""
    check_pair(key.encode(), value)
    if not value:
        raise Exhausted(f"fact {key}: an empty value means deletion")


def check_lease(name: str, ttl_s: float, value: bytes) -> None:
    """Refuse a lease that no store grants. Raises Rejected."""
    check_fact(f"lease/{name}", value)
    if not 0 < ttl_s <= TTL_S_MAX:
        raise Rejected(f"lease {name}: ttl of {ttl_s} s is not within (0, {TTL_S_MAX}]")
