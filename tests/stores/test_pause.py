"""F7 on TiKV and etcd: an owner is paused past its lease, another takes over, the first wakes.

The history of leases and logs is recorded from outside all the while and judged (history.py).
Whose owner, when and for how long is drawn: HONGBAO_SEED repeats a run.
"""

from collections.abc import AsyncIterator, Iterator
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
from tests.shards.test_process_pause import LOG_BLOCKS_MAX, SHARDS, pause_an_owner
from tests.stores.appends import Answered
from tests.stores.history import Recorder, check_history

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("stores"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=binaries.why_not() or ""),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Give the settings of one TiKV store and one etcd member."""
    folder = tmp_path_factory.mktemp("servers")
    with TikvCluster(folder / "tikv") as tikv, EtcdCluster(folder / "etcd") as etcd:
        yield {"tikv": {"pd": tikv.pd_endpoints}, "etcd": {"endpoints": etcd.endpoints}}


@pytest.fixture
async def stores(
    servers: dict[str, object], tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[SharedState]:
    settings = UpSettings.model_validate({"campaign": "none.yaml", "lease_ttl_s": 2.0, **servers})
    assert settings.tikv is not None
    assert settings.etcd is not None
    name = {"namespace": f"pause-{request.node.callspec.id}"}
    settings = settings.model_copy(
        update={
            "tikv": settings.tikv.model_copy(update=name),
            "etcd": settings.etcd.model_copy(update=name),
        }
    )
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    connected = await connect_stores(RunDir(tmp_path), settings, "toy")
    yield connected
    await connected.close()


@pytest.mark.parametrize("hearing", ["good", "deaf"])
async def test_a_paused_owner_is_fenced_by_tikv_and_the_history_is_clean(
    stores: SharedState, tmp_path: Path, hearing: str, seed: int
) -> None:
    recorder = Recorder(stores.log_store, stores.coordination, "toy", range(SHARDS))
    async with recorder.recording():
        await pause_an_owner(stores, tmp_path, hearing, seed)
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
    recorded = recorder.recorded
    assert check_history("toy", recorded, logs) == []
    assert len({grant.process for grant in recorded.grants}) == 2
    assert all(recorded.reads.values())
