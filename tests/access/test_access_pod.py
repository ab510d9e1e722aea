"""A whole pod on a memory store: orders in, packets out; moves, kills, switches (F1, F13, R22)."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hongbao.access.pod import PodKeys
from hongbao.adapters.memory import MemoryStore
from hongbao.domain import manifest as manifests
from hongbao.domain.assignment import Assignment, Placement
from hongbao.domain.errors import Transient
from hongbao.domain.token import parse_claim_head
from hongbao.proto.v1 import access_pb2 as pb
from hongbao.proto.v1.access_pb2 import OpenSessionRequest
from hongbao.shards.ports import Versioned

from tests.access.rain import (
    BINDING_KEY,
    CAMPAIGN,
    GAP_MS,
    SESSION_KEY,
    SLOT_MS,
    SMALL,
    START_MS,
    MemoryObjects,
    Rain,
    crash,
    mint_fake,
    placed,
    shake,
    win,
)
from tests.access.test_sessions import GOOD, signed
from tests.waiting import until

SECOND_SLOT_MS = START_MS + SLOT_MS + GAP_MS


@pytest.fixture
async def rain(tmp_path: Path) -> Rain:
    return Rain(tmp_path)


async def acked(rain: Rain, document: str, pod: int = 1) -> dict[str, object]:
    fact = await rain.store.read(f"acks/{document}/access-a-{pod}")
    return json.loads(fact.value) if fact.value else {}


async def until_acked(rain: Rain, document: str, revision: int) -> None:
    async def told() -> bool:
        return (await acked(rain, document)).get("revision") == revision

    await until(told, f"{document} of revision {revision} is acknowledged")


async def test_a_pod_serves_the_open_slot_from_its_files_until_they_are_empty(rain: Rain) -> None:
    await rain.open_campaign(mint_fake(rain.objects, records=100))
    pod = rain.pod()
    await pod.start()
    won = await win(rain, pod, SLOT_MS - 10)
    assert sorted(won) == [(file, index) for file in (100, 101) for index in range(100)]
    assert pod.counts().issued == 200
    await pod.drain()


async def test_a_drain_tries_again_while_the_log_is_away(rain: Rain) -> None:
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    won = await win(rain, pod, 500)
    failures = iter(range(3))
    whole = rain.store.create

    async def create(key: bytes, value: bytes) -> bool:
        if next(failures, None) is not None:
            raise Transient("the log is away")
        return await whole(key, value)

    rain.store.create = create  # type: ignore[method-assign]
    await pod.drain()
    assert next(failures, None) is None
    after = rain.pod()
    await after.start()
    won += await win(rain, after, 500)
    assert after.shelf.residue == 0
    assert len(won) == len(set(won)) > 0
    await after.drain()


async def test_a_session_from_the_pod_can_shake(rain: Rain) -> None:
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    opened = pod.open_session(OpenSessionRequest(campaign=CAMPAIGN, jwt=signed(GOOD)))
    assert opened.tuning.shake_interval_ms == SMALL.shake_interval_ms
    reply = pod.shake(pb.ShakeRequest(campaign=CAMPAIGN, session=opened.session))
    assert reply.outcome in (pb.NOTHING, pb.PACKET)
    await pod.drain()


async def test_files_of_other_pods_and_other_slots_are_not_served(rain: Rain) -> None:
    manifest = mint_fake(rain.objects)
    mine = dict(placed(manifest).files)
    mine[101] = Placement(1, 2, 1, 2)  # this pod is only its backup
    await rain.open_campaign(manifest, Assignment(mine))
    pod = rain.pod()
    await pod.start()
    won = await win(rain, pod, 2000)
    assert {file for file, _ in won} == {100}
    assert pod.counts().files_active == 1
    await until(lambda: pod.counts().files_here == 4, "backups are fetched ahead (R22)")
    await pod.drain()


@pytest.mark.parametrize("seed", range(20))
async def test_killed_and_restarted_again_and_again_no_record_is_issued_twice(
    rain: Rain, seed: int
) -> None:
    """F1 on whole pods: what is lost is at most a window a death and file, and is counted."""
    manifest = mint_fake(rain.objects, records=400)
    await rain.open_campaign(manifest)
    won: list[tuple[int, int]] = []
    residue = deaths = 0
    while rain.clock.now_ms < START_MS + SLOT_MS - 500:
        pod = rain.pod()
        await pod.start()
        won += await win(rain, pod, 500 + (seed * 7919 + deaths * 131) % 1500)
        residue += pod.counts().residue
        await crash(pod)
        deaths += 1
    last = rain.pod()
    await last.start()
    residue += last.counts().residue
    await last.drain()
    issued = [entry for entry in won if entry[0] in (100, 101)]
    assert len(issued) == len(set(issued))
    assert residue <= deaths * SMALL.reserve_records * SMALL.reserve_files
    assert len(issued) > 0


async def test_a_drained_pod_leaves_no_residue(rain: Rain) -> None:
    await rain.open_campaign(mint_fake(rain.objects))
    first = rain.pod()
    await first.start()
    won = await win(rain, first, 3000)
    await first.drain()
    assert shake(first).outcome == pb.SLOW_DOWN
    second = rain.pod()
    await second.start()
    won += await win(rain, second, 3000)
    assert second.counts().residue == 0
    assert won == [(file, index) for file, index in sorted(won)]
    assert [index for _, index in won if _ == 100] == [*range(sum(f == 100 for f, _ in won))]
    await second.drain()


async def test_an_assignment_taken_away_stops_the_file_at_once(rain: Rain) -> None:
    """F13: by the time the document was delivered, no shake wins from it."""
    manifest = mint_fake(rain.objects)
    await rain.open_campaign(manifest)
    pod = rain.pod()
    await pod.start()
    assert await win(rain, pod, 500)
    moved = placed(manifest, serving=2).to_json()
    pod._on_change(Versioned(f"campaigns/{CAMPAIGN}/assignment", moved, 99))
    assert pod.counts().files_active == 0
    assert await win(rain, pod, 200) == []
    await pod.drain()


async def test_when_a_zone_is_lost_its_next_slot_is_served_here_and_no_file_twice(
    rain: Rain,
) -> None:
    """F13, R23: the open slot stays where it was, the next one moves to the backup."""
    manifest = mint_fake(rain.objects)
    home = placed(manifest, serving=2, pod=2, backup=1)
    await rain.open_campaign(manifest, home)
    here, there = rain.pod(1), rain.pod(2)
    await here.start()
    await there.start()
    won_there = await win(rain, there, 1000)
    assert won_there
    assert await win(rain, here, 1000) == []
    await crash(there)
    moved = Assignment(
        {
            file: replace(place, serving=1 if place.slot == 2 else 2)
            for file, place in home.files.items()
        }
    )
    await rain.order("assignment", moved.to_json())
    await until(lambda: here._orders.assignment == moved, "the move is known")
    assert await win(rain, here, 1000) == []
    rain.clock.now_ms = SECOND_SLOT_MS
    await until(lambda: here.counts().files_active == 2, "the moved files are open")
    assert {file for file, _ in await win(rain, here, 2000)} == {102}
    await here.drain()


async def test_another_scheme_for_a_later_slot_is_fetched_ahead_and_served(rain: Rain) -> None:
    """R42."""
    first = mint_fake(rain.objects, 1)
    second = mint_fake(rain.objects, 2)
    await rain.open_campaign(first)
    files = dict(placed(first).files) | dict(placed(second).files)
    await rain.order("assignment", Assignment(files).to_json())
    pod = rain.pod()
    await pod.start()
    assert {file // 100 for file, _ in await win(rain, pod, 1000)} == {1}
    revision = await rain.order("active", {"1": 1, "2": 2})
    await until_acked(rain, f"campaigns/{CAMPAIGN}/active", revision)
    assert {file for file in pod.shelf.files if file >= 200} == {202, 203}
    assert {file // 100 for file, _ in await win(rain, pod, 1000)} == {1}
    rain.clock.now_ms = SECOND_SLOT_MS
    await until(lambda: set(pod.shelf.cursors) == {202, 203}, "the slot's files are open")
    assert {file for file, _ in await win(rain, pod, 1000)} == {202}
    await pod.drain()


async def test_switches_act_and_are_acknowledged(rain: Rain) -> None:
    """R30, F17."""
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    revision = await rain.switch("shake_pause", True)
    await until(lambda: shake(pod).outcome == pb.SLOW_DOWN, "the pause is obeyed")
    await until_acked(rain, "switches/shake_pause", revision)
    assert await acked(rain, "switches/shake_pause") == {"revision": revision}
    await rain.switch("shake_pause", False)
    await until(lambda: shake(pod).outcome != pb.SLOW_DOWN, "the pause is over")
    await pod.drain()


async def test_a_switch_ends_by_itself_when_its_time_is_over(rain: Rain) -> None:
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    await rain.switch("shake_pause", True, expires_at_ms=START_MS + 500)
    await until(lambda: shake(pod).outcome == pb.SLOW_DOWN, "the pause is obeyed")
    rain.clock.now_ms = START_MS + 500
    await until(lambda: shake(pod).outcome != pb.SLOW_DOWN, "the pause is over")
    await pod.drain()


@pytest.mark.parametrize("key", ["switches/of_tomorrow", "switches/settle_pause"])
async def test_switches_of_others_are_neither_obeyed_nor_acknowledged(rain: Rain, key: str) -> None:
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    await rain.switch(key.removeprefix("switches/"), True)
    await rain.switch("exposure_only", True)
    await until(lambda: pod.service._controls.exposure_only, "the next switch is obeyed")
    await asyncio.sleep(0.02)
    assert await acked(rain, key) == {}
    await pod.drain()


@pytest.mark.parametrize("document", ["timeline", "active", "assignment", "quota"])
@pytest.mark.parametrize("value", [b"{", b"[]", b'{"files": 1, "slots": 2, "x": "y"}', b"\xff"])
async def test_a_broken_document_changes_nothing(rain: Rain, document: str, value: bytes) -> None:
    await rain.open_campaign(mint_fake(rain.objects))
    await rain.quota(500)
    pod = rain.pod()
    await pod.start()
    before = pod._orders
    pod._on_change(Versioned(f"campaigns/{CAMPAIGN}/{document}", value, 99))
    assert pod._orders is before
    assert await win(rain, pod, 500)
    await pod.drain()


async def test_the_quota_is_shared_by_files(rain: Rain) -> None:
    """R18: half of the slot's files, half of the opens."""
    manifest = mint_fake(rain.objects)
    mine = dict(placed(manifest).files)
    mine[101] = Placement(1, 2, 1, 2)
    await rain.open_campaign(manifest, Assignment(mine))
    pod = rain.pod()
    await pod.start()
    await rain.quota(20)
    await until(lambda: pod.service._controls.quota_per_s == 10, "the quota is known")
    assert len(await win(rain, pod, 2000)) <= 22
    await pod.drain()


