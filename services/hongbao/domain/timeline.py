"""Owns when slots open and close and when a campaign is closed; refuses to read any clock."""

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hongbao.domain.campaign import Slot
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.domain.ids import SlotNumber

OPEN_GRACE_MS: Final = 600_000
"""Packets of a slot may be opened this long after its end; sponsors' money goes back no earlier."""
REHEARSED_GAPS_PERCENT_MAX: Final = 10  # people watch a rehearsal for its slots, not its pauses


@dataclass(frozen=True)
class Timeline:
    """Is the slots of a campaign by time; they never overlap (R3)."""

    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        if not self.slots:
            raise Rejected("a timeline needs at least one slot")
        for slot in self.slots:
            if slot.ends_at_ms <= slot.starts_at_ms:
                raise Rejected(f"slot {slot.slot} ends before it starts")
        for before, after in pairwise(self.slots):
            if after.starts_at_ms < before.ends_at_ms:
                raise Rejected(f"slots {before.slot} and {after.slot} overlap or are out of order")

    def slot_at(self, now_ms: int) -> Slot | None:
        """Return the slot that is open now."""
        found = (slot for slot in self.slots if slot.starts_at_ms <= now_ms < slot.ends_at_ms)
        return next(found, None)

    def next_slot(self, now_ms: int) -> Slot | None:
        """Return the first slot that starts later than now."""
        return next((slot for slot in self.slots if slot.starts_at_ms > now_ms), None)

    def ended(self, now_ms: int) -> bool:
        return now_ms >= self.slots[-1].ends_at_ms

    def opened(self, now_ms: int, *, lead_ms: int = 0) -> frozenset[SlotNumber]:
        """Return the slots that have opened, or will within `lead_ms`."""
        until_ms = now_ms + lead_ms
        return frozenset(slot.slot for slot in self.slots if slot.starts_at_ms <= until_ms)

    def rehearsed(self, start_ms: int, duration_ms: int) -> "Timeline":
        """Return the same slots compressed into [start_ms, start_ms + duration_ms).

        Slots keep their proportions; the pauses between them together take their true share,
        but at most REHEARSED_GAPS_PERCENT_MAX of the time.
        """
        open_ms = sum(slot.ends_at_ms - slot.starts_at_ms for slot in self.slots)
        gaps_ms = self.slots[-1].ends_at_ms - self.slots[0].starts_at_ms - open_ms
        new_gaps_ms = min(
            duration_ms * gaps_ms // (open_ms + gaps_ms),
            duration_ms * REHEARSED_GAPS_PERCENT_MAX // 100,
        )
        new_open_ms = duration_ms - new_gaps_ms
        if new_open_ms < len(self.slots):
            raise Rejected(f"{duration_ms} ms are too short for {len(self.slots)} slots")
        slots = []
        opened_ms = paused_ms = 0
        ended_ms = self.slots[0].starts_at_ms
        for slot in self.slots:
            paused_ms += slot.starts_at_ms - ended_ms
            pause_ms = new_gaps_ms * paused_ms // gaps_ms if gaps_ms else 0
            starts_at_ms = start_ms + pause_ms + new_open_ms * opened_ms // open_ms
            opened_ms += slot.ends_at_ms - slot.starts_at_ms
            ends_at_ms = start_ms + pause_ms + new_open_ms * opened_ms // open_ms
            ended_ms = slot.ends_at_ms
            slots.append(Slot(slot.slot, slot.name, starts_at_ms, ends_at_ms))
        return Timeline(tuple(slots))

    def to_json(self) -> bytes:
        """Return the coordination document `campaigns/<c>/timeline`."""
        slots = [
            {
                "slot": slot.slot,
                "name": slot.name,
                "starts_at_ms": slot.starts_at_ms,
                "ends_at_ms": slot.ends_at_ms,
            }
            for slot in self.slots
        ]
        return json.dumps({"slots": slots}, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, document: bytes) -> "Timeline":
        """Read the document back. Raises Corrupt when it is no timeline."""
        try:
            slots = tuple(
                Slot(
                    SlotNumber(int(slot["slot"])),
                    str(slot["name"]),
                    int(slot["starts_at_ms"]),
                    int(slot["ends_at_ms"]),
                )
                for slot in json.loads(document)["slots"]
            )
            return cls(slots)
        except (ValueError, KeyError, TypeError, Rejected) as error:
            raise Corrupt(f"the timeline document is broken: {error}") from error


@dataclass(frozen=True)
class Closed:
    """Is the document `campaigns/<c>/closed`: written once, no packet is opened any more."""

    at_ms: int
    by: str

    def to_json(self) -> bytes:
        """Return the coordination document."""
        return json.dumps({"at_ms": self.at_ms, "by": self.by}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, document: bytes) -> "Closed":
        """Read the document back. Raises Corrupt when it is none."""
        try:
            shape = json.loads(document)
            return cls(int(shape["at_ms"]), str(shape["by"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"the document that closes the campaign is broken: {error}") from error
