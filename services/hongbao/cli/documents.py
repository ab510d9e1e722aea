"""Owns the campaign's desired state in Coordination: writes it once, keeps placement true.

In a cluster the operator does this from custom resources; on one machine `hongbao up` does.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence

import structlog

from hongbao.domain.assignment import AccessPod, Assignment, fail_over, plan_assignment
from hongbao.domain.errors import Rejected, Transient
from hongbao.domain.plan import MintPlan
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Coordination

PLACEMENT_PAUSE_S = 0.1
MOVE_LEAD_MS = 2_000
"""Files of a slot that opens within this stay where they are: it must not open while a store takes
its time to write that they move, or two pods serve one file (R22)."""
TIMELINE_LEAD_MS = 300  # a slot that opens within this keeps its times

log = structlog.get_logger()


async def deploy_documents(
    coordination: Coordination,
    campaign: str,
    timeline: Timeline,
    active_scheme_number: int,
    plans: Iterable[MintPlan],
    pods: Sequence[AccessPod],
    *,
    rehearsal: bool,
    now_ms: int,
) -> None:
    """Bring the timeline into force; write active scheme, assignment and keys where absent.

    Safe to repeat. Raises Rejected when a slot that has opened would get other times.
    """
    await deploy_timeline(coordination, campaign, timeline, rehearsal=rehearsal, now_ms=now_ms)
    files = [(file.file, file.slot, file.ticket_shard) for plan in plans for file in plan.files]
    active = {str(slot.slot): active_scheme_number for slot in timeline.slots}
    documents = {
        "active": json.dumps(active, sort_keys=True).encode(),
        "assignment": plan_assignment(files, pods).to_json(),
        "keys": json.dumps({"allow": None, "deny": []}).encode(),
    }
    for name, value in documents.items():
        await coordination.compare_and_put(f"campaigns/{campaign}/{name}", value, revision=0)


async def deploy_timeline(
    coordination: Coordination, campaign: str, timeline: Timeline, *, rehearsal: bool, now_ms: int
) -> None:
    """Bring a timeline into force. Raises Rejected when a slot that has opened would change."""
    key = f"campaigns/{campaign}/timeline"
    stored = await coordination.read(key)
    document = plan_timeline(stored.value, timeline, rehearsal=rehearsal, now_ms=now_ms)
    if document is None:
        return
    if await coordination.compare_and_put(key, document, revision=stored.revision) is None:
        raise Transient(f"{key} changed meanwhile: is another supervisor running?")
    log.info("timeline_deployed", campaign=campaign, rehearsal=rehearsal)


def plan_timeline(
    stored: bytes, timeline: Timeline, *, rehearsal: bool, now_ms: int
) -> bytes | None:
    """Return the document that puts a timeline in force, None where it is. Raises Rejected.

    What has opened keeps its times (R3, R37): packets were issued by them. A rehearsal may follow
    another one; a campaign's own evening never follows a rehearsal that has spent its packets.
    """
    wanted = json.loads(timeline.to_json()) | ({"rehearsal": True} if rehearsal else {})
    document = json.dumps(wanted, sort_keys=True, ensure_ascii=False).encode()
    if not stored or stored == document:
        return None if stored else document
    old, was_rehearsal = Timeline.from_json(stored), is_rehearsal(stored)
    begun = sorted(old.opened(now_ms, lead_ms=TIMELINE_LEAD_MS))
    if not begun or (rehearsal and was_rehearsal):
        return document
    if rehearsal or was_rehearsal:
        what = "a rehearsal" if was_rehearsal else "the campaign itself"
        raise Rejected(
            f"slot {begun[0]} has opened here in {what} already: take another run_dir",
            field="run_dir",
        )
    new = {slot.slot: slot for slot in timeline.slots}
    for slot in old.slots:
        if slot.slot in begun and new.get(slot.slot) != slot:
            raise Rejected(f"slot {slot.slot} has opened: it keeps its times", field="slots")
    return document


def is_rehearsal(document: bytes) -> bool:
    """Return whether a timeline document plays the campaign's slots in other times than theirs."""
    return bool(document and json.loads(document).get("rehearsal", False))


async def keep_placement(
    coordination: Coordination,
    campaign: str,
    pods: Sequence[AccessPod],
    wall_ms: Callable[[], int],
) -> None:
    """Move files of unopened slots off pods whose member lease is gone, for ever (R22, R23)."""
    while True:
        try:
            await move_files(coordination, campaign, pods, wall_ms)
        except Transient as error:
            log.warning("placement_unknown", error=str(error))
        except Exception:
            log.exception("placement_failed")
        await asyncio.sleep(PLACEMENT_PAUSE_S)


async def move_files(
    coordination: Coordination,
    campaign: str,
    pods: Sequence[AccessPod],
    wall_ms: Callable[[], int],
) -> Assignment:
    """Look once, and write the assignment if it should change; return the newest."""
    members = await coordination.read_prefix("lease/member/access-")
    live = {key.key.removeprefix("lease/member/") for key in members if key.value}
    timeline = Timeline.from_json((await coordination.read(f"campaigns/{campaign}/timeline")).value)
    key = f"campaigns/{campaign}/assignment"
    stored = await coordination.read(key)
    opened = timeline.opened(wall_ms(), lead_ms=MOVE_LEAD_MS)  # nothing but the write behind this
    unopened = {slot.slot for slot in timeline.slots} - opened
    before = Assignment.from_json(stored.value)
    after = fail_over(before, {pod.pod for pod in pods if pod.process in live}, unopened)
    if after != before:
        moved = sorted(file for file in after.files if after.files[file] != before.files[file])
        if await coordination.compare_and_put(key, after.to_json(), revision=stored.revision):
            log.info("files_moved", files=len(moved), live=sorted(live))
    return after
