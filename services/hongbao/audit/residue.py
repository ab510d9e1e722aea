"""Owns the residue: records of ticket files that instances reserved and died with (F1).

The figure is an upper bound: of the records behind an instance's last word it may have issued
some, and nobody will issue them again.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from hongbao.audit.findings import Findings
from hongbao.domain import cursor
from hongbao.domain.cursor import CursorEntry
from hongbao.domain.manifest import MintedFile
from hongbao.shards.ports import LogStore

PAGE_ENTRIES: Final = 256

Instance = tuple[int, int]  # pod, epoch


@dataclass(frozen=True)
class Residue:
    """Is the records [start, end) of a file that died with an instance."""

    file: int
    slot: int
    pod: int
    pod_epoch: int
    start: int
    end: int

    @property
    def packets(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class FileCursor:
    """Is what a file's cursor log says."""

    file: int
    reserved: int  # records up to here belong, or belonged, to an instance
    residues: tuple[Residue, ...]

    @property
    def residue_packets(self) -> int:
        return sum(residue.packets for residue in self.residues)


async def read_cursors(
    store: LogStore,
    files: Iterable[MintedFile],
    alive: Collection[Instance],
    findings: Findings,
) -> dict[int, FileCursor]:
    """Read the cursor log of every file; `alive` instances may still issue what they reserved."""
    return {
        int(file.file): _follow(file, await _entries(store, file.file, findings), alive, findings)
        for file in files
    }


async def _entries(store: LogStore, file: int, findings: Findings) -> list[CursorEntry]:
    entries: list[CursorEntry] = []
    while True:
        start = cursor.cursor_key(file, len(entries))
        pairs = await store.scan(start, cursor.cursor_end(file), PAGE_ENTRIES)
        for key, value in pairs:
            if key != cursor.cursor_key(file, len(entries)):
                findings.add("tickets_reserved_once", file=file, says=f"gap before {key.decode()}")
                return entries
            entries.append(cursor.parse_cursor(value))
        if len(pairs) < PAGE_ENTRIES:
            return entries


def _follow(
    file: MintedFile,
    entries: list[CursorEntry],
    alive: Collection[Instance],
    findings: Findings,
) -> FileCursor:
    residues = []
    free_from = 0
    last: CursorEntry | None = None
    for entry in entries:
        if last is not None and _instance(last) != _instance(entry):
            residues += _left_behind(file, last)
        _check(file, entry, free_from, findings)
        free_from = entry.issued_to if entry.kind == cursor.RETURNED else entry.end
        last = entry
    if last is not None and _instance(last) not in alive:
        residues += _left_behind(file, last)
    return FileCursor(int(file.file), free_from, tuple(residues))


def _left_behind(file: MintedFile, last: CursorEntry) -> list[Residue]:
    """Return what an instance had and did not say to have issued, by its last entry."""
    if last.kind == cursor.RETURNED or last.issued_to >= last.end:
        return []
    where: dict[str, Any] = {"pod": last.pod, "pod_epoch": last.pod_epoch}
    return [Residue(int(file.file), int(file.slot), **where, start=last.issued_to, end=last.end)]


def _check(file: MintedFile, entry: CursorEntry, free_from: int, findings: Findings) -> None:
    """A range begins where the ones before it end, inside the file."""
    right = entry.end <= file.count and entry.issued_to <= entry.end
    if entry.kind == cursor.RESERVED:
        right &= entry.start == free_from
    else:
        right &= entry.end == free_from
    if not right:
        findings.add(
            "tickets_reserved_once", file=int(file.file), free_from=free_from, **entry._asdict()
        )


def _instance(entry: CursorEntry) -> Instance:
    return entry.pod, entry.pod_epoch
