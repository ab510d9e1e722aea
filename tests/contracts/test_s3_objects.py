"""What only a server can do to objects: lost replies, cut streams, silence, spoilt bytes."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hongbao.adapters import obstore as adapter
from hongbao.adapters.cached_objects import CachedObjects
from hongbao.adapters.obstore import S3Objects
from hongbao.domain.errors import Ambiguous, Corrupt, NotFound, Rejected, Transient

from tests.servers import s3

pytestmark = pytest.mark.skipif(s3.why_not() is not None, reason=str(s3.why_not()))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.S3Server]:
    with s3.running_s3(tmp_path / "s3", "rain") as running:
        for name, value in running.environ().items():
            monkeypatch.setenv(name, value)
        yield running


@dataclass
class Wire:
    """Is a TCP relay to the server that can lose what the server says."""

    port: int
    own_port: int = 0
    cut_after_bytes: int | None = None
    """The connection ends once the server has said this much; None: nothing is lost."""
    cuts_left: int = 1 << 30
    cuts: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        sending = asyncio.create_task(self._send(reader, up_writer))
        self._tasks.add(sending)
        left = self.cut_after_bytes if self.cuts_left else None
        try:
            while data := await up_reader.read(1 << 16):
                if left is not None:
                    data, left = data[:left], left - len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and left <= 0:
                    self.cuts, self.cuts_left = self.cuts + 1, self.cuts_left - 1
                    break
        except OSError:
            pass
        finally:
            sending.cancel()
            writer.close()
            up_writer.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def wired(server: s3.S3Server) -> AsyncIterator[Wire]:
    wire = Wire(server.port)
    relay = await asyncio.start_server(wire.relay, "127.0.0.1", 0)
    wire.own_port = relay.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        relay.close()


def through(wire: Wire) -> S3Objects:
    return S3Objects("s3://rain/evening", f"http://127.0.0.1:{wire.own_port}")


async def test_a_put_whose_reply_was_lost_is_told_by_reading_back(server: s3.S3Server) -> None:
    async with wired(server) as wire:
        store = through(wire)
        wire.cut_after_bytes, wire.cuts_left = 0, 1
        await store.put_new("a/lost", b"mine")
        assert wire.cuts == 1
        assert await store.get("a/lost") == b"mine"


async def test_a_lost_reply_never_turns_anothers_object_into_ours(server: s3.S3Server) -> None:
    await S3Objects("s3://rain/evening").put_new("a/lost", b"theirs")
    async with wired(server) as wire:
        wire.cut_after_bytes, wire.cuts_left = 0, 1
        with pytest.raises(Rejected, match="other bytes"):
            await through(wire).put_new("a/lost", b"mine")
        assert wire.cuts == 1


async def test_a_put_that_cannot_be_read_back_is_ambiguous_and_repeats_safely(
    server: s3.S3Server,
) -> None:
    async with wired(server) as wire:
        store = through(wire)
        wire.cut_after_bytes = 0
        with pytest.raises(Ambiguous):
            await store.put_new("a/lost", b"mine")
        wire.cut_after_bytes = None
        await store.put_new("a/lost", b"mine")
        assert await store.get("a/lost") == b"mine"


async def test_a_stream_that_is_cut_never_appears_as_a_file(
    server: s3.S3Server, tmp_path: Path
) -> None:
    await S3Objects("s3://rain/evening").put_new("a/big", os.urandom(4 << 20))
    folder = tmp_path / "fetched"
    async with wired(server) as wire:
        wire.cut_after_bytes = 300_000
        with pytest.raises(Transient):
            await through(wire).fetch("a/big", folder / "big")
        assert wire.cuts > 0
    assert list(folder.iterdir()) == []


async def test_a_fetch_that_is_cancelled_leaves_nothing(
    server: s3.S3Server, tmp_path: Path
) -> None:
    store = S3Objects("s3://rain/evening")
    await store.put_new("a/big", os.urandom(32 << 20))
    folder = tmp_path / "fetched"
    fetching = asyncio.create_task(store.fetch("a/big", folder / "big"))
    while not folder.exists() or not list(folder.iterdir()):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert list(folder.iterdir()) == []


async def test_bytes_that_were_spoilt_at_rest_are_found(
    server: s3.S3Server, tmp_path: Path
) -> None:
    """The manifest would find a ticket file too; this finds any object, and before it is used."""
    store = S3Objects("s3://rain/evening")
    await store.put_new("a/spoilt", b"a" * 1000)
    stored = server.stored("rain", "evening/a/spoilt")
    with stored.open("r+b") as file:
        file.seek(500)
        file.write(b"b")
    with pytest.raises(Corrupt, match="sha256"):
        await store.get("a/spoilt")
    with pytest.raises(Corrupt, match="sha256"):
        await store.fetch("a/spoilt", tmp_path / "fetched" / "file")
    assert list((tmp_path / "fetched").iterdir()) == []


async def test_an_object_that_others_put_without_a_hash_is_read_and_compared(
    server: s3.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore
    from obstore.store import S3Store

    plain = S3Store("rain", prefix="evening", client_options={"allow_http": True})
    await obstore.put_async(plain, "a/plain", b"theirs")
    store = S3Objects("s3://rain/evening")
    assert await store.get("a/plain") == b"theirs"
    await store.put_new("a/plain", b"theirs")
    with pytest.raises(Rejected):
        await store.put_new("a/plain", b"others")


async def test_a_server_that_is_gone_or_silent_is_told_in_time_and_comes_back(
    server: s3.S3Server, tmp_path: Path
) -> None:
    store = S3Objects("s3://rain/evening")
    await store.put_new("a/there", b"x")
    loop = asyncio.get_running_loop()
    limit_s = adapter.RETRY_S_MAX + 2 * adapter.STALL_S_MAX
    for take_down, bring_up in ((server.kill, server.start), (server.pause, server.resume)):
        take_down()
        began_s = loop.time()
        with pytest.raises(Transient):
            await store.get("a/there")
        with pytest.raises(Transient):
            await store.names("a")
        assert loop.time() - began_s < 2 * limit_s
        bring_up()
        assert await store.get("a/there") == b"x"
        assert await store.names("a") == ["a/there"]


async def test_credentials_that_are_refused_are_told_and_change_nothing(
    server: s3.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = S3Objects("s3://rain/evening")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Transient, match=r"SignatureDoesNotMatch|403"):
        await S3Objects("s3://rain/evening").put_new("a/mine", b"x")
    with pytest.raises(NotFound):
        await good.get("a/mine")


async def test_what_was_read_once_is_known_while_the_server_is_down(
    server: s3.S3Server, tmp_path: Path
) -> None:
    await S3Objects("s3://rain/evening").put_new("a/manifest.json", b"{}")
    await S3Objects("s3://rain/evening").put_new("a/unread", b"x")
    first = CachedObjects(S3Objects("s3://rain/evening"), tmp_path / "cache")
    assert await first.get("a/manifest.json") == b"{}"
    server.kill()
    later = CachedObjects(S3Objects("s3://rain/evening"), tmp_path / "cache")
    assert await later.get("a/manifest.json") == b"{}"
    assert await later.names("a") == ["a/manifest.json"]
    with pytest.raises(Transient):
        await later.get("a/unread")
    with pytest.raises(Transient):
        await later.names("b")


async def test_a_torn_copy_is_fetched_again(server: s3.S3Server, tmp_path: Path) -> None:
    await S3Objects("s3://rain/evening").put_new("a/manifest.json", b"{}")
    cached = CachedObjects(S3Objects("s3://rain/evening"), tmp_path / "cache")
    assert await cached.get("a/manifest.json") == b"{}"
    copy = tmp_path / "cache" / "a" / "manifest.json"
    assert copy.read_bytes() == hashlib.sha256(b"{}").digest() + b"{}"
    copy.write_bytes(b"")
    assert await cached.get("a/manifest.json") == b"{}"


async def test_a_broken_cache_disk_costs_the_copy_and_not_the_answer(
    server: s3.S3Server, tmp_path: Path
) -> None:
    await S3Objects("s3://rain/evening").put_new("a/manifest.json", b"{}")
    cached = CachedObjects(S3Objects("s3://rain/evening"), tmp_path / "cache")
    broken = tmp_path / "cache" / "a" / "manifest.json"
    broken.parent.mkdir()
    broken.symlink_to(broken)  # ELOOP: neither there nor absent
    assert await cached.get("a/manifest.json") == b"{}"
