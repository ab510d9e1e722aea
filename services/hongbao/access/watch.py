"""Owns following the coordination documents, with the last known good when nobody answers.

Refuses to understand a document: it delivers each change once, in order, and remembers what was
delivered in a file, so that a pod that starts while coordination is away knows its orders.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from hongbao.access.limits import AccessLimits
from hongbao.domain.errors import HongbaoError
from hongbao.shards.ports import Coordination, Versioned

DOCUMENTS_MAX: Final = 10_000

_log = structlog.get_logger()


class DocumentWatch:
    """Keeps the documents under some prefixes and tells every change.

    `on_change` is called from the event loop, with an empty value for a deletion.
    """

    def __init__(
        self,
        coordination: Coordination,
        prefixes: Sequence[str],
        on_change: Callable[[Versioned], None],
        memory: Path,
        limits: AccessLimits,
    ) -> None:
        self._coordination: Final = coordination
        self._prefixes: Final = tuple(prefixes)
        self._on_change: Final = on_change
        self._memory: Final = memory
        self._limits: Final = limits
        self._known: Final[dict[str, Versioned]] = {}
        self._unsaved = asyncio.Event()
        self._read: Final[set[str]] = set()

    @property
    def complete(self) -> bool:
        """Say whether every prefix was read at least once."""
        return len(self._read) == len(self._prefixes)

    async def recall(self) -> None:
        """Deliver what was known before the restart; the first read replaces it."""
        for fact in await asyncio.to_thread(_load, self._memory):
            if fact.key.startswith(self._prefixes):
                self._deliver(fact)

    async def run(self) -> None:
        """Follow all prefixes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for prefix in self._prefixes:
                tasks.create_task(self._follow(prefix))
            tasks.create_task(self._remember())

    async def _follow(self, prefix: str) -> None:
        """Read all, then watch; on any failure begin again, with what is known kept."""
        while True:
            try:
                revision = await self._read_all(prefix)
                self._read.add(prefix)
                async for fact in self._coordination.watch(prefix, after_revision=revision):
                    self._deliver(fact)
            except (HongbaoError, OSError, TimeoutError) as error:
                _log.warning("watch_interrupted", prefix=prefix, error=str(error))
            await asyncio.sleep(self._limits.retry_s)

    async def _read_all(self, prefix: str) -> int:
        async with asyncio.timeout(self._limits.store_timeout_s):
            facts = await self._coordination.read_prefix(prefix)
        if len(facts) > DOCUMENTS_MAX:
            _log.error("too_many_documents", prefix=prefix, count=len(facts), limit=DOCUMENTS_MAX)
            facts = facts[:DOCUMENTS_MAX]
        there = {fact.key for fact in facts}
        gone = [key for key in self._known if key.startswith(prefix) and key not in there]
        for key in gone:
            self._deliver(Versioned(key, b"", self._known[key].revision))
        for fact in facts:
            if self._known.get(fact.key) != fact:
                self._deliver(fact)
        return max((fact.revision for fact in facts), default=0)

    def _deliver(self, fact: Versioned) -> None:
        if fact.value:
            self._known[fact.key] = fact
        else:
            self._known.pop(fact.key, None)
        self._unsaved.set()
        self._on_change(fact)

    async def _remember(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            try:
                await asyncio.to_thread(_save, self._memory, tuple(self._known.values()))
            except OSError as error:
                _log.warning("orders_not_remembered", path=str(self._memory), error=str(error))
            await asyncio.sleep(self._limits.retry_s)


def _save(path: Path, facts: Sequence[Versioned]) -> None:
    rows = [[fact.key, base64.b64encode(fact.value).decode(), fact.revision] for fact in facts]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(rows), "utf-8")
    fresh.replace(path)


def _load(path: Path) -> list[Versioned]:
    """Return what was saved; nothing when there is no file or it is broken."""
    try:
        rows = json.loads(path.read_text("utf-8"))
        return [Versioned(str(key), base64.b64decode(value), int(rev)) for key, value, rev in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        _log.warning("remembered_orders_broken", path=str(path), error=str(error))
        return []
