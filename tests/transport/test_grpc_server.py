"""The same dispatcher on grpcio: where Envoy cannot embed Python, callers see no difference."""

import asyncio

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hongbao.proto.v1 import access_pb2
from hongbao.transport.admission import Admission
from hongbao.transport.dispatcher import Dispatcher
from hongbao.transport.errors import failure_of
from hongbao.transport.grpc_server import start_grpc_server
from hongbao.transport.metrics import CallMetrics

from tests.transport.gateway_app import FAILURES, METHODS
from tests.waiting import LIMIT_S, until

SHAKE = "/hongbao.v1.Access/Shake"
OPEN_SESSION = "/hongbao.v1.Access/OpenSession"


def new_dispatcher() -> Dispatcher:
    return Dispatcher(METHODS, Admission(), CallMetrics())


@pytest.mark.parametrize("name", sorted(FAILURES))
async def test_errors_are_those_of_the_gateway(name: str) -> None:
    server = await start_grpc_server(new_dispatcher(), "127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = access_pb2.ShakeRequest(campaign=name).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(SHAKE)(request)
    await server.drain(grace_s=0)
    expected = failure_of(FAILURES[name])
    assert (caught.value.code().value[0], caught.value.details()) == (
        expected.code,
        expected.message,
    )
    trailers = dict(caught.value.trailing_metadata() or ())
    assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).code == expected.code


async def test_sync_and_async_handlers_answer() -> None:
    server = await start_grpc_server(new_dispatcher(), "127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        shake = access_pb2.ShakeReply.FromString(await channel.unary_unary(SHAKE)(b""))
        session = access_pb2.OpenSessionReply.FromString(
            await channel.unary_unary(OPEN_SESSION)(b"\x12\x03jwt")
        )
    await server.drain(grace_s=0)
    assert shake.outcome == access_pb2.PACKET
    assert session.expires_at_s == 3


async def test_oversized_and_unparsable_messages_are_refused() -> None:
    server = await start_grpc_server(new_dispatcher(), "127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        big = await channel.unary_unary(SHAKE)(b"\x12" + b"a" * 20_000).code()
        bad = await channel.unary_unary(SHAKE)(b"\xff").code()
        unknown = await channel.unary_unary("/hongbao.v1.Access/Nope")(b"").code()
    await server.drain(grace_s=0)
    assert big is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bad is grpc.StatusCode.INVALID_ARGUMENT
    assert unknown is grpc.StatusCode.UNIMPLEMENTED


async def test_a_drain_says_so_first_and_ends_what_runs() -> None:
    server = await start_grpc_server(new_dispatcher(), "127.0.0.1:0", services=("x",))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        slow = access_pb2.OpenSessionRequest(campaign="wait-300").SerializeToString()
        health = health_pb2_grpc.HealthStub(channel)
        before = await health.Check(health_pb2.HealthCheckRequest(service="x"))
        call = channel.unary_unary(OPEN_SESSION)(slow)
        draining = asyncio.create_task(server.drain(settle_s=LIMIT_S, grace_s=LIMIT_S))
        await asyncio.sleep(0)  # it has told by now, and does not stop before a minute is over
        during = await health.Check(health_pb2.HealthCheckRequest(service="x"))
        draining.cancel()
        finishing = asyncio.create_task(server.drain(grace_s=LIMIT_S))
        assert await call.code() is grpc.StatusCode.OK
        await finishing
    states = health_pb2.HealthCheckResponse
    assert (before.status, during.status) == (states.SERVING, states.NOT_SERVING)


async def test_calls_over_the_limit_are_refused_before_any_python() -> None:
    server = await start_grpc_server(new_dispatcher(), "127.0.0.1:0", calls_max=5)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        slow = access_pb2.OpenSessionRequest(campaign="wait-120000").SerializeToString()
        calls = [channel.unary_unary(OPEN_SESSION)(slow) for _ in range(12)]
        await until(lambda: sum(call.done() for call in calls) >= 7, "seven calls are refused")
        codes = [await call.code() for call in calls if call.done()]
        for call in calls:
            call.cancel()
    await server.drain(grace_s=0)
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 7
