"""Owns the Unix socket over which all processes of a machine write the embedded store."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from hongbao.adapters.lmdb import LmdbStore
from hongbao.domain.errors import HongbaoError
from hongbao.proto.v1 import store_pb2 as pb
from hongbao.shards import wire
from hongbao.shards.ports import Lease, Versioned


class StoreServer:
    """Serves one LmdbStore; several calls that wait share one fsync."""

    def __init__(self, store: LmdbStore, socket: Path) -> None:
        self._store = store
        self._socket = socket

    async def start(self) -> None:
        """Open the store, then listen; the store's lock makes sure that we are the only one."""
        await self._store.start()
        self._socket.unlink(missing_ok=True)  # left by a killed server
        self._server = grpc.aio.server(options=wire.OPTIONS)
        methods = {
            "Write": _unary(self._write, pb.WriteRequest),
            "CompareAndPut": _unary(self._compare_and_put, pb.CompareAndPutRequest),
            "Acquire": _unary(self._acquire, pb.AcquireRequest),
            "Renew": _unary(self._renew, pb.RenewRequest),
            "Release": _unary(self._release, pb.ReleaseRequest),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=pb.WatchRequest.FromString,
                response_serializer=pb.VersionedValue.SerializeToString,
            ),
        }
        handler = grpc.method_handlers_generic_handler("hongbao.v1.Store", methods)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(wire.unix_target(self._socket))
        await self._server.start()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Finish calls that are under way, then close the store."""
        await self._server.stop(grace_s)
        await self._store.close()

    async def _write(self, request: pb.WriteRequest) -> pb.WriteReply:
        """Write all items at once, so that they share a transaction; each has its own outcome."""
        outcomes = await asyncio.gather(*map(self._write_item, request.items))
        failed = [
            (index, outcome)
            for index, outcome in enumerate(outcomes)
            if isinstance(outcome, HongbaoError)
        ]
        return pb.WriteReply(
            written=[outcome is True for outcome in outcomes],
            failures=[wire.failure_of(index, error) for index, error in failed],
        )

    async def _write_item(self, item: pb.WriteItem) -> bool | HongbaoError:
        try:
            if item.create:
                (pair,) = item.pairs
                return await self._store.create(pair.key, pair.value)
            await self._store.put_many([(pair.key, pair.value) for pair in item.pairs])
        except HongbaoError as error:
            return error
        return True

    async def _compare_and_put(self, request: pb.CompareAndPutRequest) -> pb.CompareAndPutReply:
        key, value = request.key, request.value
        if request.HasField("if_revision"):
            written = await self._store.compare_and_put(key, value, revision=request.if_revision)
        elif value:
            written = await self._store.put(key, value)
        else:
            await self._store.delete(key)
            written = None
        return pb.CompareAndPutReply(written=None if written is None else _message_of(written))

    async def _watch(
        self, request: pb.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.VersionedValue]:
        try:
            async for fact in self._store.watch(
                request.prefix, after_revision=request.after_revision
            ):
                yield _message_of(fact)
        except HongbaoError as error:
            await wire.abort(context, error)

    async def _acquire(self, request: pb.AcquireRequest) -> pb.AcquireReply:
        lease = await self._store.acquire(
            request.name, request.holder, ttl_s=request.ttl_s, value=request.value
        )
        return pb.AcquireReply(epoch=None if lease is None else lease.epoch)

    async def _renew(self, request: pb.RenewRequest) -> pb.RenewReply:
        return pb.RenewReply(held=await self._store.renew(_lease_of(request, request.ttl_s)))

    async def _release(self, request: pb.ReleaseRequest) -> pb.ReleaseReply:
        await self._store.release(_lease_of(request, 0.0))
        return pb.ReleaseReply()


def _lease_of(request: pb.RenewRequest | pb.ReleaseRequest, ttl_s: float) -> Lease:
    return Lease(request.name, request.holder, request.epoch, ttl_s)


def _message_of(fact: Versioned) -> pb.VersionedValue:
    return pb.VersionedValue(key=fact.key, value=fact.value, revision=fact.revision)


def _unary(handler: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        wire.translated(handler),
        request_deserializer=request.FromString,
        response_serializer=lambda reply: reply.SerializeToString(),
    )
