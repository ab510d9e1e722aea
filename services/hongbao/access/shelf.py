"""Owns the ticket files on this pod and their cursors: fetch, hold, take over, give back.

Refuses to decide: which files to have and to serve is handed in (access/orders.py). One file
has one cursor at a time; a file that moves away is given back before it can be taken again.
"""

import asyncio
import mmap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hongbao.access.cursor import FileCursor
from hongbao.access.deploy import TicketFile, deploy_file
from hongbao.access.limits import AccessLimits
from hongbao.access.orders import Wanted
from hongbao.domain.errors import Corrupt, Fenced, HongbaoError, Transient
from hongbao.domain.objects import ObjectStore
from hongbao.shards.ports import LogStore

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Instance:
    """Is who reserves records: one start of one pod."""

    pod: int
    epoch: int


class FileShelf:
    """Holds checked files and their cursors. One event loop.

    `fetch_next` may run beside `give_back` and `take_over`, none beside itself.
    """

    def __init__(
        self,
        instance: Instance,
        objects: ObjectStore,
        log: LogStore,
        verify_key: bytes,
        cache: Path,
        limits: AccessLimits,
        monotonic_s: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._instance: Final = instance
        self._objects: Final = objects
        self._log: Final = log
        self._verify_key: Final = verify_key
        self._cache: Final = cache
        self._limits: Final = limits
        self._monotonic_s: Final = monotonic_s
        self._wake: Final = wake
        self._opening: Final[set[int]] = set()
        self._leaving: Final[dict[int, FileCursor]] = {}
        self._not_before_s: Final[dict[int, float]] = {}
        self.files: Final[dict[int, TicketFile]] = {}
        self.cursors: Final[dict[int, FileCursor]] = {}
        self.refused: Final[dict[int, str]] = {}
        """Why a file is not here, by file."""
        self.residue = 0
        """Records that earlier instances of all files taken over here may have lost."""

    def keep_serving(self, served: Collection[int]) -> None:
        """Stop every other cursor, from this moment."""
        for file in [file for file in self.cursors if file not in served]:
            cursor = self.cursors.pop(file)
            cursor.stop()
            self._leaving[file] = cursor

    async def give_back(self) -> bool:
        """Free what stopped cursors had reserved; False when it must be tried again."""
        for file, cursor in list(self._leaving.items()):
            try:
                await cursor.give_back()
            except Transient as error:
                _log.warning("cursor_not_given_back", file=file, error=str(error))
                continue
            except Fenced as error:
                _log.info("cursor_taken_over", file=file, error=str(error))
            except Corrupt as error:
                self._drop(cursor, error)
            del self._leaving[file]
        return not self._leaving

    async def fetch_next(self, wanted: Sequence[Wanted]) -> bool:
        """Fetch and check the first missing file; False when nothing can be fetched now."""
        self._forget({each.minted.file for each in wanted})
        for each in wanted[: self._limits.files_max]:
            file = each.minted.file
            if file not in self.files and self._due(file):
                await self._fetch(each)
                return True
        return False

    async def take_over(self, files: Collection[int]) -> None:
        """Open a cursor for each of these files that is here and has none."""
        for file in files:
            missing = file not in self.cursors and file not in self._leaving
            if missing and file in self.files and self._due(file):
                await self._take_over(self.files[file])

    async def top_up(self, files: Collection[int]) -> bool:
        """Reserve ahead for these files; False when it must be tried again soon."""
        done = True
        for file in files:
            cursor = self.cursors.get(file)
            if cursor is None:
                continue
            try:
                await cursor.top_up()
            except Transient as error:
                _log.warning("reserve_failed", file=file, error=str(error))
                done = False
            except (Fenced, Corrupt) as error:
                self._drop(cursor, error)
        return done

    def close(self) -> None:
        """Unmap all files."""
        self._forget(())

    def _due(self, file: int) -> bool:
        return self._monotonic_s() >= self._not_before_s.get(file, 0)

    def _later(self, file: int, pause_s: float) -> None:
        self._not_before_s[file] = self._monotonic_s() + pause_s

    async def _fetch(self, each: Wanted) -> None:
        file = each.minted.file
        try:
            async with asyncio.timeout(self._limits.fetch_timeout_s):
                self.files[file] = await deploy_file(
                    self._objects, each.manifest, each.minted, self._verify_key, self._cache
                )
        except (HongbaoError, OSError) as error:  # a time-out is an OSError
            self._later(file, self._limits.refetch_s)
            reason = str(error) or f"{each.minted.name}: did not arrive in time"
            if self.refused.get(file) != reason:
                _log.error("ticket_file_refused", file=file, reason=reason)
            self.refused[file] = reason
        else:
            self.refused.pop(file, None)

    async def _take_over(self, file: TicketFile) -> None:
        instance = self._instance
        cursor = FileCursor(file, self._log, instance.pod, instance.epoch, self._limits, self._wake)
        self._opening.add(file.file)
        try:
            async with asyncio.timeout(self._limits.take_over_timeout_s):
                await cursor.resume()
        except (Transient, TimeoutError) as error:
            self._later(file.file, self._limits.retry_s)
            _log.warning("take_over_failed", file=file.file, error=str(error))
        except (Fenced, Corrupt) as error:
            self._drop(cursor, error)
        else:
            self.residue += cursor.residue
            self.cursors[file.file] = cursor
            _log.info("file_taken_over", file=file.file, record=cursor.at, residue=cursor.residue)
        finally:
            self._opening.discard(file.file)

    def _drop(self, cursor: FileCursor, error: HongbaoError) -> None:
        """Give a file up for a while: another instance has it, or its log is broken."""
        cursor.stop()
        file = cursor.file.file
        if self.cursors.get(file) is cursor:
            del self.cursors[file]
        self._later(file, self._limits.refetch_s)
        if isinstance(error, Corrupt):
            self.refused[file] = str(error)
            _log.error("cursor_log_broken", file=file, reason=str(error))
        else:
            _log.warning("cursor_fenced", file=file, reason=str(error))

    def _forget(self, kept: Collection[int]) -> None:
        """Unmap files that nobody wants any more; their cursors must have gone."""
        for file in [file for file in self.files if file not in kept]:
            if file in self.cursors or file in self._leaving or file in self._opening:
                continue
            data = self.files.pop(file).data
            if isinstance(data, mmap.mmap):
                data.close()
        for file in [file for file in self.refused if file not in kept]:
            del self.refused[file]
