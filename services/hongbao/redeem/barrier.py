"""Owns waiting until no block that older facts let through is still on its way to the log (F20).

Every owner decides by its own process's facts, one block after the other. So a decision that a
shard's owner makes after a change proves that what was decided there before is known: durable,
or never to be. An owner that gave up on a block without knowing its outcome answers no more;
then the next owner's answer proves it, because a take-over settles every older position.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from hongbao.domain.errors import HongbaoError, Rejected
from hongbao.domain.manifest import Manifest

PROBE: Final = b""
"""Is no claim, so a claims machine refuses it, in its turn; nothing is logged for it."""

Submit = Callable[[str, int, bytes], Awaitable[bytes]]

log = structlog.get_logger()


class BlockBarrier:
    """Asks the owner of every claims shard for one decision.

    A shard that nobody serves holds the barrier back, however long that is: nobody knows what
    its last owner left on the way.
    """

    def __init__(
        self, submit: Submit, plane: str, manifests: Iterable[Manifest], retry_s: float
    ) -> None:
        self._submit: Final = submit
        self._plane: Final = plane
        self._retry_s: Final = retry_s
        self._shards: frozenset[int] = frozenset()
        self.use_manifests(manifests)

    def use_manifests(self, manifests: Iterable[Manifest]) -> None:
        """Ask the shards of another set of schemes too; shards once known may hold claims."""
        self._shards |= {file.claims_shard for one in manifests for file in one.files}

    async def passed(self, probe: bytes = PROBE) -> None:
        """Return when every block decided before this call has a known outcome.

        `probe` is the operation that is decided behind them: PROBE, or CLOSING.
        """
        await asyncio.gather(*(self._shard_passed(shard, probe) for shard in sorted(self._shards)))

    async def _shard_passed(self, shard: int, probe: bytes) -> None:
        while True:
            try:
                await self._submit(self._plane, shard, probe)
                return
            except Rejected:
                return
            except HongbaoError as error:
                log.warning("ack_waits", shard=shard, error=str(error))
            except Exception:  # outermost level of a loop: acks must never go silent
                log.exception("barrier_broken", shard=shard)
            await asyncio.sleep(self._retry_s)
