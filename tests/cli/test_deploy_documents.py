"""Facts about the desired state that `hongbao up` writes and keeps (R6, R22, R23)."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.cli import demo, up
from hongbao.cli.documents import MOVE_LEAD_MS, deploy_documents, keep_placement, move_files
from hongbao.domain.assignment import AccessPod, Assignment
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import SlotNumber
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Versioned

from tests.minted import tiny_plan
from tests.waiting import LIMIT_S

PODS = [AccessPod(1, "access-a-0", "a"), AccessPod(2, "access-b-0", "b")]
PLAN = tiny_plan()
SLOTS = sorted({file.slot for file in PLAN.files})
TIMELINE = Timeline(
    tuple(
        Slot(SlotNumber(slot), f"slot {slot}", 10_000 * index, 10_000 * index + 9_000)
        for index, slot in enumerate(SLOTS, 1)
    )
)
KEY = f"campaigns/{PLAN.campaign}"


async def deploy(
    store: MemoryStore, timeline: Timeline = TIMELINE, *, rehearsal: bool = False, now_ms: int = 0
) -> None:
    await deploy_documents(
        store, PLAN.campaign, timeline, 1, [PLAN], PODS, rehearsal=rehearsal, now_ms=now_ms
    )


async def deployed(store: MemoryStore) -> Timeline:
    return Timeline.from_json((await store.read(f"{KEY}/timeline")).value)


def moved(timeline: Timeline, index: int, by_ms: int) -> Timeline:
    """Return the timeline with one slot's end moved."""
    slots = list(timeline.slots)
    slots[index] = replace(slots[index], ends_at_ms=slots[index].ends_at_ms + by_ms)
    return Timeline(tuple(slots))


async def members(store: MemoryStore, *pods: AccessPod) -> None:
    for pod in pods:
        value = json.dumps({"process": pod.process}).encode()
        await store.acquire(f"member/{pod.process}", pod.process, ttl_s=60, value=value)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(monotonic_s=lambda: 0.0)


async def test_documents_are_written_once_and_never_overwritten(store: MemoryStore) -> None:
    await deploy(store)
    await store.put(f"{KEY}/active", b'{"1": 2}')
    await deploy(store)
    assert (await store.read(f"{KEY}/active")).value == b'{"1": 2}'


REHEARSED = TIMELINE.rehearsed(500, 1_000)  # is over before the campaign begins


async def test_a_rehearsal_replaces_a_timeline_that_has_not_begun(store: MemoryStore) -> None:
    await deploy(store)
    await deploy(store, REHEARSED, rehearsal=True)
    assert await deployed(store) == REHEARSED


async def test_one_rehearsal_follows_another(store: MemoryStore) -> None:
    await deploy(store, REHEARSED, rehearsal=True)
    later = TIMELINE.rehearsed(5_000, 1_000)
    await deploy(store, later, rehearsal=True, now_ms=2_000)
    assert await deployed(store) == later


async def test_a_rehearsal_that_never_began_gives_way_to_the_campaign(store: MemoryStore) -> None:
    """R3: the rehearsal's times stayed in force for the evening itself."""
    await deploy(store, REHEARSED, rehearsal=True)
    await deploy(store, now_ms=0)
    assert await deployed(store) == TIMELINE


@pytest.mark.parametrize("rehearsal_first", [True, False])
async def test_an_evening_and_a_rehearsal_never_spend_the_same_packets(
    store: MemoryStore, rehearsal_first: bool
) -> None:
    first, second = (REHEARSED, TIMELINE) if rehearsal_first else (TIMELINE, REHEARSED)
    await deploy(store, first, rehearsal=rehearsal_first)
    opened_ms = first.slots[0].starts_at_ms
    with pytest.raises(Rejected, match="another run_dir"):
        await deploy(store, second, rehearsal=not rehearsal_first, now_ms=opened_ms)
    assert await deployed(store) == first


async def test_edited_times_of_a_slot_that_has_not_opened_deploy(store: MemoryStore) -> None:
    """R37."""
    await deploy(store)
    edited = moved(TIMELINE, -1, 500)
    await deploy(store, edited, now_ms=TIMELINE.slots[0].starts_at_ms)
    assert await deployed(store) == edited


