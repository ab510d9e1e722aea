"""Owns the gRPC between processes that own shards: `Shards.Submit`, many operations a call."""

from collections.abc import Sequence
from typing import Any, Final

import grpc

from hongbao.domain.errors import Ambiguous, Fenced
from hongbao.proto.v1 import shards_pb2 as pb
from hongbao.shards import wire
from hongbao.shards.router import FindOwner, Outcome, submit_all

CALL_S_MAX: Final = 15.0
"""Longer than an owner tries to resolve an append."""


def add_shards_service(server: grpc.aio.Server, find_owner: FindOwner) -> None:
    """Serve the shards that this process owns on a grpc.aio server."""

    async def submit(request: pb.SubmitRequest) -> pb.SubmitReply:
        owner = find_owner(request.plane, request.shard)
        if owner is None:
            raise Fenced(f"{request.plane}/{request.shard}: not owned here")
        return _reply_of(await submit_all(owner, request.operations))

    method = grpc.unary_unary_rpc_method_handler(
        wire.translated(submit),
        request_deserializer=pb.SubmitRequest.FromString,
        response_serializer=pb.SubmitReply.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("hongbao.v1.Shards", {"Submit": method})
    server.add_generic_rpc_handlers((handler,))


class GrpcPeers:
    """Calls other processes, one channel per address."""

    def __init__(self, *, call_s_max: float = CALL_S_MAX) -> None:
        self._call_s_max = call_s_max
        self._channels: dict[str, tuple[grpc.aio.Channel, Any]] = {}

    async def submit(
        self, address: str, plane: str, shard: int, operations: Sequence[bytes]
    ) -> Sequence[Outcome]:
        request = pb.SubmitRequest(plane=plane, shard=shard, operations=operations)
        try:
            reply = await self._method(address)(request, timeout=self._call_s_max)
        except grpc.aio.AioRpcError as error:
            raise wire.received(error) from None
        return _outcomes_of(reply, len(operations))

    async def close(self) -> None:
        """Close all channels."""
        for channel, _ in self._channels.values():
            await channel.close()

    def _method(self, address: str) -> Any:
        entry = self._channels.get(address)
        if entry is None:
            channel = grpc.aio.insecure_channel(address, options=wire.OPTIONS)
            method = channel.unary_unary(
                "/hongbao.v1.Shards/Submit",
                request_serializer=pb.SubmitRequest.SerializeToString,
                response_deserializer=pb.SubmitReply.FromString,
            )
            entry = self._channels[address] = (channel, method)
        return entry[1]


def _reply_of(outcomes: Sequence[Outcome]) -> pb.SubmitReply:
    failed = [
        (index, outcome) for index, outcome in enumerate(outcomes) if not isinstance(outcome, bytes)
    ]
    return pb.SubmitReply(
        results=[outcome if isinstance(outcome, bytes) else b"" for outcome in outcomes],
        failures=[wire.failure_of(index, error) for index, error in failed],
    )


def _outcomes_of(reply: pb.SubmitReply, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = list(reply.results)
    if len(outcomes) != count:
        raise Ambiguous(f"a peer answered {len(outcomes)} of {count} operations")
    for failure in reply.failures:
        outcomes[failure.index] = wire.error_of(failure)
    return outcomes
