"""Owns the one thread that writes an LMDB environment; refuses to know what is written.

Whatever waits is written in one transaction with one fsync: group commit over all callers. The
map grows while readers read. An error before the commit surely wrote nothing (Transient); an
error of the commit itself leaves the outcome open (Ambiguous): nothing unsynced is acknowledged
(F18). After an error that the environment does not survive the process ends: whoever supervises it
starts it anew, while a store that only refuses for ever would go on holding its leases.
"""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import lmdb
import structlog

from hongbao.adapters.lmdb_tables import Txn
from hongbao.domain.errors import Ambiguous, HongbaoError, Overloaded, Transient

log = structlog.get_logger()

Work = Callable[[Txn], Any]
Settle = Callable[[Any], None]
_Write = tuple[Work, asyncio.Future[Any], Settle | None]

EXIT_BROKEN: Final = 70
"""The exit status of a process whose environment is broken (sysexits.h: EX_SOFTWARE)."""
ANSWER_S: Final = 0.1
"""Time for the last answers to leave before the process ends."""


def end_process() -> None:
    """End this process from the writer's thread; what was acknowledged is on disk."""
    time.sleep(ANSWER_S)
    os._exit(EXIT_BROKEN)


@dataclass(frozen=True)
class LmdbLimits:
    """Bounds the environment and its writer."""

    map_bytes: int = 64 << 20
    """First size of the map; it doubles online when `grow_at` of it is used."""
    map_bytes_max: int = 64 << 30
    """The map never grows past this."""
    grow_at: float = 0.8
    """Share of the map in use at which it grows, and of the largest map at which we warn."""
    waiting_max: int = 4096
    """Writes that wait for the thread; one more is refused as Overloaded."""
    batch_max: int = 1024
    """Writes in one transaction."""
    events_max: int = 65_536
    """Changes of facts that are kept in full; of older ones the last of each key stays."""


class LmdbWriter:
    """Runs writes on its own thread and reports them to the event loop that asked."""

    def __init__(
        self,
        environment: lmdb.Environment,
        resizing: threading.Lock,
        limits: LmdbLimits,
        on_broken: Callable[[], None] = end_process,
    ) -> None:
        """Write to `environment`; `on_broken` is called on the thread when that can be no more."""
        self._environment = environment
        self._resizing = resizing
        self._limits = limits
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._waiting_count = 0
        self._warned = False
        self._broken = False
        self._closing = False
        self._on_broken = on_broken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._write_forever, name="lmdb", daemon=True)
        self.batches = 0
        """Transactions committed so far."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Write what waits, then end the thread."""
        self._closing = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    async def write(self, work: Work, settle: Settle | None = None) -> Any:
        """Run `work` in a transaction; durable on return. It may run again after a growth.

        `settle` gets the outcome (a result or a HongbaoError) before the caller does, and also
        when the caller has gone: what was handed over is written whatever becomes of him.
        """
        return await self.enqueue(work, settle)

    def enqueue(self, work: Work, settle: Settle | None = None) -> asyncio.Future[Any]:
        """Hand a write over; the future ends as `write` does. What it raises was not taken."""
        if self._broken or self._closing:
            raise Transient("store: nothing is written any more")
        if self._waiting_count >= self._limits.waiting_max:
            raise Overloaded(f"store: {self._waiting_count} writes wait")
        done = asyncio.get_running_loop().create_future()
        self._waiting_count += 1
        self._waiting.put((work, done, settle))
        return done

    @property
    def used_bytes(self) -> int:
        """Return how much of the map is in use."""
        page_bytes: int = self._environment.stat()["psize"]
        last_page: int = self._environment.info()["last_pgno"]
        return (last_page + 1) * page_bytes

    @property
    def map_bytes(self) -> int:
        size: int = self._environment.info()["map_size"]
        return size

    def _write_forever(self) -> None:
        assert self._loop is not None
        closing = False
        while not closing:
            batch = [self._waiting.get()]
            while len(batch) < self._limits.batch_max and not self._waiting.empty():
                batch.append(self._waiting.get())
            closing = None in batch
            wanted = [item for item in batch if item is not None]
            outcomes = self._write_or_break([work for work, _, _ in wanted])
            self._loop.call_soon_threadsafe(self._deliver, wanted, outcomes)
            if self._broken:
                self._loop.call_soon_threadsafe(self._refuse_waiting)
                self._on_broken()
                return

    def _refuse_waiting(self) -> None:
        """Answer what nobody will write any more."""
        while not self._waiting.empty():
            if (item := self._waiting.get()) is not None:
                self._deliver([item], Transient("store: nothing is written any more"))

    def _write_or_break(self, works: list[Work]) -> list[Any] | HongbaoError:
        try:
            return self._write_batch(works)
        except Exception as error:  # outermost level of the thread
            log.exception("store_broken")
            self._broken = True
            return Ambiguous(f"store: {error}")

    def _deliver(self, writes: list[_Write], outcomes: Any) -> None:
        self._waiting_count -= len(writes)
        for index, (_, done, settle) in enumerate(writes):
            failed = isinstance(outcomes, HongbaoError)
            outcome = copy(outcomes) if failed else outcomes[index]
            if settle is not None and not self._broken:  # broken: not even a read may return
                settle(outcome)
            if done.done():
                continue
            if failed:
                done.set_exception(outcome)
            else:
                done.set_result(outcome)

    def _write_batch(self, works: list[Work]) -> list[Any] | HongbaoError:
        while True:
            try:
                outcomes = self._run(works)
            except lmdb.MapFullError:
                if not self._grow():
                    return Transient(f"store: full at {self.map_bytes} bytes")
                continue
            except lmdb.PanicError:
                raise
            except lmdb.Error as error:
                log.error("store_write_failed", error=str(error))
                return Transient(f"store: {error}")
            if not isinstance(outcomes, HongbaoError):
                self.batches += 1
                self._watch_size()
            return outcomes

    def _run(self, works: list[Work]) -> list[Any] | HongbaoError:
        txn = self._environment.begin(write=True)
        try:
            outcomes = [work(txn) for work in works]
        except BaseException:
            txn.abort()
            raise
        try:
            self._commit(txn)
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            log.error("store_commit_failed", error=str(error))
            self._environment.begin(write=True).abort()  # raises if LMDB has given up (MDB_PANIC)
            return Ambiguous(f"store: {error}")
        return outcomes

    def _commit(self, txn: Txn) -> None:
        txn.commit()

    def _watch_size(self) -> None:
        used = self.used_bytes
        if used >= self._limits.grow_at * self.map_bytes:
            self._grow()
        if used >= self._limits.grow_at * self._limits.map_bytes_max and not self._warned:
            self._warned = True
            limit = self._limits.map_bytes_max
            log.error("store_nearly_full", used_bytes=used, map_bytes_max=limit)

    def _grow(self) -> bool:
        """Double the map; False when it has its largest size already."""
        size = min(self.map_bytes * 2, self._limits.map_bytes_max)
        if size <= self.map_bytes:
            return False
        self._resizing.acquire()
        self._environment.set_mapsize(size)  # if it fails there is no map: no reader may go on
        self._resizing.release()
        log.info("store_map_grown", map_bytes=size)
        return True
