"""Owns the fixtures of the audit."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit.world import Run, make_run
from tests.minted import MintedCampaign, tiny_campaign


@pytest.fixture(scope="session")
def minted(tmp_path_factory: pytest.TempPathFactory) -> MintedCampaign:
    """Give the tiny campaign, minted once; nobody writes to it."""
    return tiny_campaign(tmp_path_factory.mktemp("minted"))


@pytest.fixture
def run(minted: MintedCampaign, tmp_path: Path) -> Iterator[Run]:
    """Give an empty run."""
    made = make_run(minted, tmp_path)
    yield made
    made.engine.dispose()
