"""A small grpc.aio server of Access and Redeem, with the faults that a client must survive."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hongbao.client.gateways import Gateway
from hongbao.proto.v1 import access_pb2, redeem_pb2


class ToyCampaign:
    """Answers shakes and opens from memory; hooks decide what fails."""

    def __init__(self) -> None:
        self.packets = 0
        self.opened: dict[int, int] = {}
        self.opens = 0
        self.shakes = 0
        self.jwts: list[str] = []
        self.outcome: Callable[[int], int] = lambda shake: access_pb2.PACKET
        self.open_fault: Callable[[int], grpc.StatusCode | None] = lambda attempt: None
        self.shake_fault: Callable[[int], grpc.StatusCode | None] = lambda attempt: None
        self.retry_after_ms = 0
        self.tuning = access_pb2.Tuning(backoff_ms_max=200)

    async def open_session(self, request: Any, context: Any) -> Any:
        self.jwts.append(request.jwt)
        user = request.jwt.rpartition(":")[2].encode()
        return access_pb2.OpenSessionReply(
            session=b"session-" + user, expires_at_s=2_000_000_000, tuning=self.tuning
        )

    async def shake(self, request: Any, context: Any) -> Any:
        self.shakes += 1
        fault = self.shake_fault(self.shakes)
        if fault is not None:
            await refuse(context, fault)
        reply = access_pb2.ShakeReply(
            outcome=self.outcome(self.shakes), retry_after_ms=self.retry_after_ms
        )
        if reply.outcome == access_pb2.PACKET:
            self.packets += 1
            reply.claim_token = b"%d" % self.packets
        return reply

    async def open(self, request: Any, context: Any) -> Any:
        """Record the open first, then perhaps lose the reply: as a crash in between would."""
        self.opens += 1
        packet = int(request.claim_token)
        user = int(request.session.rpartition(b"-")[2])
        owner = self.opened.setdefault(packet, user)
        fault = self.open_fault(self.opens)
        if fault is not None:
            await refuse(context, fault)
        if owner != user:
            return redeem_pb2.OpenReply(outcome=redeem_pb2.ALREADY_OPENED, packet=packet)
        return redeem_pb2.OpenReply(
            outcome=redeem_pb2.OPENED, amount_fen=100 + packet, packet=packet, sponsor=1
        )


async def refuse(context: Any, code: grpc.StatusCode, retry_after_ms: int = 20) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(retry_after_ms)
    detail = any_pb2.Any()
    detail.Pack(retry)
    status = status_pb2.Status(code=code.value[0], message="not now", details=[detail])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(code, "not now")


@asynccontextmanager
async def serving(toy: ToyCampaign, *, zone: str = "a", port: int = 0) -> AsyncIterator[Gateway]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    access = {
        "OpenSession": _unary(toy.open_session, access_pb2.OpenSessionRequest),
        "Shake": _unary(toy.shake, access_pb2.ShakeRequest),
    }
    redeem = {"Open": _unary(toy.open, redeem_pb2.OpenRequest)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("hongbao.v1.Access", access),
            grpc.method_handlers_generic_handler("hongbao.v1.Redeem", redeem),
        )
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield Gateway(zone, "127.0.0.1", bound)
    finally:
        await server.stop(0)


def _unary(handler: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        handler,
        request_deserializer=request.FromString,
        response_serializer=lambda reply: reply.SerializeToString(),
    )


def jwt_of(user: int) -> str:
    return f"jwt-of:{user}"


def wall_ms() -> int:
    return 1_770_000_000_000
