"""Owns the world that the tests of redeem share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.redeem.world import World, make_world


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a started redeem role over a tiny campaign, and drain it."""
    made = await make_world(tmp_path)
    yield made
    await made.close()
