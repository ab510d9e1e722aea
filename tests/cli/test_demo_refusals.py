"""Facts about a demo that cannot begin: it is refused before it empties its folder."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hongbao.adapters.folder_objects import FolderObjects
from hongbao.adapters.memory import MemoryStore
from hongbao.cli import demo
from hongbao.cli.run_claim import check_unclaimed, claim_ledger
from hongbao.cli.run_dir import LOCK_NAME, RunDir
from hongbao.cli.settings import EtcdSettings, TikvSettings, UpSettings, read_settings
from hongbao.cli.stores import open_clusters
from hongbao.domain.errors import Rejected

from tests.processes.rainy import CAMPAIGN, Plot, write_campaign
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import TikvCluster

NAMES = ("tikv", "etcd")


class Earlier:
    """Is the folder of an earlier run, and the settings file of the demo that would empty it."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder / "run")
        self.settings_path = folder / "demo.yaml"
        self._campaign = write_campaign(folder / "campaign", Plot(seed=1, packets_a_slot=40))
        self.run.keys.mkdir(parents=True)
        (self.run.path / "run.json").write_text("{}")
        (self.run.path / "run.id").write_text("the earlier run")
        (self.run.keys / "redeem.keys").write_text("worth all that is minted")

    def set(self, **changes: Any) -> UpSettings:
        """Write the settings."""
        shape = {"campaign": str(self._campaign), "run_dir": str(self.run.path), **changes}
        self.settings_path.write_text(yaml.safe_dump(shape))
        return read_settings(self.settings_path)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.run.path)): path.read_bytes()
            for path in self.run.path.rglob("*")
            if path.is_file() and path.name != LOCK_NAME
        }

    def refused(self, **options: Any) -> Rejected:
        """Start the demo, which is refused and changes nothing."""
        before = self.files()
        with pytest.raises(Rejected) as refused:
            demo.demo(self.settings_path, **options)
        assert self.files() == before
        return refused.value


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    return Earlier(tmp_path)


def test_objects_of_another_run_keep_the_folder_from_being_emptied(
    earlier: Earlier, tmp_path: Path
) -> None:
    """Its keys may be the only ones that open what is minted there."""
    earlier.set(objects_url=str(tmp_path / "objects"))
    manifest = FolderObjects(tmp_path / "objects").put_new(f"{CAMPAIGN}/1/manifest.json", b"{}")
    asyncio.run(manifest)
    assert earlier.refused().field == "objects_url"


def test_a_ledger_of_another_run_keeps_the_folder_from_being_emptied(
    earlier: Earlier, tmp_path: Path
) -> None:
    """Its positions of settlement would skip the first claims of a new log."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    earlier.set(ledger_url=url)
    claim_ledger(earlier.run, url, CAMPAIGN).dispose()
    assert earlier.refused().field == "ledger_url"


def test_a_wrong_campaign_or_fault_keeps_the_folder_from_being_emptied(
    earlier: Earlier, tmp_path: Path
) -> None:
    earlier.set(campaign=str(tmp_path / "none.yaml"))
    assert earlier.refused().field == "campaign"
    earlier.set()
    assert earlier.refused(store_faults=tmp_path / "none.yaml").field == "store_faults"


@pytest.mark.parametrize("held", NAMES)
async def test_a_namespace_that_holds_any_run_is_told_to_be_changed(held: str) -> None:
    stores = {name: MemoryStore() for name in NAMES}
    settings = UpSettings(
        campaign=Path("c.yaml"),
        tikv=TikvSettings(pd=("pd:2379",), namespace="evening"),
        etcd=EtcdSettings(endpoints=("etcd:2379",), namespace="evening"),
    )
    await check_unclaimed(settings, stores["tikv"], stores["etcd"])
    if held == "tikv":
        await stores["tikv"].create(b"run", b"id")
    else:
        await stores["etcd"].put("run", b"id")
    with pytest.raises(Rejected, match=f"namespace evening .* choose another {held}") as refused:
        await check_unclaimed(settings, stores["tikv"], stores["etcd"])
    assert refused.value.field == f"{held}.namespace"


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    if reason := binaries.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("clusters")
    with TikvCluster(folder / "tikv") as tikv, EtcdCluster(folder / "etcd") as etcd:
        yield {"tikv": {"pd": tikv.pd_endpoints}, "etcd": {"endpoints": list(etcd.endpoints)}}


@pytest.mark.processes
@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize("held", NAMES)
def test_a_cluster_of_another_run_keeps_the_folder_from_being_emptied(
    earlier: Earlier, clusters: dict[str, dict[str, Any]], held: str
) -> None:
    """Neither is the other store, which is free, claimed."""
    shape = {name: {**clusters[name], "namespace": f"held-{held}"} for name in NAMES}
    settings = earlier.set(**shape)

    async def claim() -> None:
        async with open_clusters(settings, CAMPAIGN) as (log_store, coordination):
            assert log_store is not None
            assert coordination is not None
            if held == "tikv":
                await log_store.create(b"run", b"another run")
            else:
                await coordination.put("run", b"another run")

    async def claimed() -> list[bytes | None]:
        async with open_clusters(settings, CAMPAIGN) as (log_store, coordination):
            assert log_store is not None
            assert coordination is not None
            return [await log_store.get(b"run"), (await coordination.read("run")).value]

    asyncio.run(claim())
    assert earlier.refused().field == f"{held}.namespace"
    free = None if held == "etcd" else b""
    assert sorted(asyncio.run(claimed()), key=bool) == [free, b"another run"]
