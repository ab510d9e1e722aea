"""Owns a folder as an object store: durable, create-only by hard link.

Keeps no hashes: a spoilt file is found by whoever checks it against the signed manifest. Names that
begin with a dot belong to whoever works in the folder (the mint does) and are no objects.
"""

import asyncio
import contextlib
import filecmp
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hongbao.adapters.partial_file import partial_file
from hongbao.domain.errors import NotFound, Rejected, Transient


class FolderObjects:
    """Keeps immutable objects as files; names are never overwritten."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return where an object lies, or would. Raises Rejected for what is no name."""
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise Rejected(f"{name!r} is no object name", field="name")
        return self._folder / name

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises NotFound."""
        with _translated(name):
            return await asyncio.to_thread(self.path(name).read_bytes)

    async def fetch(self, name: str, path: Path) -> None:
        """Copy the object to `path`, which appears whole or not at all."""
        with _translated(name):
            await asyncio.to_thread(_copy_whole, self.path(name), path)

    async def put_new(self, name: str, data: bytes) -> None:
        """Create the object; the same bytes again are a no-op, others raise Rejected."""
        await self._create(name, io.BytesIO(data))

    async def put_file_new(self, name: str, path: Path) -> None:
        """Create the object from a file; else like `put_new`."""
        with path.open("rb") as source:
            await self._create(name, source)

    async def names(self, prefix: str) -> list[str]:
        """Return the names below a prefix of whole segments, sorted."""
        return await asyncio.to_thread(lambda: sorted(self._names(prefix)))

    def _names(self, prefix: str) -> Iterator[str]:
        start = self.path(prefix.strip("/")) if prefix.strip("/") else self._folder
        for folder, folders, files in os.walk(start):
            folders[:] = [one for one in folders if not one.startswith(".")]
            for file in files:
                if not file.startswith("."):
                    yield (Path(folder) / file).relative_to(self._folder).as_posix()

    async def _create(self, name: str, source: BinaryIO) -> None:
        with _translated(name):
            same = await asyncio.to_thread(_create_durably, self.path(name), source)
            await asyncio.to_thread(_sync_folders, self.path(name).parent, self._folder)
        if not same:
            raise Rejected(f"object {name!r} exists with other bytes", field="name")


def _create_durably(final: Path, source: BinaryIO) -> bool:
    """Give the bytes their name, whole; return whether the name holds just these bytes."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(final) as partial:
        with partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, final)
        except FileExistsError:
            return filecmp.cmp(partial, final, shallow=False)
    return True


def _copy_whole(source: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(final) as partial:
        shutil.copyfile(source, partial)
        os.replace(partial, final)


def _sync_folders(folder: Path, root: Path) -> None:
    """Make new names durable, those of folders on the way too."""
    while True:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if folder == root:
            return
        folder = folder.parent


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(f"object {name!r} does not exist", field="name") from error
    except OSError as error:
        raise Transient(f"object {name!r}: {error}") from error
