"""Owns which records of one ticket file this instance may issue, and takes them one by one.

A window of records is reserved ahead in the file's cursor log (domain/cursor.py) by creating
the log's next entry: one instance, pod and epoch, reserves a record once, ever (F1). Taking a
record touches memory only. Refuses to decide whether this pod should serve the file.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from hongbao.access.deploy import TicketFile
from hongbao.access.limits import AccessLimits
from hongbao.domain import cursor, ticket
from hongbao.domain.cursor import CursorEntry
from hongbao.domain.errors import Ambiguous, Corrupt, Fenced, Transient
from hongbao.shards.ports import LogStore

_START: Final = ticket.FILE_RECORDS_AT
_RECORD_BYTES: Final = ticket.RECORD_BYTES
_NEVER: Final = 1 << 62


class FileCursor:
    """Is this instance's place in one ticket file.

    `resume` first, then `top_up` whenever `wake` was called; `take` never waits. All calls come
    from one event loop.
    """

    __slots__ = (
        "_at",
        "_busy",
        "_data",
        "_end",
        "_epoch",
        "_limits",
        "_log",
        "_mark",
        "_pod",
        "_position",
        "_told_to",
        "_unknown",
        "_wake",
        "file",
        "issued_from",
        "reserved_to",
        "residue",
        "resumed",
        "stopped",
    )

    def __init__(
        self,
        file: TicketFile,
        log: LogStore,
        pod: int,
        epoch: int,
        limits: AccessLimits,
        wake: Callable[[], None],
    ) -> None:
        self.file: Final = file
        self._data: Final = file.data
        self._log: Final = log
        self._pod: Final = pod
        self._epoch: Final = epoch
        self._limits: Final = limits
        self._wake: Final = wake
        self._busy: Final = asyncio.Lock()
        self._at = _START  # byte offset of the next record to issue
        self._end = 0  # byte offset behind the reserved window; 0: issue nothing
        self._mark = _NEVER  # passing this byte offset asks for more
        self._position = 0  # of the next entry in the log
        self._unknown = False  # whether an entry of ours may lie there already
        self._told_to = 0  # every record before this one was issued, by the last entry
        self.reserved_to = 0  # first record behind everything reserved
        self.issued_from = 0
        self.residue = 0  # what the instance before had reserved and not said to have issued
        self.resumed = False
        self.stopped = False

    def take(self) -> bytes | None:
        """Return the next record, or None while nothing is reserved."""
        at = self._at
        if at >= self._end:
            return None
        self._at = behind = at + _RECORD_BYTES
        if behind >= self._mark:
            self._mark = _NEVER
            self._wake()
        return self._data[at:behind]

    @property
    def at(self) -> int:
        """Return the index of the next record."""
        return (self._at - _START) // _RECORD_BYTES

    @property
    def remaining(self) -> int:
        """Return how many records this instance can still issue, reserved or not."""
        return self.file.count - self.at if self.resumed and not self.stopped else 0

    @property
    def issued(self) -> int:
        """Return how many records this instance issued."""
        return self.at - self.issued_from

    @property
    def wants_more(self) -> bool:
        """Say whether the window should be topped up."""
        few = self.reserved_to - self.at <= self._limits.reserve_records // 2
        return few and self.reserved_to < self.file.count and self.resumed and not self.stopped

    def stop(self) -> None:
        """Issue nothing more, from this moment; `give_back` may still follow."""
        self.stopped = True
        self._end = 0
        self._mark = _NEVER

    async def resume(self) -> None:
        """Take the file over behind everything that was ever reserved; reserves nothing yet.

        Raises Fenced when a later instance of this pod was here, Corrupt for a broken log.
        """
        last = await self._read_log()
        start = 0
        if last is not None:
            if last.pod == self._pod and last.pod_epoch > self._epoch:
                raise Fenced(f"file {self.file.file}: epoch {last.pod_epoch} of this pod took over")
            returned = last.kind == cursor.RETURNED
            start = last.issued_to if returned else last.end
            self.residue = 0 if returned else last.end - last.issued_to
        if start > self.file.count:
            raise Corrupt(f"file {self.file.file}: {start} records reserved of {self.file.count}")
        self._at = _START + start * _RECORD_BYTES
        self.issued_from = self.reserved_to = self._told_to = start
        self.resumed = True

    async def top_up(self) -> None:
        """Reserve the next records, so that at most `reserve_records` are outstanding.

        Safe to repeat after Transient. Raises Fenced, and stops, when another instance wrote.
        """
        async with self._busy:
            if not self.wants_more:
                return
            issued_to, start = self.at, self.reserved_to
            end = min(self.file.count, issued_to + self._limits.reserve_records)
            await self._append(cursor.RESERVED, start, end, issued_to)
            if not self.stopped:
                self._open_window()

    async def give_back(self) -> None:
        """Stop, and free what was reserved and not issued: a clean end leaves no residue.

        A reservation that was cut off may still arrive: the entry of the end takes its place.
        """
        self.stop()
        async with self._busy:
            kind = cursor.RESERVED
            while kind != cursor.RETURNED and (self._unknown or self._told_to < self.reserved_to):
                kind = await self._append(cursor.RETURNED, self.at, self.reserved_to, self.at)

    def _open_window(self) -> None:
        self._end = _START + self.reserved_to * _RECORD_BYTES
        if self.reserved_to < self.file.count:
            self._mark = self._end - self._limits.reserve_records // 2 * _RECORD_BYTES
            if self._at >= self._mark:
                self._mark = _NEVER
                self._wake()

    async def _append(self, kind: int, start: int, end: int, issued_to: int) -> int:
        """Create the next entry; return the kind of the entry that is there then.

        After an unknown outcome the place may hold what this instance wrote before: that one
        counts. Anybody else's means that the file was taken over.
        """
        entry = CursorEntry(kind, self._pod, self._epoch, start, end, issued_to)
        key = cursor.cursor_key(self.file.file, self._position)
        self._unknown = True
        try:
            async with asyncio.timeout(self._limits.store_timeout_s):
                if not await self._log.create(key, cursor.pack_cursor(entry)):
                    entry = await self._read_own(key)
        except TimeoutError as error:
            raise Ambiguous(f"file {self.file.file}: the log did not answer") from error
        self._unknown = False
        self._position += 1
        self._told_to = entry.issued_to
        self.reserved_to = entry.end if entry.kind == cursor.RESERVED else entry.issued_to
        return entry.kind

    async def _read_own(self, key: bytes) -> CursorEntry:
        value = await self._log.get(key)
        if value is None:
            raise Transient(f"file {self.file.file}: cursor entry {self._position} is not readable")
        entry = cursor.parse_cursor(value)
        mine = entry.pod == self._pod and entry.pod_epoch == self._epoch
        if not mine or (entry.kind == cursor.RESERVED and entry.start != self.reserved_to):
            self.stop()
            self._unknown = False
            raise Fenced(
                f"file {self.file.file}: cursor entry {self._position} is of pod {entry.pod}, "
                f"epoch {entry.pod_epoch}"
            )
        return entry

    async def _read_log(self) -> CursorEntry | None:
        """Return the last entry and set the position behind it."""
        file, page = self.file.file, self._limits.cursor_page
        last: CursorEntry | None = None
        for position in range(0, self._limits.cursor_entries_max, page):
            entries = await self._log.scan(
                cursor.cursor_key(file, position), cursor.cursor_end(file), page
            )
            for key, value in entries:
                if key != cursor.cursor_key(file, self._position):
                    raise Corrupt(f"file {file}: cursor entry {self._position} is missing")
                last = cursor.parse_cursor(value)
                self._position += 1
            if len(entries) < page:
                return last
        raise Corrupt(f"file {file}: more than {self._limits.cursor_entries_max} cursor entries")
