"""One gateway for all tests that do not break it."""

import pathlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.transport.gateway import Gateway, gateway_config, running_gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """Is a gateway without upstreams: Access inside, Redeem behind a cluster that is down."""
    folder: pathlib.Path = tmp_path_factory.mktemp("gw")
    async with running_gateway(gateway_config(folder), folder) as running:
        yield running
