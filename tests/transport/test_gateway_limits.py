"""Limits, slow callers and the drain of a real gateway."""

import asyncio
import signal
import time
from pathlib import Path

import grpc
import httpx
from hongbao.proto.v1 import access_pb2
from hongbao.transport.admin import DrainTimes
from hongbao.transport.envoy import GatewayLimits

from tests.transport.gateway import gateway_config, running_gateway
from tests.waiting import LIMIT_S, until

JSON_SHAKE = "/v1/campaigns/new-year:shake"
SHAKE = "/hongbao.v1.Access/Shake"
OPEN_SESSION = "/hongbao.v1.Access/OpenSession"


async def test_slow_senders_are_cut_off(tmp_path: Path) -> None:
    """Slowloris: a head or a body that drips in does not hold a connection for long."""
    limits = GatewayLimits(receive_timeout_s=0.3)
    async with running_gateway(gateway_config(tmp_path, limits=limits), tmp_path) as gateway:
        for start in (
            b"POST /v1/campaigns/ny:shake HTTP/1.1\r\nhost: x\r\n",
            b"POST /v1/campaigns/ny:shake HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(start)
            answer = await asyncio.wait_for(reader.readuntil(b"}"), timeout=LIMIT_S)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'"code":4' in answer


async def test_more_than_the_rate_limit_is_refused_as_exhausted(tmp_path: Path) -> None:
    limits = GatewayLimits(requests_per_s=5)
    async with (
        running_gateway(gateway_config(tmp_path, limits=limits), tmp_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
        grpc.aio.insecure_channel(gateway.address) as channel,
    ):
        began_s, taken, refused = time.monotonic(), 0, []
        while len(refused) < 5:
            answer = await client.post(JSON_SHAKE, json={})
            refused += [answer] if answer.status_code == 429 else []
            taken += answer.status_code != 429
            # What a bucket holds, and what came in meanwhile: a stall lets more through, and so do
            # two more seconds, as a token may come before its time.
            assert taken <= limits.requests_per_s * (time.monotonic() - began_s + 3)
        assert refused[0].json()["code"] == 8
        assert refused[0].headers["retry-after"] == "1"
        ends_s, codes = time.monotonic() + LIMIT_S, []
        while grpc.StatusCode.RESOURCE_EXHAUSTED not in codes:
            assert time.monotonic() < ends_s, "never refused"
            codes.append(await channel.unary_unary(SHAKE)(b"").code())


async def test_connections_over_the_limit_are_closed_unread(tmp_path: Path) -> None:
    limits = GatewayLimits(connections_max=3)
    async with running_gateway(gateway_config(tmp_path, limits=limits), tmp_path) as gateway:
        opened = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(6)]
        await until(lambda: sum(reader.at_eof() for reader, _ in opened) >= 3, "three are closed")
        await asyncio.sleep(0.2)
        closed = [reader.at_eof() for reader, _ in opened]
        for _, writer in opened:
            writer.close()
    assert sum(closed) == 3


async def test_a_drain_breaks_no_call_and_flushes_before_the_exit(tmp_path: Path) -> None:
    async with running_gateway(gateway_config(tmp_path), tmp_path) as gateway:

        async def all_begun() -> bool:
            begun = "http.public.downstream_rq_total"
            return (await gateway.admin.statistics(f"^{begun}$"))[begun] >= 20

        async with grpc.aio.insecure_channel(gateway.address) as channel:
            slow = access_pb2.OpenSessionRequest(campaign="wait-700").SerializeToString()
            calls = [channel.unary_unary(OPEN_SESSION)(slow) for _ in range(20)]
            await until(all_begun, "the calls are under way")
            left = await gateway.admin.drain(DrainTimes(settle_s=0.1, finish_s=LIMIT_S))
            codes = await asyncio.gather(*(call.code() for call in calls))
        async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
            try:
                ready = (await client.get("/readyz")).status_code
            except httpx.ConnectError:
                ready = 503
        gateway.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(gateway.process.wait, LIMIT_S)
    assert left == 0
    assert set(codes) == {grpc.StatusCode.OK}
    assert ready == 503
    assert (tmp_path / "flushed").read_text() == "all"
    assert status == 0
