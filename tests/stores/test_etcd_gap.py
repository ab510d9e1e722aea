"""What a watch does while it cannot read what etcd's compaction left it."""

import asyncio
import itertools
from pathlib import Path

import pytest
from hongbao.adapters.etcd_facts import Namespace, Shown
from hongbao.adapters.etcd_members import EtcdSettings, Members
from hongbao.adapters.etcd_watch import FAILURES_TOLD, WatchSource, follow
from hongbao.domain.errors import Transient
from hongbao.proto.etcd.kv_pb2 import KeyValue
from structlog.testing import capture_logs

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stalls import Stalls, judged
from tests.stores.etcd_load import connected
from tests.waiting import LIMIT_S

ASKED = FAILURES_TOLD + 2  # some 4 s of pauses between them


@pytest.mark.processes
@pytest.mark.xdist_group("faults")
@pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not()))
async def test_a_gap_that_cannot_be_read_is_asked_for_more_and_more_seldom_and_told(
    tmp_path: Path, stalls: Stalls
) -> None:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        settings = cluster.settings()
        async with connected(settings) as store:
            for _ in range(3):
                await store.put("a", b"1")
        await asyncio.to_thread(cluster.compact)
        # A stall may break the watch, which is a failure in the row that is no question.
        await judged(stalls, lambda _: ask_over_the_gap(settings))


async def ask_over_the_gap(settings: EtcdSettings) -> None:
    asked_s: list[float] = []
    asked_enough = asyncio.Event()

    async def unreadable(prefix: str, revision: int) -> list[KeyValue]:
        asked_s.append(asyncio.get_running_loop().time())
        if len(asked_s) == ASKED:
            asked_enough.set()
        raise Transient("no answer")

    members = Members(settings)
    source = WatchSource(members, Namespace(settings.namespace), Shown(), unreadable)
    with capture_logs() as logs:
        watching = asyncio.ensure_future(anext(follow(source, "", 1)))
        async with asyncio.timeout(LIMIT_S):
            await asked_enough.wait()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await members.close()
    pauses_s = [after - before for before, after in itertools.pairwise(asked_s)]
    assert min(pauses_s[FAILURES_TOLD - 2 :]) > 0.4
    told = [log for log in logs if log["log_level"] == "warning"]
    assert [(log["event"], log["row"]) for log in told] == [("etcd_gap_unread", FAILURES_TOLD)]