async def test_a_slot_that_has_opened_keeps_its_times(store: MemoryStore) -> None:
    await deploy(store)
    with pytest.raises(Rejected, match="slot 1 has opened"):
        await deploy(store, moved(TIMELINE, 0, 500), now_ms=TIMELINE.slots[0].starts_at_ms)
    assert await deployed(store) == TIMELINE


async def test_a_repeated_start_writes_no_timeline(store: MemoryStore) -> None:
    await deploy(store)
    before = await store.read(f"{KEY}/timeline")
    await deploy(store, now_ms=10**9)
    assert await store.read(f"{KEY}/timeline") == before


def webhook_settings(folder: Path) -> Path:
    path = folder / "up.yaml"
    path.write_text("campaign: a.yaml\nwebhook_url: https://bank.example/pay\n")
    return path


def test_a_rehearsal_never_pays_outside(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="never pays outside"):
        up.up(webhook_settings(tmp_path), rehearsal=60.0)


def test_a_demo_never_pays_outside(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="never pays outside"):
        demo.demo(webhook_settings(tmp_path))


class OddStore(MemoryStore):
    """Fails once in a way that nobody foresaw."""

    odd = 1

    async def read_prefix(self, prefix: str) -> Sequence[Versioned]:
        if self.odd:
            self.odd -= 1
            raise RuntimeError("odd")
        return await super().read_prefix(prefix)


async def test_placement_is_kept_after_an_unforeseen_error() -> None:
    store = OddStore(monotonic_s=lambda: 0.0)
    await deploy(store)
    await members(store, PODS[0])
    keeping = asyncio.create_task(keep_placement(store, PLAN.campaign, PODS, lambda: 0))
    async with asyncio.timeout(LIMIT_S):
        async for fact in store.watch(f"{KEY}/assignment", after_revision=0):
            files = Assignment.from_json(fact.value).files.values()
            if {place.serving for place in files} == {1}:
                break
    keeping.cancel()


async def test_files_of_a_dead_pod_move_before_their_slot_opens(store: MemoryStore) -> None:
    await deploy(store)
    await members(store, PODS[0])
    after = await move_files(store, PLAN.campaign, PODS, lambda: 0)
    assert {place.serving for place in after.files.values()} == {1}
    stored = Assignment.from_json((await store.read(f"{KEY}/assignment")).value)
    assert stored == after


async def test_files_of_an_open_slot_stay_with_their_dead_pod(store: MemoryStore) -> None:
    await deploy(store)
    await members(store, PODS[0])
    now_ms = TIMELINE.slots[0].starts_at_ms
    after = await move_files(store, PLAN.campaign, PODS, lambda: now_ms)
    for place in after.files.values():
        assert place.serving == (place.pod if place.slot == SLOTS[0] else 1)


async def test_files_stay_when_their_slot_may_open_while_the_move_is_written(
    store: MemoryStore,
) -> None:
    """R22: a slow store would let two pods serve one file of a slot that has opened."""
    await deploy(store)
    await members(store, PODS[0])
    before = await store.read(f"{KEY}/assignment")
    now_ms = TIMELINE.slots[0].starts_at_ms - MOVE_LEAD_MS
    await move_files(store, PLAN.campaign, PODS, lambda: now_ms)
    stored = Assignment.from_json((await store.read(f"{KEY}/assignment")).value)
    first = [place for place in stored.files.values() if place.slot == SLOTS[0]]
    assert [place.serving for place in first] == [place.pod for place in first]
    assert stored != Assignment.from_json(before.value)  # those of later slots move


async def test_files_stay_when_their_slot_opens_while_documents_are_read(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(store)
    await members(store, PODS[0])
    now_ms, read = TIMELINE.slots[0].starts_at_ms - 4 * MOVE_LEAD_MS, store.read

    async def read_slowly(key: str) -> Versioned:
        nonlocal now_ms
        now_ms += 2 * MOVE_LEAD_MS
        return await read(key)

    monkeypatch.setattr(store, "read", read_slowly)
    after = await move_files(store, PLAN.campaign, PODS, lambda: now_ms)
    first = [place for place in after.files.values() if place.slot == SLOTS[0]]
    assert [place.serving for place in first] == [place.pod for place in first]


async def test_nothing_is_written_while_all_live(store: MemoryStore) -> None:
    await deploy(store)
    await members(store, *PODS)
    before = await store.read(f"{KEY}/assignment")
    await move_files(store, PLAN.campaign, PODS, lambda: 0)
    assert (await store.read(f"{KEY}/assignment")).revision == before.revision
