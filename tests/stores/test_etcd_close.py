"""What close() leaves behind: every call and watch ends with an error of ours, and soon."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from hongbao.adapters.etcd import EtcdCoordination
from hongbao.adapters.etcd_members import EtcdSettings
from hongbao.domain.errors import Transient
from hongbao.shards.ports import Lease

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stalls import Stalls
from tests.waiting import LIMIT_S

UNDER_WAY_S = 0.3
ENDS_S_MAX = 3.0
Call = Callable[[EtcdCoordination], Awaitable[object]]


async def watch(store: EtcdCoordination) -> None:
    async with aclosing(store.watch("", after_revision=1)) as changes:
        async for _ in changes:
            pass


CALLS: dict[str, Call] = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.compare_and_put("a", b"1", revision=1),
    "acquire": lambda store: store.acquire("claims/1", "p", ttl_s=5, value=b"{}"),
    "renew": lambda store: store.renew(Lease("claims/1", "p", 2, 5.0)),
    "watch": watch,
}


@asynccontextmanager
async def soon(stalls: Stalls) -> AsyncIterator[None]:
    """Check that what is done within ends in time; a machine that stands still delays it."""
    began_s = time.monotonic()
    async with asyncio.timeout(LIMIT_S):
        yield
    now_s = time.monotonic()
    assert now_s - began_s - stalls.within_s(began_s, now_s) < ENDS_S_MAX


@pytest.fixture
async def silent() -> AsyncIterator[EtcdSettings]:
    """Give a member that takes connections and never answers."""

    writers: list[asyncio.StreamWriter] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):
            while await reader.read(1 << 16):
                pass

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield EtcdSettings((f"{host}:{port}",))
    server.close()
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_waits_for_its_answer_ends_with_the_connections(
    silent: EtcdSettings, name: str, stalls: Stalls
) -> None:
    store = EtcdCoordination(silent)
    calling = asyncio.ensure_future(CALLS[name](store))
    await asyncio.sleep(UNDER_WAY_S)
    await store.close()
    async with soon(stalls):
        with pytest.raises(Transient):
            await calling


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_behind_close_is_refused(
    silent: EtcdSettings, name: str, stalls: Stalls
) -> None:
    store = EtcdCoordination(silent)
    await store.close()
    await store.close()
    async with soon(stalls):
        with pytest.raises(Transient, match="closed"):
            await CALLS[name](store)


async def test_a_caller_that_was_cancelled_itself_stays_cancelled(silent: EtcdSettings) -> None:
    store = EtcdCoordination(silent)
    calling = asyncio.ensure_future(store.read("a"))
    await asyncio.sleep(UNDER_WAY_S)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await store.close()


@pytest.mark.processes
@pytest.mark.xdist_group("faults")
@pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not()))
async def test_an_established_watch_ends_with_the_connections(
    tmp_path: Path, stalls: Stalls
) -> None:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        store = EtcdCoordination(cluster.settings())
        begin = await store.put("a", b"1")
        changes = store.watch("", after_revision=begin.revision - 1)
        assert await anext(changes) == begin
        following = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(UNDER_WAY_S)
        await store.close()
        async with soon(stalls):
            with pytest.raises(Transient, match="closed"):
                await following
