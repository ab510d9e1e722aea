"""Owns what all tests need of pytest itself, and the seed of those that draw."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.servers.tikv import heal_all, told_as_deaths
from tests.stalls import Stalls

SEED_VARIABLE = "HONGBAO_SEED"
EXAMPLES_VARIABLE = "HONGBAO_NEW_EXAMPLES"  # set it to let Hypothesis look at others each time
SEED = 20160207  # the evening that the checklist comes from

settings.register_profile(
    "hongbao",
    deadline=None,  # how long an example takes tells how busy the machine is
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=EXAMPLES_VARIABLE not in os.environ,  # else each run looks at other examples
    print_blob=True,
)
settings.load_profile("hongbao")


@pytest.fixture(scope="session")
def seed() -> int:
    """Give the seed that all stories draw from."""
    return int(os.environ.get(SEED_VARIABLE, SEED))


@pytest.fixture(scope="session")
def stalls() -> Iterator[Stalls]:
    """Give the record of when this process, and so the machine, stood still."""
    with Stalls() as recorded:
        yield recorded


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Begin each test with whole clusters: one that lost a store unseen may lose no second one."""
    heal_all()
    with told_as_deaths():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Run a test again that a server failed which died of itself."""
    with told_as_deaths():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Tell the command that repeats a story that failed."""
    report = yield
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        seed = os.environ.get(SEED_VARIABLE, SEED)
        test = item.nodeid.partition("@")[0]
        command = f"{SEED_VARIABLE}={seed} .venv/bin/python -m pytest '{test}'"
        report.sections.append(("repeat this with", command))
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Make `xdist_group` count again: pytest 9.2 no longer reads the id that xdist 3.8 writes.

    Without it every group is spread over the workers, and each sets up its module's fixtures.
    """
    for item in items:
        grouped = vars(item).get("_nodeid")
        if grouped is not None and grouped != item.nodeid:
            item._id = type(item._id).parse(grouped)
