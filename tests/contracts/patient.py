"""Is a LogStore over a real one, for tests on machines that stand still for seconds.

A call that a stall falls into fails by its own time limit, and so may the next ones, while the
servers elect leaders anew. That is no breach of the contract: reads and puts may be repeated, and
whether a create happened can be read back. What fails without a stall fails here, too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from hongbao.domain.errors import Ambiguous, Transient

from tests.stalls import Stalls
from tests.waiting import LIMIT_S, POLL_S

SETTLED_S_MAX = 10.0
"""Servers have leaders again so long after a stall."""

T = TypeVar("T")


class Patient:
    """Asks again what failed while the machine stood still, or shortly after."""

    def __init__(self, inner: Any, stalls: Stalls) -> None:
        self.bare = inner
        self._stalls = stalls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)

    async def get(self, key: bytes) -> bytes | None:
        return await self._ask(lambda: self.bare.get(key))

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return await self._ask(lambda: self.bare.scan(start, end, limit))

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        await self._ask(lambda: self.bare.put_many(items))

    async def create(self, key: bytes, value: bytes) -> bool:
        """Create; what is in doubt after a stall is read back, as an owner does it."""
        doubtful = False

        async def settled() -> bool:
            nonlocal doubtful
            try:
                created = bool(await self.bare.create(key, value))
            except Ambiguous:
                doubtful = True
                if self._stood_still() and await self.get(key) == value:
                    return True
                raise
            return created or (doubtful and await self.get(key) == value)

        return await self._ask(settled)

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        give_up_s = time.monotonic() + LIMIT_S
        while True:
            try:
                return await call()
            except Transient:
                if not self._stood_still() or time.monotonic() > give_up_s:
                    raise
            await asyncio.sleep(POLL_S)

    def _stood_still(self) -> bool:
        now_s = time.monotonic()
        return self._stalls.within_s(now_s - SETTLED_S_MAX, now_s) > 0
