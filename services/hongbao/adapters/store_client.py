"""Owns a process's way to the embedded store: reads its files, writes through its socket.

A call that fails on the way leaves the outcome open: Ambiguous. Nothing is retried inside; the
channel reconnects by itself, and calls wait for it up to their timeout.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
import lmdb

from hongbao.adapters.lmdb_tables import TABLES, LmdbReader, open_tables
from hongbao.adapters.memory import check_fact, check_lease, check_pair
from hongbao.adapters.store_writes import StoreWrites
from hongbao.domain.errors import Transient
from hongbao.proto.v1 import store_pb2 as pb
from hongbao.shards import wire
from hongbao.shards.ports import Lease, Versioned

CALL_S_MAX: Final = 5.0
WATCH_RETRY_S: Final = 0.1


class StoreClient:
    """Is a LogStore and a Coordination for any process but the store. One per process.

    LMDB allows a process to open an environment only once.
    """

    def __init__(self, socket: Path, path: Path, *, call_s_max: float = CALL_S_MAX) -> None:
        self._path = path
        self._call_s_max = call_s_max
        self._reader: LmdbReader | None = None
        self._environment: lmdb.Environment | None = None
        self._channel = grpc.aio.insecure_channel(wire.unix_target(socket), options=wire.OPTIONS)
        self._write = self._method("Write", pb.WriteReply)
        self._writes = StoreWrites(self._send)
        self._compare_and_put = self._method("CompareAndPut", pb.CompareAndPutReply)
        self._acquire = self._method("Acquire", pb.AcquireReply)
        self._renew = self._method("Renew", pb.RenewReply)
        self._release = self._method("Release", pb.ReleaseReply)
        self._watch = self._channel.unary_stream(
            "/hongbao.v1.Store/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.VersionedValue.FromString,
        )

    async def close(self) -> None:
        """Let go of the channel and the files."""
        self._writes.close()
        await self._channel.close()
        if self._environment is not None:
            self._environment.close()

    async def create(self, key: bytes, value: bytes) -> bool:
        check_pair(key, value)
        return await self._writes.write([(key, value)], create=True)

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in items:
            check_pair(key, value)
        await self._writes.write(items, create=False)

    async def get(self, key: bytes) -> bytes | None:
        return self._read().get(key)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self._read().scan(start, end, limit)

    async def read(self, key: str) -> Versioned:
        return self._read().read(key)

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        return self._read().read_prefix(prefix)

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        check_fact(key, value)
        request = pb.CompareAndPutRequest(key=key, value=value, if_revision=revision)
        reply = await self._call(self._compare_and_put, request)
        return _fact_of(reply.written) if reply.HasField("written") else None

    async def put(self, key: str, value: bytes) -> Versioned:
        check_fact(key, value)
        request = pb.CompareAndPutRequest(key=key, value=value)
        return _fact_of((await self._call(self._compare_and_put, request)).written)

    async def delete(self, key: str) -> None:
        await self._call(self._compare_and_put, pb.CompareAndPutRequest(key=key))

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        while True:
            request = pb.WatchRequest(prefix=prefix, after_revision=after_revision)
            with suppress(grpc.aio.AioRpcError):
                async for message in self._watch(request, wait_for_ready=True):
                    after_revision = message.revision
                    yield _fact_of(message)
            await asyncio.sleep(WATCH_RETRY_S)  # the server went away: go on behind the last one

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        check_lease(name, ttl_s, value)
        request = pb.AcquireRequest(name=name, holder=holder, ttl_s=ttl_s, value=value)
        reply = await self._call(self._acquire, request)
        return Lease(name, holder, reply.epoch, ttl_s) if reply.HasField("epoch") else None

    async def renew(self, lease: Lease) -> bool:
        request = pb.RenewRequest(
            name=lease.name, holder=lease.holder, epoch=lease.epoch, ttl_s=lease.ttl_s
        )
        return bool((await self._call(self._renew, request)).held)

    async def release(self, lease: Lease) -> None:
        request = pb.ReleaseRequest(name=lease.name, holder=lease.holder, epoch=lease.epoch)
        await self._call(self._release, request)

    async def _send(self, items: Sequence[pb.WriteItem]) -> pb.WriteReply:
        reply: pb.WriteReply = await self._call(self._write, pb.WriteRequest(items=items))
        return reply

    def _method(self, name: str, reply: Any) -> Any:
        return self._channel.unary_unary(
            f"/hongbao.v1.Store/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reply.FromString,
        )

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._call_s_max, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise wire.received(error) from None

    def _read(self) -> LmdbReader:
        """Open the files when they are first needed: the store may start after us."""
        if self._reader is None:
            try:
                self._environment = lmdb.open(
                    str(self._path), readonly=True, create=False, max_dbs=len(TABLES)
                )
                tables = open_tables(self._environment, create=False)
            except lmdb.Error as error:
                raise Transient(f"store {self._path}: {error}", retry_after_s=0.2) from None
            self._reader = LmdbReader(self._environment, tables)
        return self._reader


def _fact_of(message: pb.VersionedValue) -> Versioned:
    return Versioned(message.key, message.value, message.revision)
