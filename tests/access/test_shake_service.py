"""One shake: every outcome, when it comes, and what it says (R4, R7, R14-R18)."""

from collections import Counter
from dataclasses import replace

import pytest
from hongbao.access.cursor import FileCursor
from hongbao.access.limits import AccessLimits
from hongbao.access.service import Controls, Exposure, ShakeService
from hongbao.access.session import REFUSED
from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import NotFound, Unauthenticated
from hongbao.domain.token import parse_claim_head, verify_claim
from hongbao.proto.v1 import access_pb2 as pb
from hongbao.proto.v1.access_pb2 import ShakeRequest

from tests.access.rain import (
    BINDING_KEY,
    CAMPAIGN,
    CAMPAIGN_HASH,
    GAP_MS,
    SLOT_MS,
    SMALL,
    START_MS,
    Clock,
    bare_file,
    new_service,
    request_of,
    session_of,
    shake,
    timeline,
    where,
)

WIDE = replace(SMALL, reserve_records=10_000)
NORMAL = Controls(WIDE.shake_interval_ms, WIDE.backoff_ms_max, WIDE.open_delay_ms_max)
SPONSORS = (Exposure(1, "one", 1), Exposure(2, "two", 3))


async def open_cursor(file: int = 1, count: int = 1000, limits: AccessLimits = WIDE) -> FileCursor:
    cursor = FileCursor(bare_file(file, count), MemoryStore(), 1, 1, limits, lambda: None)
    await cursor.resume()
    await cursor.top_up()
    return cursor


async def raining(clock: Clock, *cursors: FileCursor, limits: AccessLimits = WIDE) -> ShakeService:
    service = new_service(clock, limits)
    service.set_timeline(timeline())
    service.set_files({1: cursors or (await open_cursor(),)}, {1: SPONSORS})
    return service


def outcomes_over(
    service: ShakeService, clock: Clock, duration_ms: int, *, shakes_per_ms: int = 1
) -> Counter[int]:
    """Shake as ever new users for a while."""
    seen = Counter[int]()
    for _ in range(duration_ms):
        clock.now_ms += 1
        for place in range(shakes_per_ms):
            seen[shake(service, clock.now_ms * 10 + place).outcome] += 1
    return seen


async def test_a_slot_gives_all_its_packets_each_once_bound_to_who_shook() -> None:
    clock = Clock(START_MS - 1)
    service = await raining(clock)
    won = []
    for _ in range(SLOT_MS):
        clock.now_ms += 1
        reply = shake(service, clock.now_ms)
        if reply.outcome == pb.PACKET:
            assert verify_claim(reply.claim_token, BINDING_KEY, CAMPAIGN_HASH, clock.now_ms)
            head = parse_claim_head(reply.claim_token)
            assert head is not None
            assert (head.pod, head.epoch, head.claims_shard) == (1, 1, 7)
            assert head.expiry_s == clock.now_ms // 1000 + WIDE.claim_ttl_s
            assert reply.sponsor == int.from_bytes(head.record[4:6], "big")
            won.append(where(reply.claim_token))
    assert won == [(1, index) for index in range(1000)]
    assert service.issued == 1000


async def test_packets_leave_evenly_over_the_slot() -> None:
    clock = Clock(START_MS - 1)
    service = await raining(clock)
    parts = [outcomes_over(service, clock, 950)[pb.PACKET] for _ in range(10)]
    assert all(98 <= part <= 102 for part in parts), parts


async def test_a_second_file_goes_on_when_the_first_is_empty() -> None:
    clock = Clock(START_MS - 1)
    service = await raining(clock, await open_cursor(1, 300), await open_cursor(2, 300))
    assert outcomes_over(service, clock, SLOT_MS)[pb.PACKET] == 600


async def test_a_log_slower_than_the_pace_answers_slow_down_and_loses_nothing() -> None:
    clock = Clock(START_MS - 1)
    cursor = await open_cursor(limits=SMALL)
    service = await raining(clock, cursor)
    seen = outcomes_over(service, clock, 2000)
    assert seen[pb.PACKET] == SMALL.reserve_records
    assert seen[pb.SLOW_DOWN] > 0
    await cursor.top_up()
    assert outcomes_over(service, clock, 200)[pb.PACKET] > 0


