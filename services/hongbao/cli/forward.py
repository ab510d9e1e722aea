"""Owns what Envoy does otherwise: a gateway without it passes opens on, nearest zone first."""

import grpc

from hongbao.cli.process import Process
from hongbao.domain.errors import Overloaded, Rejected, Transient, Unauthenticated
from hongbao.proto.v1 import redeem_pb2
from hongbao.transport.dispatcher import Method

OPEN_PATH = "/hongbao.v1.Redeem/Open"
TRY_S_MAX = 3.0
REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.INVALID_ARGUMENT: Rejected,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
}


def forward_opens(process: Process) -> list[Method]:
    """Return the method Open that asks redeem processes in turn; opens are safe to repeat."""
    specs = [spec for spec in process.specs if spec.role == "redeem"]
    specs.sort(key=lambda spec: spec.zone != process.spec.zone)
    calls = [
        grpc.aio.insecure_channel(f"127.0.0.1:{spec.ports['public']}").unary_unary(
            OPEN_PATH,
            request_serializer=redeem_pb2.OpenRequest.SerializeToString,
            response_deserializer=redeem_pb2.OpenReply.FromString,
        )
        for spec in specs
    ]

    async def open_packet(request: redeem_pb2.OpenRequest) -> redeem_pb2.OpenReply:
        for call in calls:
            try:
                reply: redeem_pb2.OpenReply = await call(request, timeout=TRY_S_MAX)
                return reply
            except grpc.aio.AioRpcError as error:
                if refusal := REFUSALS.get(error.code()):
                    raise refusal(error.details() or "refused") from error
        raise Transient("no redeem process answers", retry_after_s=0.5)

    return [Method(OPEN_PATH, redeem_pb2.OpenRequest, redeem_pb2.OpenReply, open_packet)]
