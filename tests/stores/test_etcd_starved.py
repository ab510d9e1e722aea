"""A member that answers calls and serves no watch: every other one would be told, this one not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hongbao.adapters import etcd_watch
from hongbao.adapters.etcd_facts import Namespace, Shown
from hongbao.adapters.etcd_members import EtcdSettings, Members
from hongbao.adapters.etcd_watch import WatchSource, follow
from hongbao.proto.etcd import rpc_pb2 as pb
from hongbao.proto.etcd.kv_pb2 import Event, KeyValue
from structlog.testing import capture_logs

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stalls import Stalls, judged
from tests.stores.etcd_load import connected
from tests.waiting import LIMIT_S

FACT = KeyValue(key=b"hongbao/switch", value=b"on", mod_revision=7)


class FakeMember:
    """Is etcd as far as a watch sees it; `event_at` progress requests it tells of a change."""

    def __init__(self, *, starves: bool, event_at: int = 0) -> None:
        self.starves = starves
        self.event_at = event_at
        self.watches = 0
        self.asked = 0

    async def range(self, request: pb.RangeRequest, _: Any) -> pb.RangeResponse:
        return pb.RangeResponse()

    async def watch(self, requests: Any, _: Any) -> AsyncIterator[pb.WatchResponse]:
        self.watches += 1
        async for request in requests:
            created = request.WhichOneof("request_union") == "create_request"
            self.asked += not created
            if created:
                yield pb.WatchResponse(created=True)
            elif not self.starves:
                yield pb.WatchResponse(watch_id=-1)
            if not self.starves and self.asked == self.event_at:
                yield pb.WatchResponse(events=[Event(kv=FACT)])

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        server = grpc.aio.server()
        unary = grpc.unary_unary_rpc_method_handler(
            self.range, pb.RangeRequest.FromString, pb.RangeResponse.SerializeToString
        )
        stream = grpc.stream_stream_rpc_method_handler(
            self.watch, pb.WatchRequest.FromString, pb.WatchResponse.SerializeToString
        )
        for name, method, handler in (("KV", "Range", unary), ("Watch", "Watch", stream)):
            handlers = grpc.method_handlers_generic_handler(
                f"etcdserverpb.{name}", {method: handler}
            )
            server.add_generic_rpc_handlers((handlers,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield f"127.0.0.1:{port}"
        await server.stop(0)


async def first_fact(*endpoints: str) -> str:
    members = Members(EtcdSettings(endpoints))
    source = WatchSource(members, Namespace("hongbao/"), Shown(), None)  # type: ignore[arg-type]
    async with asyncio.timeout(LIMIT_S):
        fact = await anext(follow(source, "", 1))
    await members.close()
    return fact.key


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_watch, "QUIET_S_MAX", 0.05)
    monkeypatch.setattr(etcd_watch, "STARVED_S_MAX", 0.5)


@pytest.mark.usefixtures("impatient")
async def test_a_watch_that_its_member_starves_goes_on_at_the_next_member() -> None:
    starving, serving = FakeMember(starves=True), FakeMember(starves=False)
    async with starving.served() as first, serving.served() as second:
        with capture_logs():
            assert await first_fact(first, second) == "switch"
    assert starving.asked >= 1


@pytest.mark.usefixtures("impatient")
async def test_a_quiet_watch_that_is_served_stays_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Silence alone moves nobody: each answer begins a new one."""
    monkeypatch.setattr(etcd_watch, "STARVED_S_MAX", 2.0)  # or a stalled machine would move it
    quiet = FakeMember(starves=False, event_at=3)
    async with quiet.served() as endpoint:
        assert await first_fact(endpoint) == "switch"
    assert (quiet.watches, quiet.asked) == (1, 3)


@pytest.mark.processes
@pytest.mark.xdist_group("faults")
@pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not()))
@pytest.mark.usefixtures("impatient")
async def test_etcd_says_of_a_quiet_watch_that_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stalls: Stalls
) -> None:
    monkeypatch.setattr(etcd_watch, "STARVED_S_MAX", 1.0)
    with EtcdCluster(tmp_path / "etcd") as cluster:
        await judged(stalls, lambda number: watch_quietly(cluster, f"switch/{number}"))


async def watch_quietly(cluster: EtcdCluster, key: str) -> None:
    async with connected(cluster.settings()) as store:
        with capture_logs() as logs:
            following = asyncio.ensure_future(anext(aiter(store.watch(key, after_revision=0))))
            await asyncio.sleep(8 * etcd_watch.STARVED_S_MAX)
            await store.put(key, b"on")
            async with asyncio.timeout(LIMIT_S):
                assert (await following).key == key
    told = [log for log in logs if log["event"] == "etcd_watch_moved"]
    assert len(told) <= 2  # by a machine that stalled for seconds; three times if it were starved
