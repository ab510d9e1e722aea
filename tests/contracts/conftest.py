"""Builds each store adapter for the contract suites."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.memory import MemoryStore

from tests.contracts.store_contracts import (
    ClientContract,
    Contract,
    LmdbContract,
    MemoryContract,
    StoreProcess,
)
from tests.contracts.tikv_contracts import tikv_one, tikv_three

__all__ = ["tikv_one", "tikv_three"]  # fixtures


@pytest.fixture(scope="session")
def store_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    process = StoreProcess(tmp_path_factory.mktemp("store"))
    yield process
    process.kill()


EMBEDDED = ("memory", "lmdb", "client")
"""The adapters that keep both ports; a suite adds those that keep only its own."""


@pytest.fixture(params=EMBEDDED)
async def contract(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Contract]:
    async with embedded_contract(request, tmp_path) as made:
        yield made


@asynccontextmanager
async def embedded_contract(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Contract]:
    """Open one of `EMBEDDED`, the fixture's parameter."""
    prefix = request.node.name
    made: Contract
    if request.param == "memory":
        made = MemoryContract(MemoryStore(), prefix)
    elif request.param == "lmdb":
        made = LmdbContract(LmdbStore(tmp_path / "db", monotonic_s=time.monotonic), prefix)
        await made.store.start()
    else:
        made = ClientContract(request.getfixturevalue("store_process"), prefix)
    yield made
    await made.close()
