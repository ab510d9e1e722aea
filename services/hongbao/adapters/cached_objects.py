"""Owns what a process still knows of the object store while that is down: what it has read.

Objects never change, so a copy is as good as the store; only the list of names can be older. Every
copy carries its own hash: one that a power loss tore is fetched again.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Final

import structlog

from hongbao.adapters.folder_objects import FolderObjects
from hongbao.domain.errors import NotFound, Rejected, Transient
from hongbao.domain.objects import ObjectStore

HASH_BYTES: Final = 32

log = structlog.get_logger()


class CachedObjects:
    """Passes all calls on; answers `get` and `names` from a folder where it can or must."""

    def __init__(self, objects: ObjectStore, folder: Path) -> None:
        self._objects = objects
        self._kept = FolderObjects(folder)

    async def get(self, name: str) -> bytes:
        """Return the whole object, kept from the first time on."""
        try:
            copy = await self._kept.get(name)
            if hashlib.sha256(copy[HASH_BYTES:]).digest() == copy[:HASH_BYTES]:
                return copy[HASH_BYTES:]
            await asyncio.to_thread(self._kept.path(name).unlink, missing_ok=True)
        except NotFound:
            pass
        except (Transient, OSError) as error:  # a broken disk costs the copy, not the answer
            log.warning("copy_unreadable", name=name, reason=str(error))
        data = await self._objects.get(name)
        try:
            await self._kept.put_new(name, hashlib.sha256(data).digest() + data)
        except (Transient, Rejected) as error:  # a full one, too
            log.warning("object_not_kept", name=name, reason=str(error))
        return data

    async def fetch(self, name: str, path: Path) -> None:
        """Stream the object into a local file; callers keep large files themselves."""
        await self._objects.fetch(name, path)

    async def put_new(self, name: str, data: bytes) -> None:
        """Create the object; the same bytes again are a no-op, others raise Rejected."""
        await self._objects.put_new(name, data)

    async def put_file_new(self, name: str, path: Path) -> None:
        """Create the object from a file; else like `put_new`."""
        await self._objects.put_file_new(name, path)

    async def names(self, prefix: str) -> list[str]:
        """Return the names under a prefix; while the store is down, those of what is kept here."""
        try:
            return await self._objects.names(prefix)
        except Transient as error:
            kept = await self._kept.names(prefix)
            if not kept:
                raise
            log.warning("objects_unreachable", prefix=prefix, kept=len(kept), reason=str(error))
            return kept
