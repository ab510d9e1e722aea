"""Owns which access pod serves which ticket file; refuses to watch anything.

The document `campaigns/<c>/assignment` names for each file its pod, a backup in another zone,
and the pod that serves it. A file moves only before its slot opens: losing the rest of a slot
is the designed price, issuing from two places is not (R22, R23).
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class AccessPod:
    """Is a place that can serve ticket files."""

    pod: int  # u16, from 1
    process: str
    zone: str


@dataclass(frozen=True)
class Placement:
    """Is one file's home, its backup and who serves it now (0: nobody)."""

    slot: int
    pod: int
    backup: int
    serving: int


@dataclass(frozen=True)
class Assignment:
    """Is the placement of every file of a campaign, by file index."""

    files: Mapping[int, Placement]

    def to_json(self) -> bytes:
        files = {
            str(file): {
                "slot": place.slot,
                "pod": place.pod,
                "backup": place.backup,
                "serving": place.serving,
            }
            for file, place in sorted(self.files.items())
        }
        return json.dumps({"files": files}, sort_keys=True).encode()

    @staticmethod
    def from_json(document: bytes) -> "Assignment":
        files = json.loads(document)["files"]
        return Assignment({int(file): Placement(**place) for file, place in files.items()})


def plan_assignment(files: Iterable[tuple[int, int, int]], pods: Sequence[AccessPod]) -> Assignment:
    """Spread files, given as (file, slot, ticket shard), over pods; backups in other zones.

    With a single zone the backup is another pod of it, or the pod itself when it is alone.
    """
    if not pods:
        raise ValueError("an assignment needs at least one access pod")
    placements = {}
    for file, slot, ticket_shard in files:
        home = pods[ticket_shard % len(pods)]
        others = [pod for pod in pods if pod.zone != home.zone]
        others = others or [pod for pod in pods if pod.pod != home.pod] or [home]
        # Spread a lost zone's files over all others, not onto one neighbour.
        backup = others[(slot + ticket_shard // len(pods)) % len(others)]
        placements[file] = Placement(slot, home.pod, backup.pod, home.pod)
    return Assignment(placements)


def fail_over(
    assignment: Assignment, live_pods: Collection[int], unopened_slots: Collection[int]
) -> Assignment:
    """Move files of slots that have not opened away from dead pods, and home again.

    Files of an open slot never move: they stop with their pod and resume with it.
    """

    def place(placement: Placement) -> Placement:
        if placement.slot not in unopened_slots:
            return placement
        for candidate in (placement.pod, placement.backup):
            if candidate in live_pods:
                return replace(placement, serving=candidate)
        return placement

    return Assignment({file: place(placement) for file, placement in assignment.files.items()})
