"""Opens of good tokens: amounts, repeats, races, fail-over (R8, R43, R51, F2, F3, F4)."""

import asyncio
from pathlib import Path

import pytest
from hongbao.domain.errors import Fenced, NotFound, Overloaded, Transient
from hongbao.proto.v1 import redeem_pb2
from hongbao.redeem.limits import RedeemLimits

from tests.redeem.world import EPOCH, START_MS, USER, World, make_world


async def test_an_open_gives_the_amount_that_was_minted_and_one_durable_claim(
    world: World,
) -> None:
    """R8, R43: local checks, then one insert."""
    reply = await world.open()
    (claim,) = await world.claims()
    assert reply.outcome == redeem_pb2.OPENED
    assert reply.amount_fen == claim.amount_fen > 0
    assert (reply.packet, reply.sponsor) == (claim.serial, claim.sponsor)
    assert (claim.user, claim.pod, claim.pod_epoch) == (USER, 1, EPOCH)
    assert claim.opened_at_ms == world.clock.now_ms
    table = (world.minted.folder / world.minted.manifest.amounts.name).read_bytes()
    at = 4 * (claim.serial - world.minted.manifest.serial_base)
    assert int.from_bytes(table[at : at + 4], "big") == claim.amount_fen


async def test_second_open_by_the_same_user_gets_the_same_amount(world: World) -> None:
    """F3: the reply is lost, the client retries, one record stays."""
    first = await world.open()
    again = [await world.open() for _ in range(3)]
    assert again == [first] * 3
    assert len(await world.claims()) == 1
    assert world.role.counters()["repeated"] == 3


async def test_a_retry_after_a_lost_reply_and_a_fail_over_gets_the_same_amount(
    world: World,
) -> None:
    """F2, F3: the caller gave up, the owner died, the next owner knows the claim."""
    call = asyncio.create_task(world.open())
    for _ in range(100):
        await asyncio.sleep(0)
        if await world.claims():
            break
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await world.owners[0].stop(Fenced("killed"))
    await world.take_over(0, epoch=10)
    reply = await world.open()
    (claim,) = await world.claims()
    assert reply.amount_fen == claim.amount_fen
    assert world.role.counters()["repeated"] == 1


@pytest.mark.parametrize("users", [2, 20])
async def test_users_who_race_for_one_packet_have_exactly_one_winner(
    world: World, users: int
) -> None:
    """F4: a hacked pod binds one ticket to several users; the first insert wins."""
    replies = await asyncio.gather(*(world.open(user=user) for user in range(1, users + 1)))
    winners = [reply for reply in replies if reply.outcome == redeem_pb2.OPENED]
    losers = [reply for reply in replies if reply.outcome == redeem_pb2.ALREADY_OPENED]
    (claim,) = await world.claims()
    assert len(winners) == 1
    assert len(losers) == users - 1
    assert winners[0].amount_fen == claim.amount_fen
    assert {reply.amount_fen for reply in losers} == {0}


async def test_a_loser_keeps_losing_and_the_winner_keeps_winning(world: World) -> None:
    """F4, R51 e: the same answers for ever, also after a fail-over."""
    won = await world.open(user=1)
    lost = await world.open(user=2)
    await world.take_over(0, epoch=10)
    assert await world.open(user=2) == lost
    assert await world.open(user=1) == won


async def test_one_pod_that_binds_tickets_twice_raises_an_alarm(world: World) -> None:
    """R55: a captured access host is seen."""
    await world.open(user=1)
    for user in range(2, 23):
        await world.open(user=user)
    assert world.role.counters()["alarms"] == 1


async def test_every_packet_of_a_file_opens_once_and_they_sum_to_the_file(world: World) -> None:
    """R43, R51 d: nothing but what was minted comes out."""
    file = world.minted.manifest.files[0]
    tokens = [world.token(world.record(place=place)) for place in range(file.count)]
    replies = await asyncio.gather(*(world.open(token) for token in tokens))
    claims = await world.claims()
    assert sum(reply.amount_fen for reply in replies) == file.total_fen
    assert sorted(claim.bit for claim in claims) == list(range(file.count))
    assert {claim.file for claim in claims} == {file.file}
    assert world.role.counters()["opened_fen"] == file.total_fen


async def test_a_token_of_an_older_epoch_of_its_pod_is_good(world: World) -> None:
    """R22: what a pod gave out before it was restarted stays good."""
    assert (await world.open(world.token(epoch=EPOCH - 1))).outcome == redeem_pb2.OPENED


async def test_a_token_of_an_epoch_that_the_watch_has_not_shown_is_looked_up(
    world: World,
) -> None:
    await world.store.put("pods/1/epoch", str(EPOCH + 1).encode())
    assert (await world.open(world.token(epoch=EPOCH + 1))).outcome == redeem_pb2.OPENED


async def test_a_token_of_the_pod_that_had_the_file_before_is_good(world: World) -> None:
    """R23: a file that moved on was rightly served by its first pod until then."""
    moved = {
        str(file.file): {"slot": file.slot, "pod": 1, "backup": 2, "serving": 2}
        for file in world.minted.plan.files
    }
    revision = await world.write("assignment", {"files": moved})
    await world.acked("campaigns/tiny/assignment", revision)
    assert (await world.open(world.token(pod=1))).outcome == redeem_pb2.OPENED
    other = world.record(place=1)
    assert (await world.open(world.token(other, pod=2))).outcome == redeem_pb2.OPENED


async def test_a_shard_without_an_owner_is_a_transient_failure(world: World) -> None:
    await world.owners[0].stop(Fenced("killed"))
    with pytest.raises(Transient, match="moving"):
        await world.open()
    assert world.role.counters()["failed"] == 1
    assert await world.claims() == []


async def test_opens_past_the_limit_are_shed_before_any_work(tmp_path: Path) -> None:
    """R25: early drop."""
    world = await make_world(tmp_path, RedeemLimits(in_flight_max=0))
    with pytest.raises(Overloaded):
        await world.open()
    assert world.submitted == 0
    await world.close()


async def test_open_pause_refuses_until_it_is_cleared_or_expires(world: World) -> None:
    """R30: a preset switch."""
    document = {"value": True, "by": "wang", "why": "test", "set_at_ms": 0}
    expires_at_ms = START_MS + 5000
    key, value = "switches/open_pause", document | {"expires_at_ms": expires_at_ms}
    world.role.facts.apply(key, str(value).replace("'", '"').replace("True", "true").encode())
    with pytest.raises(Transient, match="paused"):
        await world.open()
    world.clock.now_ms = expires_at_ms
    assert (await world.open()).outcome == redeem_pb2.OPENED


async def test_another_campaign_is_not_played_here(world: World) -> None:
    with pytest.raises(NotFound, match="other"):
        await world.role.open(world.request(campaign="other"))


async def test_a_drained_role_finishes_what_is_under_way_and_refuses_the_rest(
    world: World,
) -> None:
    call = asyncio.create_task(world.open())
    await asyncio.sleep(0)
    await world.role.drain()
    assert call.done()
    assert call.result().outcome == redeem_pb2.OPENED
    assert not world.role.ready
    with pytest.raises(Transient):
        await world.open(world.token(world.record(place=1)))


async def test_admission_sees_the_user_of_a_good_session_only(world: World) -> None:
    request = world.request()
    assert world.role.user_of(request) == USER
    request.session = request.session[:-1] + bytes([request.session[-1] ^ 1])
    assert world.role.user_of(request) == 0
