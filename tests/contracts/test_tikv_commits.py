"""How the transactional adapter commits: in two phases, and by no shortcut.

One-phase and async commit must stay off: the client has no switch for them that could be set, only
its defaults, so what it really asks for is overheard here. They would be unsafe on the test store,
whose one-phase commit takes no lock in memory (README of the test stores).
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hongbao.adapters.tikv_txn import TikvTxnStore

from tests.contracts.tikv_contracts import NOT_OURS, TXN, TikvContract, tikv_contract
from tests.servers.overheard import TRY_ONE_PC, USE_ASYNC_COMMIT, overheard, shortcuts
from tests.servers.protobuf import field, number
from tests.servers.tikv import TikvCluster
from tests.stalls import Stalls, judged


@pytest.fixture(params=TXN[:1])
async def contract(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TikvContract]:
    async with tikv_contract(request, tmp_path) as made:
        yield made


async def test_every_write_is_prewritten_and_committed_without_shortcuts(
    contract: TikvContract, stalls: Stalls
) -> None:
    """Also of one key in one region, where a client would soonest take one.

    Behind a stall it prewrites again.
    """
    cluster = contract.cluster
    if cluster is None:
        pytest.skip(NOT_OURS)
    await judged(stalls, lambda story: write_and_listen(cluster, contract.namespace, story))


async def write_and_listen(cluster: TikvCluster, namespace: bytes, story: int) -> None:
    """Write new keys in each way that there is, once, and judge what the client asked."""
    a, b, c, d, e = (b"%d%c" % (story, letter) for letter in b"abcde")
    async with overheard(cluster) as heard:
        store = TikvTxnStore(heard.pd, namespace=namespace)
        try:
            assert await store.create(a, b"1") is True
            assert await store.create_with(b, b"1", [(c, b"1"), (d, b"1")]) is True
            await store.put_many([(e, b"1")])
        finally:
            await store.close()
        assert heard.methods().count("KvPrewrite") == 3
        assert [shortcuts(each) for each in heard.requests("KvPrewrite")] == [set()] * 3
        assert heard.methods().count("KvCommit") >= 3


def test_a_shortcut_in_a_prewrite_is_noticed() -> None:
    plain = field(3, b"primary") + number(4, 1 << 40) + number(5, 3000) + number(8, 1)
    off = number(USE_ASYNC_COMMIT, 0) + number(TRY_ONE_PC, 0)
    assert shortcuts(plain) == shortcuts(plain + off) == set()
    assert shortcuts(plain + number(TRY_ONE_PC, 1)) == {"one-phase commit"}
    assert shortcuts(plain + number(USE_ASYNC_COMMIT, 1)) == {"async commit"}