@pytest.mark.parametrize(
    ("at_ms", "outcome"),
    [
        (START_MS - 1, pb.NOT_STARTED),
        (START_MS, pb.NOTHING),
        (START_MS + SLOT_MS - 1, pb.NOTHING),
        (START_MS + SLOT_MS, pb.NOT_STARTED),
        (START_MS + SLOT_MS + GAP_MS, pb.NOTHING),
        (START_MS + 2 * SLOT_MS + GAP_MS, pb.ENDED),
    ],
)
async def test_the_clock_decides_whether_the_rain_is_on(at_ms: int, outcome: int) -> None:
    """R3."""
    clock = Clock(at_ms)
    service = await raining(clock)
    assert shake(service).outcome == outcome


async def test_the_wait_for_a_slot_ends_spread_after_its_start() -> None:
    clock = Clock(START_MS - 5_000)
    service = await raining(clock)
    waits = [shake(service, user).retry_after_ms for user in range(1, 500)]
    assert min(waits) >= 5_000
    assert max(waits) < 5_000 + WIDE.start_spread_ms
    assert len(set(waits)) > 200


async def test_a_wait_for_a_far_slot_is_bounded() -> None:
    clock = Clock(START_MS - 10**9)
    service = await raining(clock)
    waits = [shake(service, user).retry_after_ms for user in range(1, 100)]
    assert WIDE.wait_ms_max * 3 // 4 <= min(waits) <= max(waits) <= WIDE.wait_ms_max


async def test_one_user_wins_up_to_the_cap_and_then_sees_the_thanks_page() -> None:
    clock = Clock(START_MS - 1)
    service = await raining(clock, limits=replace(WIDE, user_packets_max=3))
    seen = Counter[int]()
    for _ in range(1000):
        clock.now_ms += 1
        seen[shake(service, 42).outcome] += 1
    assert seen[pb.PACKET] == 3
    assert seen[pb.THANKS_PAGE] > 900


async def test_shakes_that_win_nothing_show_sponsors_in_their_shares() -> None:
    """R16, R34."""
    clock = Clock(START_MS)
    service = await raining(clock)
    service.apply_controls(replace(NORMAL, exposure_only=True))
    shown = Counter((reply := shake(service, user)).sponsor for user in range(1, 401))
    assert shown == {1: 100, 2: 300}
    assert reply.resource in ("one", "two")


async def test_every_reply_carries_tuning_and_a_jittered_wait() -> None:
    """R14."""
    clock = Clock(START_MS - 1)
    service = await raining(clock)
    replies = []
    for _ in range(300):
        clock.now_ms += 1
        replies.append(shake(service, clock.now_ms))
    assert {reply.tuning.shake_interval_ms for reply in replies} == {1000}
    waits = [reply.retry_after_ms for reply in replies]
    assert 1000 <= min(waits) <= max(waits) < 1500
    assert len(set(waits)) > 100


async def test_switches_act_on_the_very_next_shake() -> None:
    """R17, R30: frozen clock, so nothing but the switch can have changed the answer."""
    clock = Clock(START_MS)
    service = await raining(clock)
    clock.now_ms += 50
    assert shake(service, 1).outcome == pb.PACKET
    service.apply_controls(replace(NORMAL, paused=True))
    assert shake(service, 2).outcome == pb.SLOW_DOWN
    service.apply_controls(replace(NORMAL, exposure_only=True))
    assert shake(service, 3).outcome == pb.NOTHING
    service.apply_controls(replace(NORMAL, shake_interval_ms=7000))
    reply = shake(service, 4)
    assert reply.retry_after_ms >= 7000
    assert reply.tuning.shake_interval_ms == 7000


