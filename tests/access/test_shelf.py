"""The files on a pod: a broken cursor log stops one file, and what nobody wants is unmapped."""

import mmap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hongbao.access.shelf import FileShelf, Instance
from hongbao.adapters.memory import MemoryStore
from hongbao.domain import cursor as entries
from structlog.testing import capture_logs

from tests.access.rain import SMALL, VERIFY_KEY, MemoryObjects, bare_file


@pytest.fixture
def log() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def shelf(log: MemoryStore, tmp_path: Path) -> FileShelf:
    return FileShelf(
        Instance(1, 1), MemoryObjects(), log, VERIFY_KEY, tmp_path, SMALL, lambda: 0.0, lambda: None
    )


async def serve(shelf: FileShelf, files: Iterable[int]) -> None:
    """Take over files that are here."""
    for file in files:
        bare = bare_file(file)
        data = mmap.mmap(-1, len(bare.data))
        data.write(bare.data)
        shelf.files[file] = replace(bare, data=data)
    await shelf.take_over(files)
    assert await shelf.top_up(files)


async def test_a_broken_cursor_log_keeps_no_other_file_from_moving(
    shelf: FileShelf, log: MemoryStore
) -> None:
    await serve(shelf, (1, 2))
    await log.create(entries.cursor_key(1, 1), b"rotten")
    shelf.keep_serving(())
    with capture_logs() as told:
        assert await shelf.give_back()
    assert [each["file"] for each in told if each["event"] == "cursor_log_broken"] == [1]
    assert list(shelf.refused) == [1]
    last = await log.get(entries.cursor_key(2, 1))
    assert last is not None
    assert entries.parse_cursor(last).kind == entries.RETURNED


async def test_a_file_that_was_served_is_unmapped_when_it_is_gone(shelf: FileShelf) -> None:
    await serve(shelf, (1,))
    data = shelf.files[1].data
    shelf.keep_serving(())
    assert await shelf.give_back()
    shelf.close()
    assert isinstance(data, mmap.mmap)
    assert data.closed
    assert shelf.files == {}