async def test_what_a_silent_process_once_measured_counts_no_more(rain: Rain) -> None:
    """R18: a redeem side that is gone opens nothing; a floor keeps the slot alive."""
    limits = replace(SMALL, quota_life_ms=1000, quota_floor_per_s=8.0)
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod(limits=limits)
    await pod.start()
    assert pod.service._controls.quota_per_s == 8  # nobody has said anything yet
    live, dead = (
        {"opens_per_s": opens_per_s, "at_ms": rain.clock.now_ms + later_ms}
        for opens_per_s, later_ms in ((20, 0), (500, -1000))
    )
    document = {"opens_per_s": 520, "processes": {"redeem-a-0": live, "redeem-b-0": dead}}
    await rain.order("quota", document)
    await until(lambda: pod.service._controls.quota_per_s == 20, "the living one alone counts")
    rain.clock.now_ms += 1000
    await until(lambda: pod.service._controls.quota_per_s == 8, "it has been silent too long")
    await rain.quota(30)
    await until(lambda: pod.service._controls.quota_per_s == 30, "it is back")
    await pod.drain()


async def test_a_quota_is_obeyed_without_an_ack(rain: Rain) -> None:
    """R18: it changes every second; acks of all pods would be a load on coordination."""
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    await rain.quota(30)
    await until(lambda: pod.service._controls.quota_per_s == 30, "the quota is obeyed")
    revision = await rain.order("assignment", {"files": {}})
    await until_acked(rain, f"campaigns/{CAMPAIGN}/assignment", revision)
    acked = {fact.key.split("/")[3] for fact in await rain.store.read_prefix("acks/campaigns/")}
    assert acked >= {"timeline", "assignment"}
    assert "quota" not in acked
    await pod.drain()


