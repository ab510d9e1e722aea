"""Owns paying pending transfers through a sink outside, largest first; refuses to check claims.

The sink is idempotent by the packet's serial, so every step may be repeated: after a crash
between payment and credit the sink answers `exists`, and the transfer is credited once (F6).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hongbao.domain.errors import Transient
from hongbao.settle.checks import Reason
from hongbao.settle.ports import Ledger, Quarantined, Sink, SinkAnswer, SinkReply, Transfer
from hongbao.shards.ports import Clock

PAYOUT_TRANSFERS_MAX: Final = 256
PAYOUT_CALLS_MAX: Final = 32
DEFERRED_MAX: Final = 4096
DEFER_S: Final = 5.0
LEAVE_S_MAX: Final = 2.0
"""A database that takes longer keeps no shard from leaving; it is recorded behind that."""

Answered = Sequence[tuple[Transfer, SinkReply | None]]
"""Is what a sink said of each transfer; None: nothing, it is asked again later."""


@dataclass(frozen=True)
class PaidOut:
    """Counts what one step did."""

    paid: int = 0
    existed: int = 0
    refused: int = 0
    deferred: int = 0

    @property
    def calls(self) -> int:
        return self.paid + self.existed + self.refused + self.deferred


class Payout:
    """Pays what is pending of one claims shard."""

    def __init__(
        self,
        shard: int,
        ledger: Ledger,
        sink: Sink,
        *,
        paused: Callable[[], bool],
        clock: Clock,
        campaign: str,
        offload: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:
        self._shard = shard
        self._ledger = ledger
        self._sink = sink
        self._paused = paused
        self._clock = clock
        self._campaign = campaign
        self._offload = offload
        self._deferred: dict[int, float] = {}  # serial → not before, so that one never blocks all
        self._behind: Transfer | None = None  # go on here: no room to defer what lies before

    async def step(self) -> PaidOut:
        """Pay up to PAYOUT_TRANSFERS_MAX transfers; once paused, end with the calls under way.

        Who cuts it off, as when the shard is lost, loses the calls under way alone: what was paid
        by then is recorded. Raises Transient when the ledger fails.
        """
        now_s = self._clock.monotonic_s()
        self._deferred = {key: at for key, at in self._deferred.items() if at > now_s}
        limit = PAYOUT_TRANSFERS_MAX + len(self._deferred)
        behind, self._behind = self._behind, None
        found = await self._offload(self._ledger.pending, self._shard, limit, behind)
        due = [one for one in found if one.serial not in self._deferred][:PAYOUT_TRANSFERS_MAX]
        if not due:
            return PaidOut()
        no_room = len(self._deferred) + len(due) > DEFERRED_MAX
        answered = await self._pay_in_order(due)
        if no_room:
            self._behind = due[len(answered) - 1] if answered else behind
        answers = [reply.answer if reply else None for _, reply in answered]
        return PaidOut(
            paid=answers.count(SinkAnswer.PAID),
            existed=answers.count(SinkAnswer.EXISTS),
            refused=answers.count(SinkAnswer.REFUSED),
            deferred=answers.count(None),
        )

    async def _pay_in_order(self, due: Sequence[Transfer]) -> Answered:
        """Pay until paused and record it; what was not begun by then is no part of the answer.

        When cut off, record what was answered: else a shard that moves faster than a step ends
        pays the same transfers again and again and never gets on.
        """
        waiting = iter(due)
        replies: dict[int, SinkReply | None] = {}

        async def pay_next() -> None:
            while not self._paused() and (transfer := next(waiting, None)):
                replies[transfer.serial] = await self._pay(transfer)

        def answered() -> Answered:
            return [(one, replies[one.serial]) for one in due if one.serial in replies]

        try:
            async with asyncio.TaskGroup() as payers:
                for _ in range(PAYOUT_CALLS_MAX):
                    payers.create_task(pay_next())
        except BaseException as error:
            await self._keep(answered(), limit_s=LEAVE_S_MAX)
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from error  # whose name is told
            raise
        await self._keep(answered())
        return answered()

    async def _keep(self, answered: Answered, *, limit_s: float | None = None) -> None:
        """Record what was answered, to its end, whoever ceases to wait for it.

        Cancelled with its waiter, it would not begin where all threads are busy. Raises Transient,
        unless there is a limit to waiting.
        """
        if not answered:
            return
        recording = asyncio.ensure_future(self._offload(self._record, answered))
        recording.add_done_callback(_forget)
        try:
            await asyncio.wait([recording], timeout=limit_s)
        except asyncio.CancelledError:
            await asyncio.wait([recording], timeout=LEAVE_S_MAX)
            raise
        if limit_s is None:
            recording.result()

    async def _pay(self, transfer: Transfer) -> SinkReply | None:
        try:
            return await self._sink.pay(transfer)
        except Transient:
            if len(self._deferred) < DEFERRED_MAX:
                self._deferred[transfer.serial] = self._clock.monotonic_s() + DEFER_S
            return None

    def _record(self, answered: Answered) -> None:
        good = (SinkAnswer.PAID, SinkAnswer.EXISTS)
        credited = [transfer for transfer, reply in answered if reply and reply.answer in good]
        now_ms = self._clock.wall_ms()
        if credited:
            self._ledger.credit(self._shard, credited, now_ms)
        for transfer, reply in answered:
            if reply and reply.answer is SinkAnswer.REFUSED:
                self._ledger.refuse(transfer, self._quarantined(transfer, reply), now_ms)

    def _quarantined(self, transfer: Transfer, reply: SinkReply) -> Quarantined:
        """Keep a refusal beside the claims; it is named by the packet, since no log entry is."""
        return Quarantined(
            shard=self._shard,
            position=transfer.serial,
            entry=-1,
            serial=transfer.serial,
            user=transfer.user,
            sponsor=transfer.sponsor,
            claimed_fen=transfer.amount_fen,
            held_fen=transfer.amount_fen,
            reason=Reason.SINK_REFUSED.label,
            evidence=json.dumps(
                {"campaign": self._campaign, "sink": reply.detail, **transfer._asdict()},
                sort_keys=True,
            ),
        )


def _forget(recording: "asyncio.Future[None]") -> None:
    if not recording.cancelled():
        recording.exception()  # whoever waited may be gone; what is pending is paid again
