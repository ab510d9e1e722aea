"""Puts TiKV behind the face of the contract suites: real servers of ours, or a user's cluster."""

import asyncio
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hongbao.adapters.tikv import TikvStore
from hongbao.adapters.tikv_txn import TikvTxnStore

from tests.contracts.store_contracts import Contract
from tests.servers import binaries
from tests.servers.tikv import TikvCluster

PD_VARIABLE = "HONGBAO_TEST_TIKV_PD"
"""Names the PD endpoints of a user's cluster, with commas in between."""
NOT_OURS = f"{PD_VARIABLE} names a cluster whose servers are not ours to touch"

_numbers = itertools.count(100)


def _param(kind: str, stores: int) -> Any:
    """Keep all tests of one cluster on one worker: a restart must not disturb others."""
    return pytest.param(f"tikv-{kind}-{stores}", marks=pytest.mark.xdist_group(f"tikv-{stores}"))


RAW = [_param("raw", 1), _param("raw", 3)]
TXN = [_param("txn", 1), _param("txn", 3)]
TIKV = [*RAW, *TXN]
STORES: dict[str, Callable[..., Any]] = {"raw": TikvStore, "txn": TikvTxnStore}


@pytest.fixture(scope="session")
def tikv_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TikvCluster | None]:
    yield from _cluster(tmp_path_factory.mktemp("tikv-1"), 1)


@pytest.fixture(scope="session")
def tikv_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TikvCluster | None]:
    yield from _cluster(tmp_path_factory.mktemp("tikv-3"), 3)


def _cluster(folder: Path, stores: int) -> Iterator[TikvCluster | None]:
    """Give a cluster of ours, or None where the environment names a user's."""
    if PD_VARIABLE in os.environ:
        yield None
        return
    if reason := binaries.why_not():
        pytest.skip(reason)
    with TikvCluster(folder, stores=stores) as cluster:
        yield cluster


@asynccontextmanager
async def tikv_contract(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator["TikvContract"]:
    """Open one of `TIKV`, the fixture's parameter."""
    _, kind, stores = request.param.split("-")
    if kind == "txn":
        pytest.importorskip("tikv_client", reason="the extra tikv-txn is not installed")
    cluster = request.getfixturevalue({"1": "tikv_one", "3": "tikv_three"}[stores])
    made = TikvContract(cluster, kind)
    yield made
    await made.close()


class TikvContract(Contract):
    """Gives each test a namespace: three bytes on our servers, which split only short keys."""

    def __init__(self, cluster: TikvCluster | None, kind: str) -> None:
        self.kind = kind
        self.cluster = cluster
        if cluster is None:
            self.pd = os.environ[PD_VARIABLE].split(",")
            self.namespace = b"hongbao-test/%s/" % secrets.token_hex(8).encode()
        else:
            self.pd = cluster.pd_endpoints
            self.namespace = b"%03d" % next(_numbers)
        super().__init__(STORES[kind](self.pd, namespace=self.namespace), "")

    def key(self, name: str) -> bytes:
        return name.encode()

    async def split(self, name: str) -> None:
        if self.cluster is not None:
            await asyncio.to_thread(self.cluster.split, self.namespace + self.key(name))

    async def restart(self) -> None:
        """Kill all stores and start them again."""
        if self.cluster is None:
            pytest.skip(NOT_OURS)
        for act in (self.cluster.kill_store, self.cluster.start_store):
            for index in range(self.cluster.stores):
                await asyncio.to_thread(act, index)

    async def close(self) -> None:
        await self.store.close()
