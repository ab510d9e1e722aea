"""A TiKV cluster that a user gives to the contract suite: used by one API, left as it was."""

from pathlib import Path

import pytest
from hongbao.adapters.tikv_txn import PUT_KEYS_MAX

from tests.contracts.patient import Patient
from tests.contracts.tikv_contracts import (
    GIVEN_PARTS,
    PD_VARIABLE,
    STORES,
    TikvContract,
    given_settings,
)
from tests.servers import binaries
from tests.servers.tikv import TikvCluster
from tests.stalls import Stalls


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Give an environment that names no cluster."""
    for part in ("pd", *GIVEN_PARTS):
        monkeypatch.delenv(f"HONGBAO_TEST_TIKV_{part.upper()}", raising=False)
    return monkeypatch


def test_a_given_cluster_is_raw_and_without_tls_unless_the_environment_says_so(
    environ: pytest.MonkeyPatch,
) -> None:
    environ.setenv(PD_VARIABLE, "pd-0:2379,pd-1:2379")
    given = given_settings()
    assert (given.pd, given.api, given.ca) == (("pd-0:2379", "pd-1:2379"), "raw", None)
    for part in ("ca", "cert", "key"):
        environ.setenv(f"HONGBAO_TEST_TIKV_{part.upper()}", f"/{part}.pem")
    given = given_settings()
    assert (given.ca, given.cert, given.key) == tuple(
        Path(f"/{part}.pem") for part in ("ca", "cert", "key")
    )
    environ.setenv("HONGBAO_TEST_TIKV_API", "txn")
    with pytest.raises(ValueError, match="no TLS"):
        given_settings()
    environ.setenv("HONGBAO_TEST_TIKV_API", "both")
    with pytest.raises(ValueError, match="raw"):
        given_settings()


@pytest.mark.processes
@pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not()))
@pytest.mark.parametrize("kind", ["raw", "txn"])
async def test_nothing_of_a_test_stays_in_a_cluster_that_was_given(
    environ: pytest.MonkeyPatch, tmp_path: Path, kind: str, stalls: Stalls
) -> None:
    if kind == "txn":
        pytest.importorskip("tikv_client", reason="the extra tikv-txn is not installed")
    with TikvCluster(tmp_path / "tikv") as cluster:
        environ.setenv(PD_VARIABLE, ",".join(cluster.pd_endpoints))
        environ.setenv("HONGBAO_TEST_TIKV_API", kind)
        contract = TikvContract(kind, None, given_settings(), stalls)
        everything = Patient(STORES[kind](cluster.pd_endpoints), stalls)
        await everything.put_many([(b"hongbao-test", b"theirs"), (b"hongbao-tests", b"theirs")])
        keys = [contract.key(f"{number:05d}") for number in range(2 * PUT_KEYS_MAX + 1)]
        await contract.store.put_many([(key, b"ours") for key in keys])
        assert len(await everything.scan(b"hongbao", b"i", 1000)) == len(keys) + 2
        await contract.close()
        left = await everything.scan(b"hongbao", b"i", 1000)
        assert [key for key, _ in left] == [b"hongbao-test", b"hongbao-tests"]
        await everything.close()
