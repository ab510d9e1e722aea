"""Owns the campaign's desired state in Coordination: writes it once, keeps placement true.

In a cluster the operator does this from custom resources; on one machine `hongbao up` does.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence

import structlog

from hongbao.domain.assignment import AccessPod, Assignment, fail_over, plan_assignment
from hongbao.domain.errors import Transient
from hongbao.domain.plan import MintPlan
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Coordination

PLACEMENT_PAUSE_S = 0.1
LEAD_MS = 300  # a slot that opens within this moves no more: pods need a moment to load files

log = structlog.get_logger()


async def deploy_documents(
    coordination: Coordination,
    campaign: str,
    timeline: Timeline,
    active_scheme_number: int,
    plans: Iterable[MintPlan],
    pods: Sequence[AccessPod],
    *,
    replace_timeline: bool,
) -> None:
    """Write timeline, active scheme, assignment and keys where absent (safe to repeat).

    `replace_timeline`: the timeline is a new one that must hold, as for a rehearsal.
    """
    files = [(file.file, file.slot, file.ticket_shard) for plan in plans for file in plan.files]
    active = {str(slot.slot): active_scheme_number for slot in timeline.slots}
    documents = {
        "timeline": timeline.to_json(),
        "active": json.dumps(active, sort_keys=True).encode(),
        "assignment": plan_assignment(files, pods).to_json(),
        "keys": json.dumps({"allow": None, "deny": []}).encode(),
    }
    if replace_timeline:
        await coordination.put(f"campaigns/{campaign}/timeline", timeline.to_json())
    for name, value in documents.items():
        await coordination.compare_and_put(f"campaigns/{campaign}/{name}", value, revision=0)


async def keep_placement(
    coordination: Coordination,
    campaign: str,
    pods: Sequence[AccessPod],
    wall_ms: Callable[[], int],
) -> None:
    """Move files of unopened slots off pods whose member lease is gone, for ever (R22, R23)."""
    while True:
        try:
            await move_files(coordination, campaign, pods, wall_ms())
        except Transient as error:
            log.warning("placement_unknown", error=str(error))
        await asyncio.sleep(PLACEMENT_PAUSE_S)


async def move_files(
    coordination: Coordination, campaign: str, pods: Sequence[AccessPod], now_ms: int
) -> Assignment:
    """Look once, and write the assignment if it should change; return the newest."""
    members = await coordination.read_prefix("lease/member/access-")
    live = {key.key.removeprefix("lease/member/") for key in members if key.value}
    timeline = Timeline.from_json((await coordination.read(f"campaigns/{campaign}/timeline")).value)
    opened = timeline.opened(now_ms, lead_ms=LEAD_MS)
    unopened = {slot.slot for slot in timeline.slots} - opened
    key = f"campaigns/{campaign}/assignment"
    stored = await coordination.read(key)
    before = Assignment.from_json(stored.value)
    after = fail_over(before, {pod.pod for pod in pods if pod.process in live}, unopened)
    if after != before:
        moved = sorted(file for file in after.files if after.files[file] != before.files[file])
        if await coordination.compare_and_put(key, after.to_json(), revision=stored.revision):
            log.info("files_moved", files=len(moved), live=sorted(live))
    return after
