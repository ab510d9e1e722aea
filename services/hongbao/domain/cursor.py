"""Owns the entries of a ticket file's cursor log; refuses to decide who serves a file.

Plane `tickets`, one log per ticket file: entry n lies under `cursor_key(file, n)` and is created
only if absent, so a range of records is reserved once, by one instance (pod and epoch), ever
(faults.md F1). An instance reserves ahead of use. What a dead instance had reserved and not said
to have issued is the residue.
"""

import struct
from typing import Final, NamedTuple

from hongbao.domain.errors import Corrupt

CURSOR_VERSION: Final = 1
RESERVED: Final = 1  # [start, end) belongs to this instance
RETURNED: Final = 2  # a clean end: [issued_to, end) was not issued and is free again
# version u8 | kind u8 | pod u16 | pod epoch u32 | start u64 | end u64 | issued to u64
CURSOR: Final = struct.Struct(">BBHIQQQ")


class CursorEntry(NamedTuple):
    """Is one entry of a ticket file's cursor log; records are counted from 0 in the file."""

    kind: int
    pod: int
    pod_epoch: int
    start: int  # RESERVED: first record of the range; RETURNED: equal to issued_to
    end: int  # first record behind the range; RETURNED: the end of all it had reserved
    issued_to: int  # the instance had issued every record before this one when it wrote the entry


def pack_cursor(entry: CursorEntry) -> bytes:
    """Encode an entry."""
    return CURSOR.pack(CURSOR_VERSION, *entry)


def parse_cursor(value: bytes) -> CursorEntry:
    """Decode an entry. Raises Corrupt when it is none."""
    if len(value) != CURSOR.size:
        raise Corrupt(f"cursor entry of {len(value)} bytes, want {CURSOR.size}")
    version, *fields = CURSOR.unpack(value)
    entry = CursorEntry(*fields)
    if version != CURSOR_VERSION or entry.kind not in (RESERVED, RETURNED):
        raise Corrupt(f"cursor entry of version {version}, kind {entry.kind}")
    if entry.start > entry.end:
        raise Corrupt(f"cursor entry of records {entry.start} to {entry.end}")
    return entry


def cursor_key(file: int, position: int) -> bytes:
    """Return the key of entry `position` (from 0) of a file's cursor log; keys sort by it."""
    return b"log/tickets/%08x/%016x" % (file, position)


def cursor_end(file: int) -> bytes:
    """Return the key behind every entry of a file's cursor log, for scans."""
    return b"log/tickets/%08x0" % file