async def test_a_broken_file_is_refused_named_in_the_ack_and_the_others_are_served(
    rain: Rain,
) -> None:
    """F19."""
    manifest = mint_fake(rain.objects)
    await rain.open_campaign(manifest)
    name = manifest.files[0].name
    good = rain.objects.objects[name]
    rain.objects.broken[name] = good[:-1] + b"\0"
    pod = rain.pod()
    await pod.start()
    assert {file for file, _ in await win(rain, pod, 500)} == {101}
    document = f"campaigns/{CAMPAIGN}/assignment"
    refused = (await acked(rain, document))["refused"]
    assert list(refused) == ["100"]
    assert "sha256" in refused["100"]
    assert pod.counts().files_refused == 1
    del rain.objects.broken[name]

    def taken() -> bool:
        rain.clock.now_ms += 10  # an attempt under way may still fail, and is due again later
        return pod.counts().files_refused == 0

    await until(taken, "a repaired file is taken")
    await pod.drain()


async def test_a_pod_whose_later_start_is_known_issues_nothing_more(rain: Rain) -> None:
    """F7 in small."""
    await rain.open_campaign(mint_fake(rain.objects))
    pod = rain.pod()
    await pod.start()
    assert await win(rain, pod, 500)
    await rain.store.put("pods/1/epoch", b"2")
    await until(lambda: pod.superseded, "the later epoch is known")
    assert await win(rain, pod, 200) == []
    await pod.drain()


