"""The LMDB writer whose environment fails for good: it answers, and ends its process (F18)."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hongbao.adapters.lmdb_writer import EXIT_BROKEN, LmdbLimits, LmdbWriter
from hongbao.domain.errors import Ambiguous, Transient

from tests.waiting import LIMIT_S

MAP_BYTES = 1 << 20


class Failing:
    """Is an environment or transaction in which the named methods raise, from the nth call on."""

    def __init__(self, real: Any, errors: dict[str, tuple[int, Exception]]) -> None:
        self.real = real
        self.errors = errors

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if name in self.errors:
                left, error = self.errors[name]
                if left <= 0:
                    if name == "commit":
                        self.real.abort()  # as LMDB does
                    raise error
                self.errors[name] = (left - 1, error)
            result = getattr(self.real, name)(*args, **options)
            return Failing(result, self.errors) if name == "begin" else result

        return call


@pytest.fixture
def real(tmp_path: Path) -> Iterator[lmdb.Environment]:
    environment = lmdb.open(str(tmp_path), map_size=MAP_BYTES)
    yield environment
    environment.close()


def writer_over(real: lmdb.Environment, **errors: tuple[int, Exception]) -> tuple[Any, Any]:
    broken = threading.Event()
    writer = LmdbWriter(
        Failing(real, errors),  # type: ignore[arg-type]
        threading.Lock(),
        LmdbLimits(map_bytes=MAP_BYTES, map_bytes_max=64 * MAP_BYTES),
        broken.set,
    )
    writer.start()
    return writer, broken


def put(key: bytes, size: int = 1) -> Any:
    return lambda txn: txn.put(key, bytes(size))


async def ended(writer: LmdbWriter, broken: threading.Event) -> None:
    """Check that the process would end now, and that nobody waits for ever until it does."""
    assert await asyncio.to_thread(broken.wait, LIMIT_S)
    with pytest.raises(Transient):
        await asyncio.wait_for(writer.write(put(b"later")), LIMIT_S)
    await asyncio.wait_for(writer.close(), LIMIT_S)


async def test_a_map_that_cannot_grow_any_more_ends_the_process(real: lmdb.Environment) -> None:
    """No memory for a larger map: LMDB has let go of the old one by then."""
    writer, broken = writer_over(real, set_mapsize=(0, lmdb.MemoryError("no memory")))
    with pytest.raises(Ambiguous):
        await asyncio.wait_for(writer.write(put(b"key", 900_000)), LIMIT_S)
    await ended(writer, broken)


async def test_a_failed_commit_after_which_lmdb_gives_up_ends_the_process(
    real: lmdb.Environment,
) -> None:
    """A meta page that was not written: LMDB refuses every further transaction (MDB_PANIC)."""
    writer, broken = writer_over(
        real, commit=(0, lmdb.DiskError("EIO")), begin=(1, lmdb.PanicError("MDB_PANIC"))
    )
    with pytest.raises(Ambiguous):
        await asyncio.wait_for(writer.write(put(b"key")), LIMIT_S)
    await ended(writer, broken)


async def test_a_failed_commit_that_lmdb_survives_does_not(real: lmdb.Environment) -> None:
    writer, broken = writer_over(real, commit=(0, lmdb.DiskError("EIO")))
    with pytest.raises(Ambiguous):
        await asyncio.wait_for(writer.write(put(b"key")), LIMIT_S)
    writer._environment.errors.clear()
    assert await asyncio.wait_for(writer.write(put(b"key")), LIMIT_S) is True
    assert not broken.is_set()
    await writer.close()


async def test_whatever_else_goes_wrong_is_answered_too(real: lmdb.Environment) -> None:
    """A bug in one write must not leave a process that takes writes and never answers."""
    writer, broken = writer_over(real)
    calls = [writer.write(lambda txn: 1 // 0), *(writer.write(put(b"%d" % n)) for n in range(50))]
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
    assert all(isinstance(outcome, Transient | bool) for outcome in outcomes)
    assert isinstance(outcomes[0], Ambiguous)
    await ended(writer, broken)


def test_the_process_ends_with_a_status_of_its_own() -> None:
    code = "from hongbao.adapters.lmdb_writer import end_process; end_process()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == EXIT_BROKEN
