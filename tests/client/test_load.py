"""The load generator against a real grpc.aio server.

It counts logical and system failures apart (R29), obeys the server's tuning and backoff (R14,
R32), sends every interaction of its plan to the server (R15), and leaves gateways that are gone
(R26); its samples are what a rehearsal is judged by (R33).
"""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from hongbao.client.acknowledged import read_acknowledged
from hongbao.client.gateways import Gateway
from hongbao.client.load import LoadRun, run_load
from hongbao.client.plan import LoadPlan, Phase
from hongbao.client.stats import LoadStats, Sample
from hongbao.domain.errors import Transient
from hongbao.domain.ids import CampaignId
from hongbao.proto.v1 import access_pb2

from tests.client import server as toy_server
from tests.waiting import LIMIT_S, until


def plan_for(gateways: list[Gateway], **changes: Any) -> LoadPlan:
    defaults: dict[str, Any] = {
        "campaign": CampaignId("new-year"),
        "gateways": gateways,
        "phases": [Phase("steady", 0.5, 400, 400)],
        "users": 100,
        "sample_every_s": 0.1,
        "drain_s": LIMIT_S,
        "shake_timeout_s": LIMIT_S,
        "open_timeout_s": LIMIT_S,
    }
    return LoadPlan(**{**defaults, **changes})


async def play(plan: LoadPlan) -> tuple[LoadStats, list[Sample]]:
    samples: list[Sample] = []
    stats = await run_load(
        plan, samples.append, jwt_of=toy_server.jwt_of, wall_ms=toy_server.wall_ms
    )
    return stats, samples


async def test_every_packet_shaken_is_opened_and_acknowledged(tmp_path: Path) -> None:
    toy = toy_server.ToyCampaign()
    path = tmp_path / "acknowledged.jsonl"
    async with toy_server.serving(toy) as gateway:
        stats, samples = await play(plan_for([gateway], acknowledged=path))
    acknowledged = list(read_acknowledged(path))
    assert stats.total.opens == {"OPENED": toy.packets}
    assert {(a.packet, a.user) for a in acknowledged} == set(toy.opened.items())
    assert sum(a.amount_fen for a in acknowledged) == stats.total.opened_fen
    assert stats.total.wanted == sum(s.wanted for s in samples) == 200
    assert stats.total.shakes["PACKET"] + stats.total.held_back == 200


async def test_an_open_whose_reply_was_lost_is_repeated_until_it_is_answered_f3() -> None:
    toy = toy_server.ToyCampaign()
    toy.open_fault = lambda attempt: grpc.StatusCode.UNAVAILABLE if attempt % 3 else None
    async with toy_server.serving(toy) as gateway:
        stats, _ = await play(plan_for([gateway], phases=[Phase("short", 0.3, 200, 200)]))
    assert stats.total.opens == {"OPENED": toy.packets}
    assert stats.total.open_repeats["UNAVAILABLE"] == toy.opens - toy.packets > 0
    assert stats.total.shed == stats.total.open_repeats["UNAVAILABLE"]


async def test_a_refused_token_is_not_repeated() -> None:
    toy = toy_server.ToyCampaign()
    toy.open_fault = lambda attempt: grpc.StatusCode.UNAUTHENTICATED
    async with toy_server.serving(toy) as gateway:
        stats, _ = await play(plan_for([gateway], phases=[Phase("short", 0.2, 100, 100)]))
    assert stats.total.opens == {"UNAUTHENTICATED": toy.packets}
    assert toy.opens == toy.packets


async def test_obeying_clients_stay_quiet_as_long_as_they_were_told() -> None:
    toy = toy_server.ToyCampaign()
    toy.outcome = lambda shake: access_pb2.SLOW_DOWN
    toy.retry_after_ms = 60_000
    async with toy_server.serving(toy) as gateway:
        stats, _ = await play(plan_for([gateway], users=50))
    assert toy.shakes == 50
    assert stats.total.held_back == 150


async def test_rude_clients_ignore_the_order_to_wait() -> None:
    toy = toy_server.ToyCampaign()
    toy.outcome = lambda shake: access_pb2.SLOW_DOWN
    toy.retry_after_ms = 60_000
    async with toy_server.serving(toy) as gateway:
        stats, _ = await play(plan_for([gateway], users=50, rude_share=1.0))
    assert toy.shakes == 200
    assert stats.total.held_back == 0


