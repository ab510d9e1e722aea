"""Owns the seed of the fault tests, and tells it with the command that repeats a failure."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SEED_VARIABLE = "HONGBAO_SEED"
SEED = 20160207  # the evening that the checklist comes from

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def seed() -> int:
    """Give the seed that all stories draw from."""
    return int(os.environ.get(SEED_VARIABLE, SEED))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and item.path.is_relative_to(_HERE):
        seed = os.environ.get(SEED_VARIABLE, SEED)
        test = item.nodeid.removesuffix("@processes")
        command = f"{SEED_VARIABLE}={seed} .venv/bin/python -m pytest '{test}'"
        report.sections.append(("repeat this with", command))
    return report
