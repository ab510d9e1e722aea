"""Owns what a scheme mints, as closed formulas; refuses to draw a single amount.

A scheme is a list of batches (one per sponsor, slot and kind) and a grid of chunks per slot.
A batch's serials are contiguous. Chunk boundaries and key boundaries cut them into spans, and
the money of any prefix is a closed formula, so spans are minted in any order, on any core, and
still sum exactly:

    money_fen(n) = n * min_fen + floor((total_fen - count * min_fen) * n / count)
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from hongbao.domain.ids import BatchId, CampaignId, Fen, FileIndex, KeyId, ShardId, SlotNumber

CHUNK_PACKETS_MAX = 1 << 18


@dataclass(frozen=True)
class Batch:
    """Is all packets of one sponsor, slot and kind in one scheme.

    Serials are [serial_base, serial_base + count). `key_ids` guard equal shares of the serials,
    in order; no share holds more money than the campaign's key cap.
    """

    batch: BatchId
    sponsor: int
    slot: SlotNumber
    kind: str  # image | video | logo
    resource: str  # the resource key that clients preloaded
    curve: str  # uniform | lucky
    count: int
    total_fen: Fen
    min_fen: Fen
    max_fen: Fen
    serial_base: int
    key_ids: tuple[KeyId, ...]

    def money_fen(self, packets: int) -> int:
        """Return the money of the batch's first `packets` packets."""
        spread = self.total_fen - self.count * self.min_fen
        return packets * self.min_fen + spread * packets // self.count

    def key_start(self, index: int) -> int:
        """Return how many packets the keys before `index` guard (index = len: all)."""
        return self.count * index // len(self.key_ids)

    def key_of(self, packet: int) -> KeyId:
        """Return the key that guards the packet at this offset in the batch."""
        keys = len(self.key_ids)
        index = packet * keys // self.count
        while self.key_start(index + 1) <= packet:
            index += 1
        return self.key_ids[index]

    def chunk_start(self, chunk: int, chunks: int) -> int:
        """Return how many of its packets lie in chunks before `chunk` of its slot.

        The phase spreads the rounding of small batches over different chunks.
        """
        return (self.count * chunk + self.batch * 7919 % chunks) // chunks


@dataclass(frozen=True)
class FilePlan:
    """Is one ticket file: the chunks [chunk_start, chunk_end) of its slot."""

    file: FileIndex
    slot: SlotNumber
    ticket_shard: int
    claims_shard: ShardId
    chunk_start: int
    chunk_end: int


@dataclass(frozen=True)
class Span:
    """Is consecutive packets of one batch under one key inside one chunk."""

    batch: Batch
    key_id: KeyId
    start: int  # offset in the batch
    end: int

    @property
    def count(self) -> int:
        return self.end - self.start

    @property
    def total_fen(self) -> int:
        return self.batch.money_fen(self.end) - self.batch.money_fen(self.start)


@dataclass(frozen=True)
class MintPlan:
    """Is everything that `mint` needs beside the secret seed and keys."""

    campaign: CampaignId
    scheme: str
    scheme_number: int  # u16, from 1; a re-plan after an edit gets a new number
    serial_base: int  # first serial of the scheme
    batches: tuple[Batch, ...]  # ordered by slot, then batch
    files: tuple[FilePlan, ...]  # ordered by slot, then ticket shard
    key_cap_fen: Fen

    @cached_property
    def packets(self) -> int:
        return sum(batch.count for batch in self.batches)

    @cached_property
    def total_fen(self) -> int:
        return sum(batch.total_fen for batch in self.batches)

    def slot_batches(self, slot: SlotNumber) -> tuple[Batch, ...]:
        return tuple(batch for batch in self.batches if batch.slot == slot)

    def slot_files(self, slot: SlotNumber) -> tuple[FilePlan, ...]:
        return tuple(file for file in self.files if file.slot == slot)

    def slot_chunks(self, slot: SlotNumber) -> int:
        return max((file.chunk_end for file in self.slot_files(slot)), default=0)

    def chunk_spans(self, slot: SlotNumber, chunk: int) -> list[Span]:
        """Return the spans of one chunk, ordered by batch, then offset."""
        chunks = self.slot_chunks(slot)
        spans = []
        for batch in self.slot_batches(slot):
            start = batch.chunk_start(chunk, chunks)
            end = batch.chunk_start(chunk + 1, chunks)
            cuts = [batch.key_start(index) for index in range(len(batch.key_ids) + 1)]
            inner = cuts[bisect_right(cuts, start) : bisect_right(cuts, end - 1)]
            points = [start, *inner, end] if end > start else []
            spans += [Span(batch, batch.key_of(a), a, b) for a, b in pairwise(points)]
        return spans

    def file_ranges(self, file: FilePlan) -> list[tuple[Batch, int, int]]:
        """Return which packets of which batches a file holds, as offsets [start, end)."""
        chunks = self.slot_chunks(file.slot)
        ranges = [
            (
                batch,
                batch.chunk_start(file.chunk_start, chunks),
                batch.chunk_start(file.chunk_end, chunks),
            )
            for batch in self.slot_batches(file.slot)
        ]
        return [(batch, start, end) for batch, start, end in ranges if end > start]
