"""Serves opens by grpcio's aio server, as peers do."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from hongbao.proto.v1 import redeem_pb2

OpenPacket = Callable[[Any, Any], Awaitable[Any]]


async def serve_opens(open_packet: OpenPacket, port: int) -> None:
    """Answer Redeem.Open by a handler of messages until the process is killed."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        open_packet,
        request_deserializer=redeem_pb2.OpenRequest.FromString,
        response_serializer=redeem_pb2.OpenReply.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler("hongbao.v1.Redeem", {"Open": handler})
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()
