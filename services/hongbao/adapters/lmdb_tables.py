"""Owns how both ports lie in LMDB and how they are read; refuses to write.

Readers in other processes use the same code on a read-only environment.
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import lmdb

from hongbao.shards.ports import Versioned

TABLES: Final = (b"log", b"facts", b"events", b"leases", b"meta")
REVISION: Final = b"revision"
U64: Final = struct.Struct(">Q")
Txn = Any
"""An lmdb.Transaction: its stubs do not know that without `buffers` it returns bytes."""
_EVENT: Final = struct.Struct(">H")
_LEASE: Final = struct.Struct(">QdH")


@dataclass(frozen=True, slots=True)
class Tables:
    """Holds the handles of the named databases of one environment."""

    log: Any  # both ports of hongbao.shards.ports.LogStore
    facts: Any  # key → revision u64 ‖ value (empty: deleted)
    events: Any  # revision u64 → key length u16 ‖ key ‖ value
    leases: Any  # name → epoch u64 ‖ ttl f64 ‖ holder length u16 ‖ holder
    meta: Any  # revision → u64


def open_tables(environment: lmdb.Environment, *, create: bool) -> Tables:
    """Open all named databases. Raises lmdb.Error when they do not exist yet."""
    return Tables(*(environment.open_db(name, create=create) for name in TABLES))


def pack_fact(revision: int, value: bytes) -> bytes:
    return U64.pack(revision) + value


def unpack_fact(key: str, data: bytes | None) -> Versioned:
    if data is None or len(data) == U64.size:
        return Versioned(key, b"", 0)
    return Versioned(key, data[U64.size :], U64.unpack_from(data)[0])


def pack_event(key: str, value: bytes) -> bytes:
    name = key.encode()
    return _EVENT.pack(len(name)) + name + value


def unpack_event(revision: bytes, data: bytes) -> Versioned:
    end = _EVENT.size + _EVENT.unpack_from(data)[0]
    return Versioned(data[_EVENT.size : end].decode(), data[end:], U64.unpack(revision)[0])


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Is what a lease leaves on disk; deadlines live only in the server's memory."""

    epoch: int
    ttl_s: float
    holder: str


def pack_lease(record: LeaseRecord) -> bytes:
    holder = record.holder.encode()
    return _LEASE.pack(record.epoch, record.ttl_s, len(holder)) + holder


def unpack_lease(data: bytes) -> LeaseRecord:
    epoch, ttl_s, length = _LEASE.unpack_from(data)
    return LeaseRecord(epoch, ttl_s, data[_LEASE.size : _LEASE.size + length].decode())


def read_number(txn: Txn, tables: Tables, name: bytes) -> int:
    """Return a number of the meta table; 0 when it was never written."""
    data = txn.get(name, db=tables.meta)
    return 0 if data is None else int(U64.unpack(data)[0])


class LmdbReader:
    """Reads both ports from an environment that another thread or process writes."""

    def __init__(self, environment: lmdb.Environment, tables: Tables) -> None:
        self._environment = environment
        self._tables = tables
        self.resizing = threading.Lock()
        """LMDB moves its map only while this process has no transaction open."""

    @contextmanager
    def _begin(self) -> Iterator[Txn]:
        with self.resizing:
            try:
                txn = self._environment.begin()
            except lmdb.MapResizedError:  # the writer has grown the file
                self._environment.set_mapsize(0)
                txn = self._environment.begin()
            with txn:
                yield txn

    def get(self, key: bytes) -> bytes | None:
        with self._begin() as txn:
            value: bytes | None = txn.get(key, db=self._tables.log)
            return value

    def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        pairs: list[tuple[bytes, bytes]] = []
        with self._begin() as txn, txn.cursor(self._tables.log) as cursor:
            found = limit > 0 and cursor.set_range(start)
            while found and len(pairs) < limit and cursor.key() < end:
                pairs.append(cursor.item())
                found = cursor.next()
        return pairs

    def read(self, key: str) -> Versioned:
        with self._begin() as txn:
            return unpack_fact(key, txn.get(key.encode(), db=self._tables.facts))

    def read_prefix(self, prefix: str) -> list[Versioned]:
        start, facts = prefix.encode(), []
        with self._begin() as txn, txn.cursor(self._tables.facts) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found and cursor.key().startswith(start):
                facts.append(unpack_fact(cursor.key().decode(), cursor.value()))
                found = cursor.next()
        return [fact for fact in facts if fact.revision]

    def read_events(self, after_revision: int, limit: int) -> list[Versioned]:
        """Return the next events, in order."""
        events: list[Versioned] = []
        with self._begin() as txn, txn.cursor(self._tables.events) as cursor:
            found = cursor.set_range(U64.pack(after_revision + 1))
            while found and len(events) < limit:
                events.append(unpack_event(*cursor.item()))
                found = cursor.next()
        return events

    def read_leases(self) -> dict[str, LeaseRecord]:
        with self._begin() as txn, txn.cursor(self._tables.leases) as cursor:
            return {name.decode(): unpack_lease(data) for name, data in cursor}
