"""The promises of the object store, kept by a folder and by S3 (real servers, real files)."""

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hongbao.adapters.obstore import open_objects
from hongbao.domain.errors import NotFound, Rejected
from hongbao.domain.objects import ObjectStore

from tests.servers import s3

RACERS = 16
LARGE_BYTES = 128 << 20
SPARE_BYTES = 100 << 20
"""Memory that a large object may take: stacks of threads and buffers, never the object."""


@dataclass(frozen=True)
class Home:
    """Is a place for objects that any process can open, and how to take it down and up again."""

    url: str
    restart: Callable[[], None] | None = None

    def open(self) -> ObjectStore:
        return open_objects(self.url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    if reason := s3.why_not():
        pytest.skip(reason)
    with s3.running_s3(tmp_path_factory.mktemp("s3") / "objects", "rain") as running:
        yield running


@pytest.fixture(params=["folder", "s3", "named"])
def home(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Home]:
    own = uuid.uuid4().hex  # a named bucket keeps what earlier runs left
    if request.param == "folder":
        yield Home(str(tmp_path / "objects"), lambda: None)
    elif request.param == "named":
        if (url := s3.named_url()) is None:
            pytest.skip(f"{s3.URL_VARIABLE} names no bucket")
        yield Home(f"{url.rstrip('/')}/{own}")
    else:
        server: s3.S3Server = request.getfixturevalue("server")
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)

        def restart() -> None:
            server.kill()
            server.start()

        yield Home(f"s3://rain/{own}", restart)


async def test_one_of_many_creators_wins_and_all_others_are_refused(home: Home) -> None:
    stores = [home.open() for _ in range(RACERS)]
    told = await asyncio.gather(
        *(store.put_new("a/raced", b"%04d" % n * 1000) for n, store in enumerate(stores)),
        return_exceptions=True,
    )
    assert [type(one) for one in told if one is not None] == [Rejected] * (RACERS - 1)
    assert await home.open().get("a/raced") == b"%04d" % told.index(None) * 1000


async def test_creators_of_the_same_bytes_all_succeed(home: Home, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "source").write_bytes(data)
    puts = [home.open().put_new("a/same", data) for _ in range(RACERS)]
    puts += [home.open().put_file_new("a/same", tmp_path / "source") for _ in range(RACERS)]
    await asyncio.gather(*puts)
    assert await home.open().get("a/same") == data


async def test_other_bytes_never_replace_what_is_there(home: Home, tmp_path: Path) -> None:
    store = home.open()
    await store.put_new("a/kept", b"first")
    for other in (b"other", b"longer than it", b""):
        (tmp_path / "source").write_bytes(other)
        with pytest.raises(Rejected, match="other bytes"):
            await store.put_new("a/kept", other)
        with pytest.raises(Rejected, match="other bytes"):
            await store.put_file_new("a/kept", tmp_path / "source")
    assert await store.get("a/kept") == b"first"


@pytest.mark.parametrize("size", [0, 1, 5 << 20, 9 << 20])
async def test_bytes_of_any_size_come_back(home: Home, tmp_path: Path, size: int) -> None:
    data, store = os.urandom(size), home.open()
    await store.put_new("a/put", data)
    (tmp_path / "source").write_bytes(data)
    await store.put_file_new("a/file", tmp_path / "source")
    for name in ("a/put", "a/file"):
        assert await store.get(name) == data
        await store.fetch(name, tmp_path / "new folder" / "fetched")
        assert (tmp_path / "new folder" / "fetched").read_bytes() == data


async def test_a_fetched_file_can_be_read_by_roles_of_other_users(
    home: Home, tmp_path: Path
) -> None:
    store = home.open()
    await store.put_new("a/read", b"x")
    await store.fetch("a/read", tmp_path / "fetched")
    assert stat.S_IMODE((tmp_path / "fetched").stat().st_mode) == 0o644


async def test_what_is_not_there_is_not_found_and_leaves_no_file(
    home: Home, tmp_path: Path
) -> None:
    store = home.open()
    await store.put_new("a/b", b"x")
    for name in ("nothing", "a/nothing", "a"):
        with pytest.raises(NotFound):
            await store.get(name)
        with pytest.raises(NotFound):
            await store.fetch(name, tmp_path / "fetched" / "file")
    assert list((tmp_path / "fetched").glob("*")) == []


async def test_names_are_sorted_and_below_whole_segments(home: Home) -> None:
    store = home.open()
    names = ["rain/1/a", "rain/1/b", "rain/10/a", "rain-2/1/a", "rain/2"]
    for name in reversed(names):
        await store.put_new(name, name.encode())
    assert await store.names("rain") == sorted(["rain/1/a", "rain/1/b", "rain/10/a", "rain/2"])
    assert await store.names("rain/") == await store.names("rain")
    assert await store.names("rain/1/") == ["rain/1/a", "rain/1/b"]
    assert await store.names("rai") == []
    assert await store.names("") == sorted(names)


async def test_all_names_are_told_when_they_fill_more_than_one_page(home: Home) -> None:
    store = home.open()
    count = 1_100 if "://" in home.url else 50  # S3 lists 1,000 at a time, a folder has no pages
    names = [f"many/{number:04}" for number in range(count)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(store.put_new(name, b"") for name in names[start : start + 50]))
    assert await store.names("many") == names


async def test_an_acknowledged_object_outlives_kill_nine_of_the_server(home: Home) -> None:
    if home.restart is None:
        pytest.skip("a named bucket is not ours to kill")
    store = home.open()
    await store.put_new("a/durable", b"d" * 100_000)
    home.restart()
    assert await store.get("a/durable") == b"d" * 100_000
    with pytest.raises(Rejected):
        await store.put_new("a/durable", b"other")


LARGE = """
import asyncio, hashlib, resource, sys
from pathlib import Path
from hongbao.adapters.obstore import open_objects
url, source, target, spare, how = sys.argv[1:]
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if "VmData" in line)
resource.setrlimit(resource.RLIMIT_DATA, (used + int(spare),) * 2)
async def main():
    store = open_objects(url)
    if how == "whole":
        return await store.put_new("large/whole", Path(source).read_bytes())
    await store.put_file_new("large/file", Path(source))
    await store.put_file_new("large/file", Path(source))
    await store.fetch("large/file", Path(target))
asyncio.run(main())
"""


def test_a_large_file_goes_and_comes_in_little_memory(home: Home, tmp_path: Path) -> None:
    """RLIMIT_DATA refuses memory; that the same bytes as a whole do not fit proves the limit."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for _ in range(LARGE_BYTES >> 20):
            file.write(os.urandom(1 << 20))
    command = [sys.executable, "-c", LARGE, home.url, str(source), str(target), str(SPARE_BYTES)]
    whole = subprocess.run([*command, "whole"], capture_output=True, text=True, check=False)
    assert "MemoryError" in whole.stderr
    streamed = subprocess.run([*command, "file"], capture_output=True, text=True, check=False)
    assert streamed.returncode == 0, streamed.stderr
    assert target.stat().st_size == LARGE_BYTES
    assert subprocess.run(["cmp", source, target], check=False).returncode == 0
    with contextlib.suppress(FileNotFoundError):
        source.unlink()
        target.unlink()
