"""Owns racing creations at a store: who wins, and who cannot be told whether he did."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from hongbao.domain.errors import Ambiguous

RACES_MAX = 3
"""A race in which somebody is in doubt is run again so often."""

T = TypeVar("T")


async def raced(calls: Sequence[Awaitable[T | None]]) -> tuple[list[T], bool]:
    """Return what racing creations gave, and whether one of them is in doubt.

    The losers are where a store took longer than one try: they raise Ambiguous.
    """
    told = await asyncio.gather(*calls, return_exceptions=True)
    given: list[T] = []
    for one in told:
        if isinstance(one, BaseException):
            if not isinstance(one, Ambiguous):
                raise one
        elif one is not None:
            given.append(one)
    return given, any(isinstance(one, Ambiguous) for one in told)
