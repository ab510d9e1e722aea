"""Owns the fixtures of settlement: a minted campaign, and every ledger there is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hongbao.adapters import sql

from tests import postgres
from tests.minted import CAMPAIGN, RUN, MintedCampaign, tiny_campaign


@pytest.fixture(scope="session")
def minted(tmp_path_factory: pytest.TempPathFactory) -> MintedCampaign:
    """Give the tiny campaign, minted once; nobody writes to it."""
    return tiny_campaign(tmp_path_factory.mktemp("minted"))


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """Give an empty ledger on disk."""
    engine = sql.open_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    sql.prepare_schema(engine, CAMPAIGN, RUN)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Give a running PostgreSQL, or skip saying why there is none."""
    if reason := postgres.why_not():
        pytest.skip(reason)
    with postgres.running_cluster() as url:
        yield url


@pytest.fixture
def postgres_engine(postgres_url: str) -> Iterator[sa.Engine]:
    """Give an empty ledger on PostgreSQL."""
    engine = sql.open_engine(postgres_url)
    sql.metadata.drop_all(engine)
    sql.prepare_schema(engine, CAMPAIGN, RUN)
    yield engine
    engine.dispose()


SQL_ENGINES = [
    "sqlite_engine",
    pytest.param("postgres_engine", marks=pytest.mark.xdist_group("postgres")),
]


@pytest.fixture(params=SQL_ENGINES)
def engine(request: pytest.FixtureRequest) -> sa.Engine:
    """Give an empty ledger in each database."""
    found: sa.Engine = request.getfixturevalue(request.param)
    return found
