"""Owns how tests wait: for a fact, never for a time that is guessed.

A limit says only that something hangs; how long a thing takes tells no more than how busy the
machine is. A time that the product promises stays in the test that is about it.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

LIMIT_S = 60.0
"""What hangs is told after this long; a machine may well stall for a few seconds."""
POLL_S = 0.005


async def until(
    fact: Callable[[], Awaitable[object] | object], what: str = "it", limit_s: float = LIMIT_S
) -> None:
    """Wait until a fact holds, or fail with what never happened."""
    give_up_s = time.monotonic() + limit_s
    while not await _told(fact):
        assert time.monotonic() < give_up_s, f"never happened within {limit_s:g} s: {what}"
        await asyncio.sleep(POLL_S)


async def _told(fact: Callable[[], Awaitable[object] | object]) -> object:
    told = fact()
    return await told if inspect.isawaitable(told) else told
