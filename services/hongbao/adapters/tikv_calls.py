"""Owns how many calls to TiKV are under way and how long each may take; knows no client of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from hongbao.domain.errors import Overloaded, Transient

IN_FLIGHT_MAX: Final = 128
WAITING_MAX: Final = 4096
TRY_S_MAX: Final = 2.0
"""One request with all its re-routing. A store that hangs is given up, and asked after at PD, only
when this is over, so it bounds how long appends stand still."""
CALL_S_MAX: Final = 10.0
"""Waiting for a turn; and then any call of many parts (a put, a scan). One-key calls take less."""

T = TypeVar("T")


class Turns:
    """Lets a bounded number of calls through at a time, and a bounded number wait."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and keep it. Raises Overloaded or Transient: nothing was sent."""
        if self._waiting >= WAITING_MAX:
            raise Overloaded(f"TiKV: {self._waiting} calls wait in this process")
        self._waiting += 1
        try:
            await within(CALL_S_MAX, self._turns.acquire())
        except TimeoutError:
            raise Transient(f"TiKV: no turn within {CALL_S_MAX} s") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


async def within(limit_s: float, call: Awaitable[T]) -> T:
    """Return what the call gives. Raises TimeoutError when it takes longer or was cut off.

    A client that is closed cancels what is under way, which must not look as if our own task were
    cancelled.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise TimeoutError("the client was closed under the call") from None
