"""Owns the book that settlement checks against, as coordination documents change it.

The documents are read after the blocks that they are applied to: a scheme is activated and its
slot opens before its first claim can be in a log, so a claim is never judged by rules that are
older than itself. Refuses to cache across rounds.

A slot may play a scheme that is not in the object store yet, or is broken there: claims of that
slot wait, all others are settled.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from hongbao.domain.claim import claims_array, logged_claims
from hongbao.domain.errors import Corrupt, HongbaoError, Transient
from hongbao.domain.manifest import Manifest
from hongbao.settle.book import Book, KeyRules
from hongbao.shards.block import Block
from hongbao.shards.ports import Coordination, Versioned

log = structlog.get_logger()

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
                self._revisions = (-1, -1) if waiting_slots(self._book) else revisions
            return self._book

    async def _make(self, active: dict[int, int], keys: KeyRules) -> Book:
        known = None if self._book is None else self._book.with_rules(active, keys)
        if known is not None and not waiting_slots(known):
            return known
        try:
            schemes = await self._load()
            numbers = {manifest.scheme_number for manifest, _ in schemes}
            if known is not None and numbers == _numbers(known):
                return known
            book: Book = await self._offload(partial(Book, schemes, active=active, keys=keys))
        except (HongbaoError, OSError) as error:
            if known is None:
                raise
            log.error("schemes_not_loaded", slots=sorted(waiting_slots(known)), reason=str(error))
            return known
        return book


def waiting_slots(book: Book) -> set[int]:
    """Return the slots whose active scheme is not in the book."""
    known = _numbers(book)
    return {slot for slot, number in book.active.items() if number not in known}


def judgeable(blocks: Sequence[Block], book: Book) -> Sequence[Block]:
    """Return the blocks before the first with a claim that must wait for its scheme.

    Raises Transient when that is the very first.
    """
    waiting = sorted(waiting_slots(book))
    if not waiting:
        return blocks
    for count, block in enumerate(blocks):
        if np.isin(claims_array(b"".join(logged_claims(block.entries)))["slot"], waiting).any():
            if not count:
                raise Transient(f"slots {waiting} play schemes that are not in the object store")
            return blocks[:count]
    return blocks


def _numbers(book: Book) -> set[int]:
    return {manifest.scheme_number for manifest in book.manifests}


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
