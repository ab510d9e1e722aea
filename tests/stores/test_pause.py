"""F7 on TiKV and etcd: an owner is paused past its lease, or etcd's leader past all of them.

The history of leases and logs is recorded from outside all the while and judged (history.py).
Whose owner, when and for how long is drawn: HONGBAO_SEED repeats a run.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import SharedState, connect_stores
from hongbao.shards.block import ShardKey
from hongbao.shards.replay import read_blocks

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import TikvCluster
from tests.shards.test_process_pause import LOG_BLOCKS_MAX, SHARDS, pause_an_owner, under_load
from tests.stores.appends import Answered
from tests.stores.history import Recorded, Recorder, check_history

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=binaries.why_not() or ""),
]


LEASE_TTL_S = 2.0
LEADER_PAUSED_S = 3.5
"""Another leads by then, and by the clock of the paused one every lease has run out."""
LEADER_PAUSES_MAX = 6


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), 3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tikv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TikvCluster]:
    with TikvCluster(tmp_path_factory.mktemp("tikv")) as cluster:
        yield cluster


@pytest.fixture
async def stores(
    tikv: TikvCluster, etcd: EtcdCluster, tmp_path: Path
) -> AsyncIterator[SharedState]:
    namespace = f"pause-{secrets.token_hex(4)}"
    settings = UpSettings.model_validate(
        {
            "campaign": "none.yaml",
            "lease_ttl_s": LEASE_TTL_S,
            "tikv": {"pd": tikv.pd_endpoints, "namespace": namespace},
            "etcd": {"endpoints": etcd.endpoints, "namespace": namespace},
        }
    )
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    connected = await connect_stores(RunDir(tmp_path), settings, "toy")
    yield connected
    await connected.close()


@asynccontextmanager
async def recorded(stores: SharedState) -> AsyncIterator[Recorded]:
    """Record leases and logs, and judge them behind the block."""
    recorder = Recorder(stores.log_store, stores.coordination, "toy", range(SHARDS))
    async with recorder.recording():
        yield recorder.recorded
    logs = {
        shard: await read_blocks(
            Answered(stores.log_store),
            ShardKey("toy", shard),
            0,
            LOG_BLOCKS_MAX,
            limit=LOG_BLOCKS_MAX,
        )
        for shard in range(SHARDS)
    }
    assert check_history("toy", recorder.recorded, logs) == []
    assert all(recorder.recorded.reads.values())


@pytest.mark.parametrize("hearing", ["good", "deaf"])
async def test_a_paused_owner_is_fenced_by_tikv_and_the_history_is_clean(
    stores: SharedState, tmp_path: Path, hearing: str, seed: int
) -> None:
    async with recorded(stores) as history:
        await pause_an_owner(stores, tmp_path, hearing, seed)
    assert len({grant.process for grant in history.grants}) == 2


async def test_leases_that_a_waking_etcd_leader_gives_away_cost_no_money(
    stores: SharedState, etcd: EtcdCluster, tmp_path: Path
) -> None:
    """It revokes what was renewed at the next leader meanwhile: owners lose all leases at once.

    That is etcd's fault (docs/stores.md), and comes at some of the pauses only. Where it did not
    come at all, what is judged is a leader's pause, and the output says so.
    """
    async with recorded(stores) as history, under_load(stores, tmp_path) as (_, load):
        for pause in range(LEADER_PAUSES_MAX):
            leader = await asyncio.to_thread(etcd.leader)
            etcd.pause(leader)
            await asyncio.sleep(LEADER_PAUSED_S)
            granted = len(history.grants)
            etcd.resume(leader)
            await load.until_more(100)
            await asyncio.sleep(LEASE_TTL_S)
            if lost := len(history.grants) - granted:
                print(f"pause {pause}: {lost} leases were granted anew")
                break
        else:
            print(f"no lease was given away at {LEADER_PAUSES_MAX} pauses")
        await load.until_more(100)
