"""What every caller of a real gateway may rely on: three encodings, one answer."""

import base64
import struct
from pathlib import Path

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hongbao.proto.v1 import access_pb2

from tests.transport.gateway import Gateway, gateway_config, running_gateway
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHAKE = "/hongbao.v1.Access/Shake"
OPEN_SESSION = "/hongbao.v1.Access/OpenSession"


async def shake_by_grpc(gateway: Gateway, campaign: str, **options: float) -> access_pb2.ShakeReply:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary(
            SHAKE,
            request_serializer=access_pb2.ShakeRequest.SerializeToString,
            response_deserializer=access_pb2.ShakeReply.FromString,
        )
        return await call(access_pb2.ShakeRequest(campaign=campaign, session=b"s"), **options)


async def test_shake_answers_the_same_over_grpc_grpc_web_and_json(gateway: Gateway) -> None:
    by_grpc = await shake_by_grpc(gateway, "new-year")
    frame = access_pb2.ShakeRequest(campaign="new-year", session=b"s").SerializeToString()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        web = await client.post(
            SHAKE,
            content=struct.pack(">BI", 0, len(frame)) + frame,
            headers={"content-type": "application/grpc-web+proto"},
        )
        json = await client.post("/v1/campaigns/new-year:shake", json={"session": "cw=="})
    size = int.from_bytes(web.content[1:5])
    by_web = access_pb2.ShakeReply.FromString(web.content[5 : 5 + size])
    assert by_grpc.outcome == by_web.outcome == access_pb2.PACKET
    assert len(by_grpc.claim_token) == len(by_web.claim_token) == 56
    assert b"grpc-status:0" in web.content[5 + size :]
    assert json.json()["outcome"] == "PACKET"
    assert len(base64.b64decode(json.json()["claimToken"])) == 56


@pytest.mark.parametrize(
    ("campaign", "code", "status", "reason"),
    [
        ("rejected", grpc.StatusCode.INVALID_ARGUMENT, 400, "REJECTED"),
        ("unauthenticated", grpc.StatusCode.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
        ("not-found", grpc.StatusCode.NOT_FOUND, 404, "NOT_FOUND"),
        ("exhausted", grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "LIMIT_PASSED"),
        ("overloaded", grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OVERLOADED"),
        ("transient", grpc.StatusCode.UNAVAILABLE, 503, "TRANSIENT"),
        ("ambiguous", grpc.StatusCode.UNAVAILABLE, 503, "TRANSIENT"),
        ("fenced", grpc.StatusCode.UNAVAILABLE, 503, "OWNER_MOVED"),
        ("corrupt", grpc.StatusCode.DATA_LOSS, 500, "CORRUPT"),
        ("bug", grpc.StatusCode.INTERNAL, 500, "INTERNAL"),
    ],
)
async def test_every_error_has_one_code_in_each_encoding(
    gateway: Gateway, campaign: str, code: grpc.StatusCode, status: int, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shake_by_grpc(gateway, campaign)
    trailers = dict(caught.value.trailing_metadata() or ())
    rich = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert (caught.value.code(), rich.code, info.reason) == (code, code.value[0], reason)

    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(f"/v1/campaigns/{campaign}:shake", json={})
    body = answer.json()
    assert answer.status_code == status
    assert set(body) == {"code", "message", "details"}
    assert (body["code"], body["message"]) == (code.value[0], caught.value.details())
    assert body["details"][0]["reason"] == reason


async def test_a_failure_that_is_ours_tells_nothing_of_its_inside(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        bug = await client.post("/v1/campaigns/bug:shake", json={})
        forged = await client.post("/v1/campaigns/unauthenticated:shake", json={})
    assert "secret" not in bug.text
    assert "pod 3" not in forged.text


async def test_a_rejected_field_and_a_retry_time_are_told_as_details(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        rejected = (await client.post("/v1/campaigns/rejected:shake", json={})).json()
        transient = (await client.post("/v1/campaigns/transient:shake", json={})).json()
    assert rejected["details"][1]["fieldViolations"][0]["field"] == "slot"
    assert transient["details"][1]["retryDelay"] == "0.250s"


async def test_health_and_reflection_are_answered_through_the_public_port(
    gateway: Gateway,
) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service="hongbao.v1.Access"))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter(
                [
                    reflection_pb2.ServerReflectionRequest(list_services=""),
                    reflection_pb2.ServerReflectionRequest(
                        file_containing_symbol="hongbao.v1.Access"
                    ),
                ]
            )
        )
        answers = [answer async for answer in call]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {"hongbao.v1.Access", "grpc.health.v1.Health"} <= names
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_a_deadline_ends_a_slow_call(gateway: Gateway) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary(
            OPEN_SESSION,
            request_serializer=access_pb2.OpenSessionRequest.SerializeToString,
            response_deserializer=access_pb2.OpenSessionReply.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(access_pb2.OpenSessionRequest(campaign="wait-5000"), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_behind_the_gateway_only_grpc_is_taken(tmp_path: Path) -> None:
    """Redeem's own port: JSON and gRPC-Web are translated once, at the edge."""
    async with running_gateway(gateway_config(tmp_path, web=False), tmp_path) as inner:
        assert (await shake_by_grpc(inner, "new-year")).outcome == access_pb2.PACKET
        async with httpx.AsyncClient(base_url=inner.url, timeout=LIMIT_S) as client:
            by_name = await client.post("/v1/campaigns/new-year:shake", json={"session": "cw=="})
            by_path = await client.post(SHAKE, json={"session": "cw=="})
    assert (by_name.status_code, by_path.status_code) == (404, 415)
