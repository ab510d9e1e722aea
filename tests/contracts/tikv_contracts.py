"""Puts TiKV behind the face of the contract suites: real servers of ours, or a user's cluster.

On a user's machine HONGBAO_TEST_TIKV_PD names the Placement Drivers of a real cluster (comma
between), HONGBAO_TEST_TIKV_API which API its keys belong to (raw, the default, or txn: they must
not meet in one cluster), and HONGBAO_TEST_TIKV_CA, _CERT and _KEY its certificates. That cluster is
never split nor restarted.
"""

import asyncio
import importlib
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tikv
from hongbao.adapters.tikv import TikvStore, TikvTls
from hongbao.adapters.tikv_txn import PUT_KEYS_MAX, TikvTxnStore
from hongbao.cli.settings import TikvSettings

from tests.contracts.patient import Patient
from tests.contracts.store_contracts import Contract
from tests.servers import binaries
from tests.servers.tikv import TikvCluster
from tests.stalls import Stalls

PD_VARIABLE = "HONGBAO_TEST_TIKV_PD"
GIVEN_PARTS = ("api", "ca", "cert", "key")
NOT_OURS = f"{PD_VARIABLE} names a cluster whose servers are not ours to touch"
REMOVED_PAIRS_MAX = 1 << 20

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
    given = given_settings() if PD_VARIABLE in os.environ else None
    if given is not None and (kind, stores) != (given.api, "1"):
        pytest.skip(f"{PD_VARIABLE} names one cluster, for the {given.api} API")
    if kind == "txn":
        pytest.importorskip("tikv_client", reason="the extra tikv-txn is not installed")
    cluster = request.getfixturevalue({"1": "tikv_one", "3": "tikv_three"}[stores])
    made = TikvContract(kind, cluster, given, request.getfixturevalue("stalls"))
    yield made
    await made.close()


def given_settings() -> TikvSettings:
    """Return the settings of the cluster that the environment names."""
    parts = {name: os.environ.get(f"HONGBAO_TEST_TIKV_{name.upper()}") for name in GIVEN_PARTS}
    named = {name: value for name, value in parts.items() if value}
    return TikvSettings.model_validate({"pd": os.environ[PD_VARIABLE].split(","), **named})


class TikvContract(Contract):
    """Gives each test a namespace: three bytes on our servers, which split only short keys."""

    def __init__(
        self, kind: str, cluster: TikvCluster | None, given: TikvSettings | None, stalls: Stalls
    ) -> None:
        self.kind = kind
        self.cluster = cluster
        self.tls: TikvTls | None = None
        if given is not None:
            self.pd = list(given.pd)
            self.namespace = b"hongbao-test/%s/" % secrets.token_hex(8).encode()
            self.tls = TikvTls(given.ca, given.cert, given.key) if given.ca else None
        else:
            assert cluster is not None
            self.pd = cluster.pd_endpoints
            self.namespace = b"%03d" % next(_numbers)
        super().__init__(Patient(self.connect(), stalls), "")

    def connect(self, *, pd: list[str] | None = None, within: bytes = b"") -> Any:
        """Open another client of the same cluster, namespace (or one within it) and API."""
        tls = {"tls": self.tls} if self.tls else {}  # raw only
        return STORES[self.kind](pd or self.pd, namespace=self.namespace + within, **tls)

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
        """Let go of the store; in a cluster that is not ours nothing of the test stays."""
        await self.store.close()
        if self.cluster is None:
            await (_remove_txn if self.kind == "txn" else _remove_raw)(self)


async def _remove_raw(contract: TikvContract) -> None:
    """Delete what lies in a test's namespace; our own adapter cannot delete."""
    tls = contract.tls
    config = tikv.TLSConfig(tls.ca, tls.cert, tls.key) if tls else None
    async with tikv.AsyncRawClient(contract.pd, atomic=False, tls=config) as client:
        await client.delete_range(contract.namespace, contract.namespace + b"\xff")


async def _remove_txn(contract: TikvContract) -> None:
    store = contract.connect()
    pairs = await store.scan(b"", b"\xff", REMOVED_PAIRS_MAX)
    await store.close()
    client = await importlib.import_module("tikv_client.asynchronous").TransactionClient.connect(
        contract.pd
    )
    for first in range(0, len(pairs), PUT_KEYS_MAX):
        transaction = await client.begin()
        for key, _ in pairs[first : first + PUT_KEYS_MAX]:
            await transaction.delete(contract.namespace + key)
        await transaction.commit()
