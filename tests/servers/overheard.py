"""Stands between a client and all servers of a TiKV cluster, and notes what the client asks.

PD tells a client where it and the stores are. In its replies our own ports take the places of
theirs, so that a client that knows our PD port talks through us with everyone.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from tests.servers.started import free_port
from tests.servers.tikv import TikvCluster

MESSAGE_BYTES_MAX = 64 << 20
OPTIONS = tuple(
    (f"grpc.max_{way}_message_length", MESSAGE_BYTES_MAX) for way in ("send", "receive")
)
USE_ASYNC_COMMIT, TRY_ONE_PC = 11, 13
"""Fields of kvrpcpb.PrewriteRequest; our client for the raw API has no such messages. This client
always fills in `secondaries` (12), which means nothing without the first of them."""
SHORTCUTS = {USE_ASYNC_COMMIT: "async commit", TRY_ONE_PC: "one-phase commit"}


class Overheard:
    """Is what a client asked, in order: the last name of each method, and the request."""

    def __init__(self) -> None:
        self.pd: list[str] = []
        self.asked: list[tuple[str, bytes]] = []

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]

    def requests(self, method: str) -> list[bytes]:
        return [request for asked, request in self.asked if asked == method]


def shortcuts(prewrite: bytes) -> set[str]:
    """Return the ways around a two-phase commit that a PrewriteRequest asks for."""
    fields = UnknownFieldSet(Empty.FromString(prewrite))
    return {
        SHORTCUTS[one.field_number] for one in fields if one.data and one.field_number in SHORTCUTS
    }


@asynccontextmanager
async def overheard(cluster: TikvCluster) -> AsyncIterator[Overheard]:
    """Listen in front of each server of a cluster."""
    heard = Overheard()
    theirs = [*cluster.pd_endpoints, *(cluster.store_address(n) for n in range(cluster.stores))]
    ours = {one: f"127.0.0.1:{free_port()}" for one in theirs}
    async with AsyncExitStack() as stack:
        for target, endpoint in ours.items():
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(target, options=OPTIONS)
            )
            server = grpc.aio.server(options=OPTIONS)
            server.add_generic_rpc_handlers((_Carrier(channel, heard, ours),))
            server.add_insecure_port(endpoint)
            await server.start()
            stack.push_async_callback(server.stop, None)
        heard.pd = [ours[one] for one in cluster.pd_endpoints]
        yield heard


class _Carrier(grpc.GenericRpcHandler):
    """Carries every call, unary ones too, as streams of bytes."""

    def __init__(
        self, channel: grpc.aio.Channel, heard: Overheard, ours: Mapping[str, str]
    ) -> None:
        self._channel = channel
        self._heard = heard
        # Of one length, so that no length around them changes.
        assert all(len(one) == len(other) for one, other in ours.items())
        self._ours = {one.encode(): other.encode() for one, other in ours.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        method = path.rpartition("/")[2]

        async def noted(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for request in requests:
                self._heard.asked.append((method, request))
                yield request

        async def carry(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            try:
                async for reply in self._channel.stream_stream(path)(noted(requests)):
                    yield self._renamed(reply)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")

        return grpc.stream_stream_rpc_method_handler(carry)

    def _renamed(self, reply: bytes) -> bytes:
        for theirs, ours in self._ours.items():
            reply = reply.replace(theirs, ours)
        return reply
