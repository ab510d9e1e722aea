"""Owns the book that settlement checks against, as coordination documents change it.

The documents are read after the blocks that they are applied to: a scheme is activated and its
slot opens before its first claim can be in a log, so a claim is never judged by rules that are
older than itself. Refuses to cache across rounds.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hongbao.domain.errors import Corrupt, Transient
from hongbao.domain.manifest import Manifest
from hongbao.settle.book import Book, KeyRules
from hongbao.shards.ports import Coordination, Versioned

LoadSchemes = Callable[[], Awaitable[Sequence[tuple[Manifest, Path]]]]
"""Return every minted scheme of the campaign with the local path of its amount table."""


class Rules:
    """Gives the book that holds now."""

    def __init__(
        self,
        coordination: Coordination,
        campaign: str,
        load: LoadSchemes,
        *,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        self._coordination = coordination
        self._active_key = f"campaigns/{campaign}/active"
        self._keys_key = f"campaigns/{campaign}/keys"
        self._load = load
        self._offload = offload
        self._lock = asyncio.Lock()  # shards of one process share the book
        self._book: Book | None = None
        self._revisions = (-1, -1)

    async def book(self) -> Book:
        """Return the current book. Raises Transient while no scheme is active."""
        async with self._lock:
            active = await self._coordination.read(self._active_key)
            keys = await self._coordination.read(self._keys_key)
            revisions = (active.revision, keys.revision)
            if self._book is None or revisions != self._revisions:
                self._book = await self._make(parse_active(active), parse_keys(keys))
                self._revisions = revisions
            return self._book

    async def _make(self, active: dict[int, int], keys: KeyRules) -> Book:
        known = {one.scheme_number for one in self._book.manifests} if self._book else set()
        if self._book is not None and known.issuperset(active.values()):
            return self._book.with_rules(active, keys)
        schemes = await self._load()
        book: Book = await self._offload(partial(Book, schemes, active=active, keys=keys))
        missing = set(active.values()) - {one.scheme_number for one in book.manifests}
        if missing:
            raise Transient(f"schemes {sorted(missing)} are active, but not in the object store")
        return book


def parse_active(document: Versioned) -> dict[int, int]:
    """Read `campaigns/<c>/active`: slot → scheme number."""
    if not document.value:
        raise Transient(f"{document.key}: no scheme is active yet")
    try:
        return {int(slot): int(number) for slot, number in json.loads(document.value).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Corrupt(f"{document.key}, revision {document.revision}: {error}") from error


def parse_keys(document: Versioned) -> KeyRules:
    """Read `campaigns/<c>/keys`; absent: every key is allowed."""
    if not document.value:
        return KeyRules()
    try:
        shape = json.loads(document.value)
        allow = shape.get("allow")
        return KeyRules(
            frozenset(map(int, shape.get("deny") or ())),
            None if allow is None else frozenset(map(int, allow)),
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise Corrupt(f"{document.key}, revision {document.revision}: {error}") from error
