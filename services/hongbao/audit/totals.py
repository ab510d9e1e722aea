"""Owns the sums over packets once every mark is set; refuses to read any store."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from hongbao.audit.packets import (
    CREDITED,
    HELD,
    OPENED,
    PENDING,
    REFUSED,
    TRANSFERRED,
    UNSETTLED,
    Ints,
    Packets,
)


@dataclass
class Totals:
    """Is packets and their minted money, by what became of them."""

    packets_minted: int = 0
    packets_opened: int = 0
    minted_fen: int = 0
    opened_fen: int = 0
    credited_fen: int = 0
    pending_fen: int = 0  # in the log and not settled yet, or not yet paid by the sink
    quarantined_fen: int = 0  # opened, kept back, and not paid
    unclaimed_fen: int = 0

    def add(self, other: "Totals") -> None:
        """Add another part."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def sum_packets(packets: Packets) -> tuple[dict[int, Totals], dict[int, Totals], Totals]:
    """Return totals per slot, per sponsor, and over all active packets."""
    slots: dict[int, Totals] = {}
    sponsors: dict[int, Totals] = {}
    whole = Totals()
    for manifest, batch in packets.active_batches():
        found = Totals()
        for fen, marks in packets.chunks(manifest, batch):
            found.add(_sum_chunk(fen, marks))
        slots.setdefault(batch.slot, Totals()).add(found)
        sponsors.setdefault(batch.sponsor, Totals()).add(found)
        whole.add(found)
    return slots, sponsors, whole


def _sum_chunk(fen: Ints, marks: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> Totals:
    def has(mark: int) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        return (marks & mark) > 0

    opened, credited = has(OPENED), has(CREDITED)
    pending = ~credited & (has(PENDING) | (has(UNSETTLED) & ~has(TRANSFERRED | HELD)))
    held = opened & (has(REFUSED) | has(HELD)) & ~has(CREDITED | PENDING)
    return Totals(
        packets_minted=len(fen),
        packets_opened=int(opened.sum()),
        minted_fen=int(fen.sum()),
        opened_fen=int(fen[opened].sum()),
        credited_fen=int(fen[credited].sum()),
        pending_fen=int(fen[pending].sum()),
        quarantined_fen=int(fen[held].sum()),
        unclaimed_fen=int(fen[~opened].sum()),
    )


def find_missing(packets: Packets, serials: Iterable[int]) -> list[int]:
    """Return which of these packets have no claim in the log."""
    wanted = np.fromiter(serials, np.int64)
    found = packets.find(wanted)
    missing = ~found.known | (packets.marks[found.place] & OPENED == 0)
    return [int(serial) for serial in wanted[missing]]


def paid_without_claim(packets: Packets) -> Iterable[int]:
    """Yield the places of active packets that have a transfer and no claim."""
    for place in range(0, len(packets.marks), 1 << 20):
        marks = packets.marks[place : place + (1 << 20)]
        alone = (marks & TRANSFERRED > 0) & (marks & OPENED == 0)
        yield from (place + np.flatnonzero(alone)).tolist()
