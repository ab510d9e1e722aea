"""Owns the loop that settles one claims shard: read, fetch the rules, post. Refuses to decide.

Postings run in a thread, so that leases are renewed while a database waits for its disk.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from hongbao.domain.claim import logged_claims
from hongbao.domain.errors import Corrupt, Fenced, Transient
from hongbao.settle.payout import Payout
from hongbao.settle.rules import Rules, judgeable
from hongbao.settle.settler import Settled, Settler, cut_posting
from hongbao.shards.block import Block, ShardKey
from hongbao.shards.ports import LogStore
from hongbao.shards.reader import READ_AHEAD_BLOCKS, LogReader
from hongbao.shards.replay import PAGE_BLOCKS, read_blocks

PLANE: Final = "claims"
RETRY_S_MAX: Final = 2.0

log = structlog.get_logger()

Offload = Callable[..., Awaitable[Any]]
"""Runs a blocking call elsewhere; the simulation runs it at once."""


class Counts(Protocol):
    """Counts what settlement does, for metrics."""

    def settled(self, shard: int, settled: Settled, lag_blocks: int) -> None: ...

    def paid_out(self, shard: int, answer: str, transfers: int) -> None: ...


@dataclass(frozen=True)
class SettleTiming:
    """Bounds the waits of the loop."""

    poll_s: float = 0.1
    """Wait when there is nothing to settle: part of the credit latency."""
    retry_s: float = 0.2
    """First back-off after a store or database error; doubles up to RETRY_S_MAX."""


class Settlement:
    """Settles one claims shard."""

    def __init__(
        self,
        store: LogStore,
        settler: Settler,
        rules: Rules,
        *,
        payout: Payout | None = None,
        rounds: Callable[[], contextlib.AbstractAsyncContextManager[bool]],
        counts: Counts | None = None,
        timing: SettleTiming | None = None,
        offload: Offload = asyncio.to_thread,
    ) -> None:
        """`rounds` begins a round of work, or tells that settlement is paused: see settle.pause.

        `payout` pays pending transfers.
        """
        self._reader = LogReader(store, PLANE, settler.shard)
        self._settler = settler
        self._rules = rules
        self._payout = payout
        self._rounds = rounds
        self._counts = counts
        self._timing = timing or SettleTiming()
        self._offload = offload
        self._key = ShardKey(PLANE, settler.shard)
        self.lag_blocks = 0
        """Applied blocks behind the position when the log was last read, at most READ_AHEAD."""

    async def run(self, leave: asyncio.Event) -> None:
        """Settle and pay until told to leave.

        Raises Corrupt: the log or the ledger contradicts itself, or a bug does.
        """
        works = [self.step] if self._payout is None else [self.step, self.pay]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(leave.wait())]
        tasks += [asyncio.create_task(self._forever(work)) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Corrupt:
            raise
        except Exception as error:
            raise Corrupt(f"{self._key}: {type(error).__name__}: {error}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self) -> bool:
        """Settle one posting; False when there was nothing."""
        position = await self._offload(self._settler.position)
        blocks = await self._read(position)
        self.lag_blocks = self._reader.applied - position
        if not blocks:
            return False
        book = await self._rules.book()  # after the blocks: see settle.rules
        blocks = judgeable(blocks, book)
        settled: Settled = await self._offload(self._settler.settle, blocks, book)
        self.lag_blocks -= settled.blocks
        if settled.quarantined:
            log.error("claims_quarantined", shard=str(self._key), claims=settled.quarantined)
        if self._counts is not None:
            self._counts.settled(self._settler.shard, settled, self.lag_blocks)
        return True

    async def pay(self) -> bool:
        """Pay some pending transfers; False when there were none or all must wait."""
        assert self._payout is not None
        done = await self._payout.step()
        if self._counts is not None and done.calls:
            for answer in ("paid", "existed", "refused", "deferred"):
                self._counts.paid_out(self._settler.shard, answer, getattr(done, answer))
        return done.calls > done.deferred

    async def _read(self, position: int) -> Sequence[Block]:
        """Return the blocks of one posting."""
        blocks: list[Block] = []
        await self._reader.look(position)
        while page := await self._reader.read(position + len(blocks)):
            blocks += page
            if len(cut_posting(blocks)) < len(blocks):
                break
        return cut_posting(blocks)

    async def _forever(self, work: Callable[[], Awaitable[bool]]) -> None:
        retry_s = self._timing.retry_s
        while True:
            try:
                async with self._rounds() as may_work:
                    worked = may_work and await work()
                if not worked:
                    await asyncio.sleep(self._timing.poll_s)
                retry_s = self._timing.retry_s
            except Fenced as error:  # another process settles too: go on where the ledger stands
                log.warning("settle_overtaken", shard=str(self._key), reason=str(error))
                await asyncio.sleep(retry_s)
            except Transient as error:
                log.warning("settle_failed", shard=str(self._key), reason=str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_S_MAX)


async def log_lag(store: LogStore, shard: int, position: int) -> int:
    """Return how many durable blocks with claims lie behind a position, applied or not.

    At most about READ_AHEAD. Blocks that only begin an epoch or close the log are settled already.
    """
    lag = 0
    while lag < READ_AHEAD_BLOCKS:
        end = position + PAGE_BLOCKS
        blocks = await read_blocks(store, ShardKey(PLANE, shard), position, end)
        lag += sum(bool(logged_claims(block.entries)) for block in blocks)
        if len(blocks) < PAGE_BLOCKS:
            break
        position = end
    return lag