@pytest.mark.parametrize(("speed", "packets"), [(0.0, 0), (0.5, 50), (2.0, 200)])
async def test_the_speed_switch_scales_the_rate(speed: float, packets: int) -> None:
    """R17."""
    clock = Clock(START_MS - 1)
    service = await raining(clock)
    service.apply_controls(replace(NORMAL, speed=speed))
    assert outcomes_over(service, clock, 950)[pb.PACKET] == pytest.approx(packets, rel=0.12, abs=1)


async def test_the_quota_limits_the_rate() -> None:
    """R18."""
    clock = Clock(START_MS - 1)
    service = await raining(clock)
    service.apply_controls(replace(NORMAL, quota_per_s=20.0))
    assert outcomes_over(service, clock, 2000)[pb.PACKET] <= 42


async def test_a_quota_that_changes_all_the_time_does_not_stop_a_slow_trickle() -> None:
    clock = Clock(START_MS - 1)
    service = await raining(clock, await open_cursor(count=10))
    won = 0
    for round_number in range(95):
        service.apply_controls(replace(NORMAL, quota_per_s=1000.0 + round_number))
        won += outcomes_over(service, clock, 100)[pb.PACKET]
    assert won >= 9


async def test_a_file_that_is_taken_away_stops_with_the_next_shake() -> None:
    clock = Clock(START_MS)
    cursor = await open_cursor()
    service = await raining(clock, cursor)
    clock.now_ms += 50
    assert shake(service, 1).outcome == pb.PACKET
    cursor.stop()
    assert shake(service, 2).outcome == pb.SLOW_DOWN
    service.set_files({}, {1: SPONSORS})
    assert shake(service, 3).outcome == pb.NOTHING


async def test_a_stopped_service_sends_everybody_elsewhere() -> None:
    clock = Clock(START_MS + 50)
    service = await raining(clock)
    service.stop()
    service.apply_controls(replace(NORMAL, speed=2.0))
    assert shake(service).outcome == pb.SLOW_DOWN


async def test_without_a_timeline_nobody_is_told_that_it_ended() -> None:
    assert shake(new_service(Clock())).outcome == pb.SLOW_DOWN


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
async def test_a_clock_that_jumps_an_hour_makes_no_burst(jump_ms: int) -> None:
    """F9."""
    clock = Clock(START_MS - 1)
    service = await raining(clock)
    outcomes_over(service, clock, 1000)
    clock.now_ms += jump_ms
    assert outcomes_over(service, clock, 1)[pb.PACKET] == 0
    clock.now_ms -= jump_ms
    assert outcomes_over(service, clock, 100, shakes_per_ms=3)[pb.PACKET] <= 25


BAD_SESSIONS = {
    "empty": b"",
    "noise": bytes(30),
    "short": session_of(1)[:-1],
    "long": session_of(1) + b"x",
    "expired": session_of(1, expiry_s=START_MS // 1000),
    "other user": session_of(1)[:2] + session_of(2)[2:10] + session_of(1)[10:],
}


@pytest.mark.parametrize("name", BAD_SESSIONS)
async def test_every_bad_session_gets_the_same_answer_and_changes_nothing(name: str) -> None:
    clock = Clock(START_MS + 50)
    service = await raining(clock)
    with pytest.raises(Unauthenticated, match=REFUSED):
        service.shake(ShakeRequest(campaign=CAMPAIGN, session=BAD_SESSIONS[name]))
    assert (service.issued, service.outcomes[0]) == (0, 1)


async def test_another_campaign_is_not_found() -> None:
    service = await raining(Clock(START_MS + 50))
    request = request_of(1)
    request.campaign = "../snow"
    with pytest.raises(NotFound, match="snow"):
        service.shake(request)


async def test_while_shedding_only_a_proved_session_says_whose_call_it_is() -> None:
    """R25: or a caller makes up users until one of them is let in."""
    service = await raining(Clock(START_MS + 50))
    assert service.user_of(request_of(7)) == 7
    for name, session in BAD_SESSIONS.items():
        wanted = 1 if name == "expired" else 0  # expiry is judged when it is served
        assert service.user_of(ShakeRequest(campaign=CAMPAIGN, session=session)) == wanted