async def test_shed_shakes_back_off_and_are_counted() -> None:
    toy = toy_server.ToyCampaign()
    toy.shake_fault = lambda attempt: grpc.StatusCode.RESOURCE_EXHAUSTED if attempt <= 20 else None
    async with toy_server.serving(toy) as gateway:
        stats, _ = await play(plan_for([gateway]))
    assert stats.total.shakes["RESOURCE_EXHAUSTED"] == stats.total.shed == 20
    assert stats.total.shakes["PACKET"] > 0


async def test_users_of_a_lost_zone_go_on_in_another_zone_f13() -> None:
    toy = toy_server.ToyCampaign()
    gone = Gateway("b", "127.0.0.1", 9)  # the discard port: nothing listens
    async with toy_server.serving(toy) as gateway:
        plan = plan_for([gateway, gone], session_give_up_s=0.3)
        stats, samples = await play(plan)
    assert set(stats.total.shakes) == {"PACKET"}
    assert stats.total.shakes["PACKET"] + stats.total.held_back == 200
    assert stats.total.shakes["PACKET"] >= 100  # each user's first; a stall makes many due at once
    assert samples[-1].gateways_up == 1


async def test_a_gateway_killed_and_restarted_is_used_again() -> None:
    toy = toy_server.ToyCampaign()
    samples: list[Sample] = []
    async with toy_server.serving(toy) as gateway:
        plan = plan_for([gateway], phases=[Phase("steady", 4 * LIMIT_S, 200, 200)])
        run = LoadRun(plan, samples.append, jwt_of=toy_server.jwt_of, wall_ms=toy_server.wall_ms)
        running = asyncio.create_task(run.run())
        await until(lambda: toy.opened, "packets are opened")
    await until(lambda: run.stats.total.shakes["NO_GATEWAY"], "the gateway's end is noticed")
    async with toy_server.serving(toy, port=gateway.port):
        before = len(toy.opened)
        await until(lambda: len(toy.opened) > before, "packets are opened again")
        run.stop()
        stats = await running
    assert stats.total.shakes["NO_GATEWAY"] > 0
    assert stats.total.opens == {"OPENED": len(toy.opened)}
    assert samples[-1].gateways_up == 1


async def test_the_session_is_renewed_when_it_ran_out() -> None:
    toy = toy_server.ToyCampaign()
    toy.shake_fault = lambda attempt: grpc.StatusCode.UNAUTHENTICATED if attempt <= 5 else None
    async with toy_server.serving(toy) as gateway:
        plan = plan_for([gateway], users=5, phases=[Phase("s", 4 * LIMIT_S, 100, 100)])
        run = LoadRun(
            plan, lambda sample: None, jwt_of=toy_server.jwt_of, wall_ms=toy_server.wall_ms
        )
        running = asyncio.create_task(run.run())
        await until(lambda: run.stats.total.shakes["PACKET"] > 0, "packets with the new sessions")
        run.stop()
        stats = await running
    assert stats.total.shakes["UNAUTHENTICATED"] == 5
    assert len(toy.jwts) == 10
    assert stats.total.shakes["PACKET"] > 0


async def test_latency_counts_from_the_time_a_shake_was_due() -> None:
    """A server that stalls once delays what was due meanwhile: all of it is counted."""
    toy = toy_server.ToyCampaign()
    plain = toy.shake

    async def stalling(request: Any, context: Any) -> Any:
        if toy.shakes >= 100:
            await stalled.wait()
        return await plain(request, context)

    stalled = asyncio.Event()
    toy.shake = stalling  # type: ignore[method-assign]
    async with toy_server.serving(toy) as gateway:
        plan = plan_for([gateway], users=20, phases=[Phase("s", 1.0, 400, 400)])
        running = asyncio.create_task(play(plan))
        await until(lambda: toy.shakes >= 100)
        await asyncio.sleep(0.4)
        stalled.set()
        stats, _ = await running
    assert stats.total.shake_latency.percentile_ms(99) > 200


async def test_a_run_without_any_gateway_fails_plainly() -> None:
    plan = plan_for([Gateway("a", "127.0.0.1", 9)], session_give_up_s=0.2)
    with pytest.raises(Transient, match="no session"):
        await play(plan)


def test_arrivals_follow_the_ramp_exactly() -> None:
    plan = plan_for(
        [Gateway("a", "127.0.0.1", 1)],
        phases=[Phase("up", 2, 0, 100), Phase("flat", 1, 100, 100), Phase("down", 2, 100, 0)],
    )
    assert [plan.arrivals_until(t) for t in (0, 1, 2, 2.5, 3, 4, 5, 9)] == [
        0,
        25,
        100,
        150,
        200,
        275,
        300,
        300,
    ]
    assert plan.rate_per_s(1) == 50
    assert plan.rate_per_s(9) == 0
