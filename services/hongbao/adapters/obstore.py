"""Owns the object store adapter: a folder here, S3 in a cluster, one client for both."""

import asyncio
import os
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore
from obstore.store import ObjectStore as Backend

from hongbao.domain.errors import NotFound, Rejected


class ObstoreObjects:
    """Keeps immutable objects through obstore; names are never overwritten."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises NotFound."""
        try:
            result = await obstore.get_async(self._backend, name)
            return bytes(await result.bytes_async())
        except FileNotFoundError as error:
            raise NotFound(f"object {name!r} does not exist", field="name") from error

    async def fetch(self, name: str, path: Path) -> None:
        """Stream the object into `path`, which appears whole or not at all."""
        try:
            result = await obstore.get_async(self._backend, name)
        except FileNotFoundError as error:
            raise NotFound(f"object {name!r} does not exist", field="name") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("wb") as file:
            async for chunk in result.stream(min_chunk_size=1 << 20):
                await asyncio.to_thread(file.write, chunk)
        partial.replace(path)

    async def put_new(self, name: str, data: bytes) -> None:
        """Create the object; the same bytes again are a no-op, others raise Rejected."""
        try:
            await obstore.put_async(self._backend, name, data, mode="create")
        except AlreadyExistsError as error:
            if await self.get(name) != data:
                raise Rejected(f"object {name!r} exists with other bytes", field="name") from error

    async def names(self, prefix: str) -> list[str]:
        """Return the names under a prefix, sorted."""
        stream = obstore.list(self._backend, prefix)
        return sorted([str(meta["path"]) async for batch in stream for meta in batch])


def folder_objects(folder: Path) -> ObstoreObjects:
    """Open a folder as an object store, creating it when it is not there."""
    return ObstoreObjects(LocalStore(prefix=str(folder.resolve()), mkdir=True))
