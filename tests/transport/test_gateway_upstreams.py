"""Services that other processes answer: zones, retries, ejection, and what callers see."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from hongbao.domain.errors import Overloaded, Rejected, Transient
from hongbao.proto.v1 import access_pb2, redeem_pb2
from hongbao.transport.admission import Admission
from hongbao.transport.dispatcher import Dispatcher, Method
from hongbao.transport.gateway_metrics import GatewayMetrics, read_admin
from hongbao.transport.grpc_server import GrpcServer, start_grpc_server
from hongbao.transport.metrics import CallMetrics
from hongbao.transport.upstreams import Endpoint, Upstream

from tests.servers.started import free_port
from tests.stalls import Stalls, judged
from tests.transport.gateway import Gateway, gateway_config, running_gateway
from tests.waiting import LIMIT_S, until

OPEN = "/hongbao.v1.Redeem/Open"
SESSION = "/hongbao.v1.Access/OpenSession"
Handler = Callable[[redeem_pb2.OpenRequest], Awaitable[redeem_pb2.OpenReply]]


class Redeem:
    """Is a redeem process that counts, and fails as it is told."""

    def __init__(self, amount_fen: int, error: Exception | None = None) -> None:
        self.amount_fen = amount_fen
        self.error = error
        self.calls = 0

    async def open(self, request: redeem_pb2.OpenRequest) -> redeem_pb2.OpenReply:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return redeem_pb2.OpenReply(outcome=redeem_pb2.OPENED, amount_fen=self.amount_fen)

    async def start(self) -> GrpcServer:
        method = Method(OPEN, redeem_pb2.OpenRequest, redeem_pb2.OpenReply, self.open)
        dispatcher = Dispatcher([method], Admission(), CallMetrics())
        services = ("hongbao.v1.Redeem",)
        return await start_grpc_server(dispatcher, "127.0.0.1:0", services=services)


@asynccontextmanager
async def gateway_to(folder: Path, *redeems: tuple[str, Redeem]) -> AsyncIterator[Gateway]:
    """Run a gateway of zone a in front of redeem processes of the given zones."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  (a test that plays again needs another one)
    servers = [(zone, await redeem.start()) for zone, redeem in redeems]
    endpoints = tuple(Endpoint("127.0.0.1", server.port, zone) for zone, server in servers)
    upstream = Upstream("redeem", ("hongbao.v1.Redeem",), endpoints, embedded=False)
    try:
        async with running_gateway(
            gateway_config(folder, upstreams=(upstream,)), folder
        ) as running:
            await wait_healthy(running, len(endpoints))
            yield running
    finally:
        for _, server in servers:
            await server.drain(grace_s=0)


async def wait_healthy(gateway: Gateway, count: int, *, cluster: str = "redeem") -> None:
    name = f"cluster.{cluster}.membership_healthy"

    async def all_healthy() -> bool:
        return (await gateway.admin.statistics(f"^{name}$")).get(name) == count

    await until(all_healthy, "the upstreams are healthy")


async def open_many(gateway: Gateway, count: int) -> list[int]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        answers = [await client.post("/v1/campaigns/ny:open", json={}) for _ in range(count)]
    return [answer.json().get("amountFen", answer.status_code) for answer in answers]


async def test_calls_stay_in_the_own_zone_and_leave_it_when_it_is_lost(
    tmp_path: Path, stalls: Stalls
) -> None:
    async def story(number: int) -> None:
        near, far = Redeem(1), Redeem(2)
        async with gateway_to(tmp_path / f"{number}", ("a", near), ("b", far)) as gateway:
            assert await open_many(gateway, 10) == [1] * 10
            near.error = Transient("the zone is lost")
            assert await open_many(gateway, 10) == [2] * 10  # by retries at first, then by ejection
            assert near.calls < 20

    await judged(stalls, story)


async def test_the_second_try_leaves_a_zone_in_which_the_first_one_failed(
    tmp_path: Path, stalls: Stalls
) -> None:
    """By default a zone has one process of a role: nobody else could answer there."""

    async def story(number: int) -> None:
        near, far = Redeem(1, Transient("no")), Redeem(2)
        async with gateway_to(tmp_path / f"{number}", ("a", near), ("b", far)) as gateway:
            assert await open_many(gateway, 1) == [2]
        assert (near.calls, far.calls) == (1, 1)

    await judged(stalls, story)


