"""Facts about the desired state that `hongbao up` writes and keeps (R6, R22, R23)."""

import json

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.cli.documents import deploy_documents, move_files
from hongbao.domain.assignment import AccessPod, Assignment
from hongbao.domain.campaign import Slot
from hongbao.domain.ids import SlotNumber
from hongbao.domain.timeline import Timeline

from tests.minted import tiny_plan

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


async def deploy(store: MemoryStore, timeline: Timeline = TIMELINE, replace: bool = False) -> None:
    await deploy_documents(
        store, PLAN.campaign, timeline, 1, [PLAN], PODS, replace_timeline=replace
    )


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


async def test_a_rehearsal_replaces_the_timeline(store: MemoryStore) -> None:
    await deploy(store)
    later = TIMELINE.rehearsed(500_000, 60_000)
    await deploy(store, later, replace=True)
    assert Timeline.from_json((await store.read(f"{KEY}/timeline")).value) == later


async def test_files_of_a_dead_pod_move_before_their_slot_opens(store: MemoryStore) -> None:
    await deploy(store)
    await members(store, PODS[0])
    after = await move_files(store, PLAN.campaign, PODS, now_ms=0)
    assert {place.serving for place in after.files.values()} == {1}
    stored = Assignment.from_json((await store.read(f"{KEY}/assignment")).value)
    assert stored == after


async def test_files_of_an_open_slot_stay_with_their_dead_pod(store: MemoryStore) -> None:
    await deploy(store)
    await members(store, PODS[0])
    now_ms = TIMELINE.slots[0].starts_at_ms
    after = await move_files(store, PLAN.campaign, PODS, now_ms)
    for place in after.files.values():
        assert place.serving == (place.pod if place.slot == SLOTS[0] else 1)


async def test_nothing_is_written_while_all_live(store: MemoryStore) -> None:
    await deploy(store)
    await members(store, *PODS)
    before = await store.read(f"{KEY}/assignment")
    await move_files(store, PLAN.campaign, PODS, now_ms=0)
    assert (await store.read(f"{KEY}/assignment")).revision == before.revision
