"""The rows "gRPC" and "Gateway JSON" of faults.md, on a real Envoy."""

import asyncio
import struct

import grpc
import httpx
import pytest
from hongbao.proto.v1 import access_pb2

from tests.transport.gateway import Gateway
from tests.waiting import LIMIT_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHAKE = "/hongbao.v1.Access/Shake"
JSON_SHAKE = "/v1/campaigns/new-year:shake"


async def call_raw(
    gateway: Gateway, payload: bytes, path: str = SHAKE, **options: object
) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        call = channel.unary_unary(path)(payload, **options)
        return await call.code()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"1", 400),
        (b'"x"', 400),
        (b"{} {}", 400),
        (b'{"session":"cw=="} x', 400),
        (b'{"session":1}', 400),
        (b'{"session":{"a":1}}', 400),
        (b'{"session":["cw=="]}', 400),
        (b'{"session":1e23}', 400),
        (b'{"session":"!!"}', 400),
        (b'{"session":"\xff"}', 400),
        (b"\xff\xfe", 400),
        (b"{" * 20_000, 400),
        (b'{"session":"cw==","session":"cw=="}', 400),
        (b'{"campaign":"other"}', 400),
        (b'{"session":"' + b"A" * 30_000 + b'"}', 413),
    ],
)
async def test_malformed_json_is_refused_in_the_one_shape(
    gateway: Gateway, body: bytes, status: int
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(JSON_SHAKE, content=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"code", "message", "details"}
    assert answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/campaigns/../new-year:shake", 404),
        ("/v1/campaigns/%2e%2e/new-year:shake", 404),
        ("/v1/campaigns/..%2Fnew-year:shake", 400),
        ("/v1/campaigns/a%5Cb:shake", 400),
        ("/v1/campaigns/%00:shake", 400),
        ("/v1/campaigns/%ff:shake", 400),
        ("/v1/campaigns/:shake", 404),
        ("/v1/campaigns/a/b:shake", 404),
        (JSON_SHAKE + "?nonsense=1", 400),
        (JSON_SHAKE + "?session=cw%3D%3D", 400),
        (JSON_SHAKE + "?campaign=other", 400),
        ("/v1/campaigns/" + "a" * 20_000 + ":shake", 431),
        (SHAKE, 415),
        ("/hongbao.v1.Store/Get", 404),
        ("/hongbao.v1.Shards/Submit", 404),
        ("/stats", 404),
        ("/", 404),
    ],
)
async def test_a_bad_path_or_query_is_refused_in_the_one_shape(
    gateway: Gateway, path: str, status: int
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(path, content=b"{}")
    assert answer.status_code == status
    assert set(answer.json()) == {"code", "message", "details"}
    assert answer.json()["message"]


async def test_unknown_query_parameter_is_named(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(JSON_SHAKE + "?nonsense=1", content=b"{}")
    assert "nonsense" in answer.json()["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_http_methods_are_refused(gateway: Gateway, method: str) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.request(method, JSON_SHAKE)
    assert (answer.status_code, answer.json()["code"]) == (404, 5)


@pytest.mark.parametrize(
    "headers",
    [
        {"big": "a" * 17_000},
        {f"h{n}": "1" for n in range(80)},
    ],
)
async def test_oversized_headers_are_refused(gateway: Gateway, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(JSON_SHAKE, json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (431, 8)


async def test_unknown_fields_in_json_are_dropped_as_documented(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(JSON_SHAKE, json={"nonsense": 1})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x0a\x02\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),  # invalid UTF-8 in a string
        (b"\x0a\xff\xff\xff\xff\x0f", grpc.StatusCode.INVALID_ARGUMENT),  # length beyond the end
        (b"\x0b" * 9_000, grpc.StatusCode.INVALID_ARGUMENT),  # groups nested 9,000 deep
        (b"\x12\x82\x80\x01" + b"a" * 16_386, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\x12" + b"a" * 100_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_malformed_or_oversized_grpc_messages_are_refused(
    gateway: Gateway, payload: bytes, code: grpc.StatusCode
) -> None:
    assert await call_raw(gateway, payload) is code


async def test_unknown_fields_and_enum_values_are_ignored_as_protobuf_says(
    gateway: Gateway,
) -> None:
    request = access_pb2.ShakeRequest(campaign="new-year", session=b"s").SerializeToString()
    assert await call_raw(gateway, request + b"\xf8\x07\x01") is grpc.StatusCode.OK


@pytest.mark.parametrize("path", ["/hongbao.v1.Access/Nope", "/hongbao.v1.Nope/Shake", "/x"])
async def test_an_unknown_method_is_unimplemented(gateway: Gateway, path: str) -> None:
    assert await call_raw(gateway, b"", path) is grpc.StatusCode.UNIMPLEMENTED


async def test_services_of_the_inside_are_not_reachable(gateway: Gateway) -> None:
    for path in ("/hongbao.v1.Store/Get", "/hongbao.v1.Shards/Submit"):
        assert await call_raw(gateway, b"", path) is grpc.StatusCode.UNIMPLEMENTED


async def post_grpc(
    gateway: Gateway, body: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        return await client.post(
            SHAKE,
            content=body,
            headers={"content-type": "application/grpc", "te": "trailers"} | (headers or {}),
        )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 3),
        (b"\x00\x00\x00", 3),
        (struct.pack(">BI", 0, 5) + b"ab", 3),
        (struct.pack(">BI", 0, 0) * 2, 3),
        (struct.pack(">BI", 0, 0xFFFFFFFF), 3),
        (struct.pack(">BI", 1, 0), 12),
    ],
)
async def test_a_broken_grpc_frame_is_refused(gateway: Gateway, body: bytes, code: int) -> None:
    answer = await post_grpc(gateway, body)
    assert (answer.status_code, answer.headers["grpc-status"]) == (200, str(code))


@pytest.mark.parametrize(
    ("value", "code"),
    [("0m", 4), ("0S", 4), ("1n", 4), ("5", 3), ("S", 3), ("-1S", 3), ("999999999S", 3)],
)
async def test_zero_and_malformed_deadlines_are_refused(
    gateway: Gateway, value: str, code: int
) -> None:
    answer = await post_grpc(gateway, struct.pack(">BI", 0, 0), {"grpc-timeout": value})
    assert answer.headers["grpc-status"] == str(code)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (SHAKE, b"\x00\x00", 3),
        ("/hongbao.v1.Access/Nope", b"\x00" * 5, 12),
        ("/hongbao.v1.Nope/Shake", b"\x00" * 5, 12),
        (SHAKE, b"\x00" * 40_000, 8),
    ],
)
async def test_grpc_web_callers_get_the_code_in_the_headers(
    gateway: Gateway, path: str, body: bytes, code: int
) -> None:
    headers = {"content-type": "application/grpc-web+proto"}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answer = await client.post(path, content=body, headers=headers)
    assert answer.headers["grpc-status"] == str(code)


async def test_a_cancelled_call_leaves_the_gateway_well(gateway: Gateway) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        slow = access_pb2.OpenSessionRequest(campaign="wait-300").SerializeToString()
        calls = [channel.unary_unary("/hongbao.v1.Access/OpenSession")(slow) for _ in range(50)]
        await asyncio.sleep(0.1)
        for call in calls:
            call.cancel()
        assert await channel.unary_unary(SHAKE)(b"")

    async def none_is_left() -> bool:
        return await gateway.admin.calls_in_flight() == 0

    await until(none_is_left, "no call is in flight any more")
    assert "Traceback" not in gateway.log.split("secret detail")[-1]