class SlowObjects(MemoryObjects):
    """Is an object store whose ticket files never arrive, once told so."""

    stuck = False

    async def fetch(self, name: str, path: Path) -> None:
        if self.stuck:
            await asyncio.sleep(3600)
        await super().fetch(name, path)


async def test_a_download_that_hangs_does_not_keep_a_slot_from_opening(rain: Rain) -> None:
    objects = SlowObjects()
    rain.objects = objects
    first, second = mint_fake(objects, 1), mint_fake(objects, 2)
    await rain.open_campaign(first)
    pod = rain.pod()
    await pod.start()
    objects.stuck = True
    files = dict(placed(first).files) | dict(placed(second).files)
    await rain.order("assignment", Assignment(files).to_json())
    await rain.order("active", {"1": 2, "2": 1})
    await until(lambda: pod.counts().files_active == 0, "the slot's scheme is another one")
    rain.clock.now_ms = SECOND_SLOT_MS
    await until(lambda: set(pod.shelf.cursors) == {102, 103}, "the slot's files are open")
    assert await win(rain, pod, 500)
    await pod.drain()


async def test_a_download_that_takes_too_long_is_given_up_and_named(rain: Rain) -> None:
    objects = SlowObjects()
    rain.objects = objects
    await rain.open_campaign(mint_fake(objects))
    objects.stuck = True
    pod = rain.pod(limits=replace(SMALL, fetch_timeout_s=0.02))
    await pod.start()
    assert pod.counts().files_refused == 4
    assert "did not arrive in time" in pod.shelf.refused[100]
    await pod.drain()


class CountingLog:
    """Counts the writes to a log."""

    def __init__(self, store: MemoryStore) -> None:
        self.scan, self.get, self.put_many = store.scan, store.get, store.put_many
        self.store = store
        self.writes = 0

    async def create(self, key: bytes, value: bytes) -> bool:
        self.writes += 1
        return await self.store.create(key, value)


async def test_shakes_touch_no_store_and_every_one_is_answered_and_counted(rain: Rain) -> None:
    """R4, R5, R15: only windows are written, one for many records."""
    await rain.open_campaign(mint_fake(rain.objects, records=1000))
    log = CountingLog(rain.store)
    pod = rain.pod(log=log)
    await pod.start()
    writes = log.writes
    for user in range(1, 501):
        rain.clock.now_ms += 1
        shake(pod, user)
    assert log.writes == writes
    assert sum(pod.counts().outcomes.values()) == 500
    won = await win(rain, pod, 6000)
    assert log.writes - writes <= (len(won) + 100) // (SMALL.reserve_records // 2) + 3
    await pod.drain()


class DeadCoordination:
    """Is a coordination store that nobody reaches."""

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        raise Transient("unreachable")

    async def put(self, key: str, value: bytes) -> Versioned:
        raise Transient("unreachable")


async def test_a_pod_that_starts_while_coordination_is_away_obeys_its_last_orders(
    rain: Rain,
) -> None:
    """Design §6: last known good on restart."""
    await rain.open_campaign(mint_fake(rain.objects))
    await rain.switch("issue_speed", 0.5)
    first = rain.pod()
    await first.start()
    memory = rain.folder / "pod-1" / "orders.json"
    await until(lambda: memory.exists() and "issue_speed" in memory.read_text(), "remembered")
    await first.drain()
    second = rain.pod(limits=replace(SMALL, start_wait_s=0.05))
    second._watch._coordination = DeadCoordination()  # type: ignore[misc, assignment]
    await second.start()
    await until(lambda: second.counts().files_active == 2, "the remembered files are open")
    assert second.service._controls.speed == 0.5
    assert await win(rain, second, 1000)
    await second.drain()


async def test_a_pod_answers_two_methods_and_shows_no_key(rain: Rain) -> None:
    """R44."""
    pod = rain.pod()
    assert repr(PodKeys(BINDING_KEY, SESSION_KEY, b"v" * 32, {})) == "PodKeys(…)"
    assert [method.path for method in pod.methods] == [
        "/hongbao.v1.Access/OpenSession",
        "/hongbao.v1.Access/Shake",
    ]


async def test_tokens_name_the_pod_its_epoch_and_the_files_claims_shard(rain: Rain) -> None:
    manifest = mint_fake(rain.objects)
    await rain.open_campaign(manifest)
    pod = rain.pod()
    await pod.start()
    rain.clock.now_ms += 200
    reply = shake(pod)
    head = parse_claim_head(reply.claim_token)
    assert head is not None
    assert (head.pod, head.epoch) == (1, rain.epochs)
    assert head.claims_shard == manifest.files[0].claims_shard
    assert manifests.manifest_name(CAMPAIGN, 1) in rain.objects.fetched
    await pod.drain()
