"""Owns what the audit knows of every packet: what was minted, and a mark of what became of it.

Marks and users lie in sparse scratch files, one byte and eight bytes a packet, so memory stays
flat however many packets there are. Written against the manifests alone: it shares no code with
what settles (R54).
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hongbao.audit.findings import Findings
from hongbao.domain.manifest import Manifest, MintedFile
from hongbao.domain.plan import Batch

CHUNK_PACKETS: Final = 1 << 20

OPENED: Final = 1  # a claim is in the log
CREDITED: Final = 2
PENDING: Final = 4  # a transfer that the sink has not paid
REFUSED: Final = 8  # a transfer that the sink refused
HELD: Final = 16  # in quarantine
UNSETTLED: Final = 32  # the claim lies behind what settlement has read
TRANSFERRED: Final = CREDITED | PENDING | REFUSED

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """Is where packets lie; rows with known False mean nothing."""

    known: Bools
    place: Ints  # index of the packet over all schemes
    active: Bools  # the scheme is the active one of the packet's slot
    batch: Ints
    sponsor: Ints
    slot: Ints
    key: Ints
    file: Ints
    bit: Ints
    claims_shard: Ints


class Packets:
    """Is every packet of every scheme of a campaign."""

    def __init__(self, schemes: Sequence[tuple[Manifest, Path]], active: Mapping[int, int]) -> None:
        """Take verified manifests with local paths of their amount tables, in any order."""
        ordered = sorted(schemes, key=lambda scheme: scheme[0].serial_base)
        self.manifests: Final = tuple(manifest for manifest, _ in ordered)
        self.active: Final = dict(active)
        self._paths = [path for _, path in ordered]
        self._places = [0, *accumulate(one.packets for one in self.manifests)]
        self._tables = [
            np.memmap(path, ">u4", "r", shape=(manifest.packets,)) for manifest, path in ordered
        ]
        self._batches = _table(_batch_rows(self.manifests, self._places, active))
        self._keys = _table(_key_rows(self.manifests))
        self._runs = _table(_file_rows(self.manifests))
        total = max(1, self._places[-1])
        self.marks = _scratch(np.dtype(np.uint8), total)
        self.users = _scratch(np.dtype(np.int64), total)

    def find(self, serials: Ints) -> Columns:
        """Return where these packets lie."""
        batches = self._batches[_rank(self._batches, serials)]
        keys = self._keys[_rank(self._keys, serials)]
        runs = self._runs[_rank(self._runs, serials)]
        known = (serials >= batches[:, 0]) & (serials < batches[:, 1])
        return Columns(
            known=known,
            place=np.where(known, serials - batches[:, 0] + batches[:, 2], 0),
            active=batches[:, 6] == 1,
            batch=batches[:, 3],
            sponsor=batches[:, 4],
            slot=batches[:, 5],
            key=keys[:, 1],
            file=runs[:, 1],
            bit=serials - runs[:, 0] + runs[:, 2],
            claims_shard=runs[:, 3],
        )

    def amounts(self, places: Ints) -> Ints:
        """Return the minted fen of packets by place."""
        fen = np.zeros(len(places), np.int64)
        for table, (start, end) in zip(self._tables, pairwise(self._places), strict=True):
            mine = (places >= start) & (places < end)
            fen[mine] = table[places[mine] - start]
        return fen

    def active_batches(self) -> Iterator[tuple[Manifest, Batch]]:
        """Yield the batches of the active scheme of each slot: what counts as minted."""
        for manifest in self.manifests:
            for batch in manifest.batches:
                if self.active.get(batch.slot) == manifest.scheme_number:
                    yield manifest, batch

    def active_files(self) -> Iterator[MintedFile]:
        """Yield the ticket files of the active scheme of each slot."""
        for manifest in self.manifests:
            for file in manifest.files:
                if self.active.get(file.slot) == manifest.scheme_number:
                    yield file

    def chunks(self, manifest: Manifest, batch: Batch) -> Iterator[tuple[Ints, NDArray[np.uint8]]]:
        """Yield (minted fen, marks) of a batch's packets, in bounded pieces."""
        number = self.manifests.index(manifest)
        first = batch.serial_base - manifest.serial_base
        for start in range(first, first + batch.count, CHUNK_PACKETS):
            end = min(start + CHUNK_PACKETS, first + batch.count)
            at = self._places[number]
            fen = self._tables[number][start:end].astype(np.int64)
            yield fen, self.marks[at + start : at + end]

    def check_tables(self, findings: Findings) -> None:
        """Compare every amount table with its manifest: hash, size, sum of each batch."""
        for manifest, path in zip(self.manifests, self._paths, strict=True):
            scheme = manifest.scheme_number
            if _sha256(path) != manifest.amounts.sha256:
                findings.add("tables_match_manifests", scheme=scheme, says="sha256 differs")
            fen = sum(self._check_batch(manifest, batch, findings) for batch in manifest.batches)
            counted = sum(batch.count for batch in manifest.batches)
            sums = ((fen, manifest.total_fen), (counted, manifest.packets))
            for found, promised in sums:
                findings.must_equal("tables_match_manifests", found, promised, scheme=scheme)

    def _check_batch(self, manifest: Manifest, batch: Batch, findings: Findings) -> int:
        found, low, high = 0, batch.max_fen, batch.min_fen
        for fen, _ in self.chunks(manifest, batch):
            found += int(fen.sum())
            low, high = min(low, fen.min()), max(high, fen.max())
        where = {"scheme": manifest.scheme_number, "batch": batch.batch}
        findings.must_equal("tables_match_manifests", found, batch.total_fen, **where)
        if low < batch.min_fen or high > batch.max_fen:
            says = f"amounts from {low} to {high}"
            findings.add("tables_match_manifests", **where, says=says)
        return found


def _batch_rows(
    manifests: Iterable[Manifest], places: Sequence[int], active: Mapping[int, int]
) -> Iterator[tuple[int, ...]]:
    for manifest, place in zip(manifests, places, strict=False):
        for batch in manifest.batches:
            start = batch.serial_base
            is_active = active.get(batch.slot) == manifest.scheme_number
            at = place + start - manifest.serial_base
            end = start + batch.count
            yield start, end, at, batch.batch, batch.sponsor, batch.slot, int(is_active)


def _key_rows(manifests: Iterable[Manifest]) -> Iterator[tuple[int, ...]]:
    for manifest in manifests:
        for batch in manifest.batches:
            for index, key_id in enumerate(batch.key_ids):
                yield batch.serial_base + batch.count * index // len(batch.key_ids), key_id


def _file_rows(manifests: Iterable[Manifest]) -> Iterator[tuple[int, ...]]:
    for manifest in manifests:
        bases = {batch.batch: batch.serial_base for batch in manifest.batches}
        for file in manifest.files:
            bit = 0
            for part in file.ranges:
                yield bases[part.batch] + part.start, file.file, bit, file.claims_shard
                bit += part.end - part.start


def _table(rows: Iterable[tuple[int, ...]]) -> Ints:
    """Return rows sorted by their first column, a serial."""
    return np.array(sorted(rows), np.int64)


def _rank(table: Ints, serials: Ints) -> Ints:
    rank: Ints = np.searchsorted(table[:, 0], serials, side="right") - 1
    return np.maximum(rank, 0)


def _scratch(dtype: "np.dtype[Any]", count: int) -> NDArray[Any]:
    with tempfile.TemporaryFile(prefix="hongbao-audit-") as file:
        return np.memmap(file, dtype, "w+", shape=(count,))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
