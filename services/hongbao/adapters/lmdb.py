"""Owns the embedded store: both ports on one LMDB environment that this process alone writes.

A lease's epoch is the revision that granted it, so epochs rise over restarts. Deadlines are kept
in memory on the monotonic clock (F9): after a restart every lease gets its full TTL again.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from hongbao.adapters.lmdb_tables import (
    REVISION,
    TABLES,
    U64,
    LeaseRecord,
    LmdbReader,
    Txn,
    open_tables,
    pack_event,
    pack_fact,
    pack_lease,
    read_number,
    unpack_event,
    unpack_fact,
    unpack_lease,
)
from hongbao.adapters.lmdb_writer import LmdbLimits, LmdbWriter, end_process
from hongbao.adapters.memory import check_fact, check_lease, check_pair
from hongbao.domain.errors import HongbaoError, Rejected, Transient
from hongbao.shards.ports import Lease, Versioned

EVENTS_PAGE: Final = 256
SWEEP_S: Final = 0.05
"""Expired leases are looked for this often."""
READER_CHECK_SWEEPS: Final = 200
"""Slots of killed readers are freed every so many sweeps; until then they pin old pages."""


@dataclass(slots=True)
class _Held:
    holder: str
    epoch: int
    ttl_s: float
    expires_s: float


class LmdbStore:
    """Keeps a LogStore and a Coordination durably in a folder. Use it inside one event loop."""

    def __init__(
        self,
        path: Path,
        *,
        monotonic_s: Callable[[], float],
        limits: LmdbLimits | None = None,
        on_broken: Callable[[], None] = end_process,
    ) -> None:
        """Keep the store in `path`; `on_broken` is called when its environment is past use."""
        self.path = path
        self._monotonic_s = monotonic_s
        self._limits = limits or LmdbLimits()
        self._on_broken = on_broken
        self._held: dict[str, _Held] = {}
        self._changed = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the environment for writing. Raises Rejected when another process has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._writer_lock = os.open(self.path / "writer.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._writer_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._writer_lock)
            raise Rejected(f"{self.path}: another process is writing this store") from None
        self._environment = lmdb.open(
            str(self.path), map_size=self._limits.map_bytes, max_dbs=len(TABLES), max_readers=512
        )
        self._tables = open_tables(self._environment, create=True)
        self._reader = LmdbReader(self._environment, self._tables)
        self.writer = LmdbWriter(
            self._environment, self._reader.resizing, self._limits, self._on_broken
        )
        self.writer.start()
        for name in self._reader.read_leases():
            self._hold_what_is_written(name)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """Write what waits and let go of the folder."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await self.writer.close()
        self._environment.close()
        os.close(self._writer_lock)

    async def create(self, key: bytes, value: bytes) -> bool:
        check_pair(key, value)
        table = self._tables.log
        created: bool = await self.writer.write(
            lambda txn: txn.put(key, value, db=table, overwrite=False)
        )
        return created

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in items:
            check_pair(key, value)

        def put(txn: Txn) -> None:
            with txn.cursor(self._tables.log) as cursor:
                cursor.putmulti(items)

        await self.writer.write(put)

    async def get(self, key: bytes) -> bytes | None:
        return self._reader.get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self._reader.scan(start, end, limit)

    async def read(self, key: str) -> Versioned:
        return self._reader.read(key)

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        return self._reader.read_prefix(prefix)

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        check_fact(key, value)

        def compare(txn: Txn) -> Versioned | None:
            current = unpack_fact(key, txn.get(key.encode(), db=self._tables.facts))
            return self._set(txn, key, value) if current.revision == revision else None

        compared: Versioned | None = await self.writer.write(compare, self._publish)
        return compared

    async def put(self, key: str, value: bytes) -> Versioned:
        check_fact(key, value)
        written: Versioned = await self.writer.write(
            lambda txn: self._set(txn, key, value), self._publish
        )
        return written

    async def delete(self, key: str) -> None:
        await self.writer.write(lambda txn: self._drop(txn, key), self._publish)

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        while True:
            changed = self._changed
            events = self._reader.read_events(after_revision, EVENTS_PAGE)
            for event in events:
                after_revision = event.revision
                if event.key.startswith(prefix):
                    yield event
            if not events:
                await changed.wait()

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        check_lease(name, ttl_s, value)
        held = self._held.get(name)
        if held and held.holder != holder and self._monotonic_s() < held.expires_s:
            return None
        seen = held.epoch if held else 0

        def grant(txn: Txn) -> int | None:
            record = self._lease_record(txn, name)
            if record is not None and record.epoch != seen:
                return None  # granted or taken over since
            epoch = self._set(txn, f"lease/{name}", value).revision
            packed = pack_lease(LeaseRecord(epoch, ttl_s, holder))
            txn.put(name.encode(), packed, db=self._tables.leases)
            return epoch

        def settle(outcome: int | HongbaoError | None) -> None:
            if isinstance(outcome, HongbaoError):
                self._hold_what_is_written(name)
            elif outcome is not None:
                self._held[name] = _Held(holder, outcome, ttl_s, self._monotonic_s() + ttl_s)
            self._publish(outcome)

        granting = self.writer.enqueue(grant, settle)
        self._held.pop(name, None)  # neither renewed nor ended while a grant is under way
        epoch: int | None = await granting
        return None if epoch is None else Lease(name, holder, epoch, ttl_s)

    def _hold_what_is_written(self, name: str) -> None:
        """Let the lease on disk, whoever has it, run for its full TTL from now."""
        record = self._reader.read_leases().get(name)
        if record is not None:
            expires_s = self._monotonic_s() + record.ttl_s
            self._held[name] = _Held(record.holder, record.epoch, record.ttl_s, expires_s)

    async def renew(self, lease: Lease) -> bool:
        held = self._held.get(lease.name)
        now_s = self._monotonic_s()
        if held is None or held.epoch != lease.epoch or held.expires_s <= now_s:
            return False
        held.expires_s = now_s + held.ttl_s
        return True

    async def release(self, lease: Lease) -> None:
        held = self._held.get(lease.name)
        if held and held.epoch == lease.epoch:
            await self._end(lease.name, held)

    async def _sweep_forever(self) -> None:
        sweeps = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self._monotonic_s()
            for name, held in list(self._held.items()):
                if held.expires_s <= now_s:
                    with suppress(Transient):  # still listed as expired: tried again
                        await self._end(name, held)
            sweeps += 1
            if sweeps % READER_CHECK_SWEEPS == 0:
                self._environment.reader_check()

    async def _end(self, name: str, held: _Held) -> None:
        """End a lease: not renewable from now on, then gone from the store."""
        held.expires_s = self._monotonic_s()

        def end(txn: Txn) -> Versioned | None:
            record = self._lease_record(txn, name)
            if record is None or record.epoch != held.epoch:
                return None
            txn.delete(name.encode(), db=self._tables.leases)
            return self._drop(txn, f"lease/{name}")

        def settle(outcome: Versioned | HongbaoError | None) -> None:
            if not isinstance(outcome, HongbaoError) and self._held.get(name) is held:
                del self._held[name]
            self._publish(outcome)

        await self.writer.write(end, settle)

    def _lease_record(self, txn: Txn, name: str) -> LeaseRecord | None:
        data = txn.get(name.encode(), db=self._tables.leases)
        return None if data is None else unpack_lease(data)

    def _set(self, txn: Txn, key: str, value: bytes) -> Versioned:
        """Write a fact under the next revision (empty: deleted) and remember it for watches."""
        tables, name = self._tables, key.encode()
        revision = read_number(txn, tables, REVISION) + 1
        last = txn.get(name, db=tables.facts)
        txn.put(REVISION, U64.pack(revision), db=tables.meta)
        txn.put(name, pack_fact(revision, value), db=tables.facts)
        txn.put(U64.pack(revision), pack_event(key, value), db=tables.events)
        old = revision - self._limits.events_max
        if last is not None and U64.unpack_from(last)[0] <= old:
            txn.delete(last[: U64.size], db=tables.events)
        self._forget_if_superseded(txn, old)
        return Versioned(key, value, revision)

    def _drop(self, txn: Txn, key: str) -> Versioned | None:
        current = unpack_fact(key, txn.get(key.encode(), db=self._tables.facts))
        return self._set(txn, key, b"") if current.revision else None

    def _forget_if_superseded(self, txn: Txn, revision: int) -> None:
        """Delete an old event unless it is still the last of its key."""
        number = U64.pack(max(revision, 0))
        data = txn.get(number, db=self._tables.events)
        if data is not None:
            key = unpack_event(number, data).key.encode()
            if txn.get(key, db=self._tables.facts)[: U64.size] != number:
                txn.delete(number, db=self._tables.events)

    def _publish(self, outcome: object) -> None:
        """Wake all watches, unless surely nothing was written."""
        if outcome is not None:
            self._changed.set()
            self._changed = asyncio.Event()
