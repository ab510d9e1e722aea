"""A cluster that a user gives to the contract suite is left as it was."""

from pathlib import Path

import pytest

from tests.contracts.etcd_contracts import GIVEN_VARIABLE, make_contract
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stores.etcd_load import connected


@pytest.mark.processes
@pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not()))
async def test_nothing_of_a_test_stays_in_a_cluster_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        monkeypatch.setenv(GIVEN_VARIABLE, ",".join(cluster.endpoints))
        for part in ("CA", "CERT", "KEY"):
            monkeypatch.delenv(f"{GIVEN_VARIABLE}_{part}", raising=False)
        async with connected(cluster.settings("")) as everything:
            theirs = await everything.put("theirs", b"1")
            contract = make_contract(None, "test")
            await contract.store.put(contract.fact("a"), b"1")
            assert await contract.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
            assert len(await everything.read_prefix("")) == 3
            await contract.close()
            assert await everything.read_prefix("") == [theirs]