async def test_a_failure_that_a_retry_saved_is_not_final(tmp_path: Path, stalls: Stalls) -> None:
    """R29: the process counts a system failure, the gateway counts what the caller got."""

    async def story(number: int) -> None:
        bad, good = Redeem(0, Transient("no")), Redeem(1)
        async with gateway_to(tmp_path / f"{number}", ("a", bad), ("a", good)) as gateway:
            await open_many(gateway, 20)
            saved = await asyncio.to_thread(final_calls, gateway)
            good.error = Rejected("never")
            bad.error = Transient("no")
            await open_many(gateway, 20)
            rejected = await asyncio.to_thread(final_calls, gateway)
        assert saved == {"ok": 20}
        assert rejected == {"ok": 20, "logical": 20}

    await judged(stalls, story)


def final_calls(gateway: Gateway) -> dict[str, float]:
    metrics = GatewayMetrics(read_admin(str(gateway.folder / "admin")))
    samples = next(iter(metrics.collect())).samples
    assert {sample.labels["method"] for sample in samples} == {OPEN}
    return {sample.labels["outcome"]: sample.value for sample in samples}


async def test_an_unavailable_process_is_not_seen_by_callers(
    tmp_path: Path, stalls: Stalls
) -> None:
    """R26: one of three in the own zone answers nothing good, every call succeeds."""

    async def story(number: int) -> None:
        redeems = Redeem(0, Transient("no")), Redeem(1), Redeem(1)
        where = tmp_path / f"{number}"
        async with gateway_to(where, *(("a", redeem) for redeem in redeems)) as gateway:
            assert await open_many(gateway, 40) == [1] * 40
            ejected = await gateway.admin.statistics(
                "redeem.outlier_detection.ejections_enforced_total"
            )
        assert sum(ejected.values()) >= 1

    await judged(stalls, story)


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("behind"), 429), (Rejected("never"), 400)]
)
async def test_shed_and_rejected_calls_are_not_retried(
    tmp_path: Path, error: Exception, status: int
) -> None:
    one, two = Redeem(0, error), Redeem(0, error)
    async with gateway_to(tmp_path, ("a", one), ("b", two)) as gateway:
        assert await open_many(gateway, 5) == [status] * 5
    assert one.calls + two.calls == 5


async def test_errors_of_an_upstream_keep_their_shape(tmp_path: Path) -> None:
    async with (
        gateway_to(
            tmp_path, ("a", Redeem(0, Rejected("no token", field="claim_token")))
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
    ):
        body = (await client.post("/v1/campaigns/ny:open", json={})).json()
        twice = await client.post("/v1/campaigns/ny:open", content=b'{"session":"","session":""}')
    assert (body["code"], body["message"]) == (3, "no token")
    assert body["details"][1]["fieldViolations"][0]["field"] == "claim_token"
    assert twice.status_code == 400


async def test_no_upstream_left_is_told_as_unavailable(tmp_path: Path) -> None:
    upstream = Upstream(
        "redeem", ("hongbao.v1.Redeem",), (Endpoint("127.0.0.1", free_port(), "a"),)
    )
    config = gateway_config(tmp_path, upstreams=(upstream,))
    async with (
        running_gateway(config, tmp_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
        grpc.aio.insecure_channel(gateway.address) as channel,
    ):
        answer = await client.post("/v1/campaigns/ny:open", json={})
        assert (answer.status_code, answer.json()["code"]) == (503, 14)
        assert set(answer.json()) == {"code", "message", "details"}
        assert await channel.unary_unary(OPEN)(b"").code() is grpc.StatusCode.UNAVAILABLE


async def test_a_burst_over_cold_connections_is_not_refused(tmp_path: Path) -> None:
    """The upstream takes 32 calls on a connection and says so only once it is connected."""
    behind = gateway_config(tmp_path / "behind")
    upstream = Upstream(
        "access", ("hongbao.v1.Access",), (Endpoint("127.0.0.1", behind.port, "a"),)
    )
    before = gateway_config(
        tmp_path / "before", local_services=("hongbao.v1.Redeem",), upstreams=(upstream,)
    )
    for config in (behind, before):
        Path(config.admin_path).parent.mkdir()
    request = access_pb2.OpenSessionRequest(campaign="wait-100").SerializeToString()
    async with (
        running_gateway(behind, tmp_path / "behind"),
        running_gateway(before, tmp_path / "before") as gateway,
    ):
        await wait_healthy(gateway, 1, cluster="access")
        channels = [
            grpc.aio.insecure_channel(
                gateway.address, options=(("grpc.use_local_subchannel_pool", 1),)
            )
            for _ in range(8)
        ]
        calls = [channels[n % 8].unary_unary(SESSION)(request) for n in range(200)]
        codes = Counter([await call.code() for call in calls])
        for channel in channels:
            await channel.close()
    assert codes == {grpc.StatusCode.OK: 200}
