"""Owns what was minted, ready to be asked about many packets at once; refuses to decide.

A Book is frozen: manifests, memory-mapped amount tables, which scheme is active in which slot,
and which keys are denied. Settlement checks every claim against it, not a sample (R52, R53).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hongbao.domain.errors import Corrupt
from hongbao.domain.manifest import Manifest, PacketIndex

AMOUNT_DTYPE: Final = np.dtype(">u4")
HASH_CHUNK_BYTES: Final = 1 << 20

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class KeyRules:
    """Says which keys' packets may be paid (R46)."""

    denied: frozenset[int] = frozenset()
    allowed: frozenset[int] | None = None  # None: every key that is not denied

    def refused(self, key_ids: Ints) -> NDArray[np.bool_]:
        """Say for each key whether it is refused."""
        refused = np.isin(key_ids, list(self.denied))
        if self.allowed is not None:
            refused |= ~np.isin(key_ids, list(self.allowed))
        return refused


class AmountsSpan(NamedTuple):
    """Is the amount table of one scheme."""

    serial_base: int
    fen: NDArray[np.uint32]


@dataclass(frozen=True)
class MintedPackets:
    """Is what the manifests say about packets, as columns; unknown packets have known False."""

    known: NDArray[np.bool_]
    scheme_number: Ints
    slot: Ints
    sponsor: Ints
    file: Ints
    bit: Ints
    claims_shard: Ints
    key_id: Ints
    amount_fen: Ints


class Book:
    """Answers what was minted under any serial of any scheme of the campaign."""

    def __init__(
        self,
        schemes: Sequence[tuple[Manifest, Path]],
        *,
        active: Mapping[int, int],
        keys: KeyRules | None = None,
    ) -> None:
        """Take manifests with the local paths of their amount tables, checked by `map_amounts`."""
        self.active: Final = dict(active)
        self.keys: Final = keys or KeyRules()
        self.manifests: Final = tuple(manifest for manifest, _ in schemes)
        self._index = PacketIndex(self.manifests)
        self._amounts = [
            AmountsSpan(manifest.serial_base, map_amounts(path, manifest))
            for manifest, path in schemes
        ]
        starts = sorted(_key_starts(self.manifests))
        self._key_starts = np.array([start for start, _ in starts], np.int64)
        self._key_ids = np.array([key_id for _, key_id in starts], np.int64)
        self._active = _active_column(self.active)

    def with_rules(self, active: Mapping[int, int], keys: KeyRules) -> "Book":
        """Return the same packets under other rules, without reading a table again."""
        book = object.__new__(Book)
        book.__dict__.update(self.__dict__)
        book.__dict__.update(active=dict(active), keys=keys, _active=_active_column(active))
        return book

    def look_up(self, batches: Ints, serials: Ints) -> MintedPackets:
        """Return what was minted under these serials in these batches."""
        places = self._index.locate_many(batches, serials)
        key = np.searchsorted(self._key_starts, serials, side="right") - 1
        return MintedPackets(
            known=places.known,
            scheme_number=places.scheme_number,
            slot=places.slot,
            sponsor=places.sponsor,
            file=places.file,
            bit=places.bit,
            claims_shard=places.claims_shard,
            key_id=self._key_ids[key],
            amount_fen=self._amounts_of(serials, places.known),
        )

    def batch_of(self, serial: int) -> int | None:
        """Return the batch of a packet; None when no scheme has it."""
        batches = (batch for manifest in self.manifests for batch in manifest.batches)
        return next(
            (one.batch for one in batches if 0 <= serial - one.serial_base < one.count), None
        )

    def active_scheme(self, slots: Ints) -> Ints:
        """Return the active scheme's number of each slot, 0 where there is none."""
        inside = (slots >= 0) & (slots < len(self._active))
        return np.where(inside, self._active[np.where(inside, slots, 0)], 0)

    def _amounts_of(self, serials: Ints, known: NDArray[np.bool_]) -> Ints:
        amounts = np.zeros(len(serials), np.int64)
        for span in self._amounts:
            offsets = serials - span.serial_base
            mine = known & (offsets >= 0) & (offsets < len(span.fen))
            amounts[mine] = span.fen[offsets[mine]]
        return amounts


def map_amounts(path: Path, manifest: Manifest) -> NDArray[np.uint32]:
    """Map a sealed amount table, size and hash checked against its manifest. Raises Corrupt."""
    table = manifest.amounts
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != table.sha256:
        raise Corrupt(f"{table.name}: sha256 is not the manifest's")
    if path.stat().st_size != table.count * AMOUNT_DTYPE.itemsize:
        raise Corrupt(f"{table.name}: {path.stat().st_size} bytes for {table.count} packets")
    return np.memmap(path, AMOUNT_DTYPE, "r", shape=(table.count,))


def _key_starts(manifests: Sequence[Manifest]) -> list[tuple[int, int]]:
    return [
        (batch.serial_base + batch.key_start(index), int(key_id))
        for manifest in manifests
        for batch in manifest.batches
        for index, key_id in enumerate(batch.key_ids)
    ]


def _active_column(active: Mapping[int, int]) -> Ints:
    column = np.zeros(max(active, default=0) + 1, np.int64)
    for slot, scheme_number in active.items():
        column[slot] = scheme_number
    return column
