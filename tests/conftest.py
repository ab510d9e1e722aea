"""Owns what all tests need of pytest itself."""

from typing import Any

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Make `xdist_group` count again: pytest 9.2 no longer reads the id that xdist 3.8 writes.

    Without it every group is spread over the workers, and each sets up its module's fixtures.
    """
    for item in items:
        grouped = vars(item).get("_nodeid")
        if grouped is not None and grouped != item.nodeid:
            item._id = type(item._id).parse(grouped)
