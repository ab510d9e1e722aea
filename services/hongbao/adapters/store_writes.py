"""Owns how the creates and puts of one process share calls to the store; refuses to retry any.

What is written while a call is under way waits and shares the next one: under load many shards
append with one call and one fsync, and an idle process writes at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from copy import copy
from typing import Final

import structlog

from hongbao.domain.errors import Ambiguous, HongbaoError, Overloaded, Transient
from hongbao.proto.v1 import store_pb2 as pb
from hongbao.shards import wire

CALL_BYTES_MAX: Final = 4 << 20
CALL_ITEMS_MAX: Final = 512
"""Below the writes that a store takes at once."""
WAITING_MAX: Final = 4096
PUT_WAIT_S: Final = 0.008
"""Nobody's answer waits for a put: it goes with the next create, or alone after this."""

log = structlog.get_logger()

Waiting = tuple[pb.WriteItem, asyncio.Future[bool]]
Send = Callable[[Sequence[pb.WriteItem]], Awaitable[pb.WriteReply]]


class StoreWrites:
    """Gathers writes; each gets its own outcome.

    One call is under way at a time: the store has one writer, a second would only wait there.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[Waiting] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._sending = False
        self._closed = False
        self._urgent = False  # a create waits, or puts have waited long enough
        self._put_timer: asyncio.TimerHandle | None = None

    async def write(self, pairs: Sequence[tuple[bytes, bytes]], *, create: bool) -> bool:
        """Write one pair if its key is absent (False: it was there), or put all in order.

        A write waits for one call before its own, so for twice a call's timeout at most. Raises
        what the store raised, Ambiguous when the call failed on the way, Transient behind `close`.
        """
        if self._closed:
            raise Transient("the store client was closed")
        if len(self._waiting) >= WAITING_MAX:
            raise Overloaded(f"store: {len(self._waiting)} writes wait in this process")
        item = pb.WriteItem(
            pairs=[pb.Pair(key=key, value=value) for key, value in pairs], create=create
        )
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if create:
            self._send_now()
        elif self._put_timer is None and not self._urgent:
            self._put_timer = asyncio.get_running_loop().call_later(PUT_WAIT_S, self._send_now)
        return await done

    def close(self) -> None:
        """Give up: whatever is under way or waits ends as Ambiguous."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
        self._stop_waiting()
        _close(self._waiting)
        self._waiting.clear()

    def _send_now(self) -> None:
        self._urgent = True
        if not self._sending:
            self._sending = True
            self._sender = asyncio.ensure_future(self._send_waiting())

    def _stop_waiting(self) -> None:
        self._urgent = False
        if self._put_timer is not None:
            self._put_timer.cancel()
            self._put_timer = None

    async def _send_waiting(self) -> None:
        batch: list[Waiting] = []
        try:
            while self._urgent:
                batch = self._take()
                _tell(batch, await self._outcomes([item for item, _ in batch]))
        except asyncio.CancelledError:
            _close(batch)
            raise
        finally:
            self._sending = False  # not when the task is seen to be done: a write may come before

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < CALL_ITEMS_MAX:
            size += self._waiting[0][0].ByteSize()
            if batch and size > CALL_BYTES_MAX:
                break
            item, done = self._waiting.popleft()
            if not done.cancelled():  # its caller is gone, and nothing was done
                batch.append((item, done))
        if not self._waiting:
            self._stop_waiting()
        return batch

    async def _outcomes(self, items: Sequence[pb.WriteItem]) -> list[bool | HongbaoError]:
        if not items:
            return []
        try:
            return _outcomes_of(await self._send(items), len(items))
        except HongbaoError as error:
            failure = error
        except Exception as error:  # outermost level of a call: no writer must wait for ever
            log.exception("store_call_broken")
            failure = Ambiguous(f"store: {type(error).__name__}: {error}")
        return [failure] * len(items)


def _outcomes_of(reply: pb.WriteReply, count: int) -> list[bool | HongbaoError]:
    outcomes: list[bool | HongbaoError] = list(reply.written)
    if len(outcomes) != count:
        raise Ambiguous(f"the store answered {len(outcomes)} of {count} writes")
    for failure in reply.failures:
        outcomes[failure.index] = wire.error_of(failure)
    return outcomes


def _close(batch: Collection[Waiting]) -> None:
    _tell(batch, [Ambiguous("the store client was closed")] * len(batch))


def _tell(batch: Iterable[Waiting], outcomes: Iterable[bool | HongbaoError]) -> None:
    for (_, done), outcome in zip(batch, outcomes, strict=True):
        if done.done():
            continue
        if isinstance(outcome, HongbaoError):
            done.set_exception(copy(outcome))
        else:
            done.set_result(outcome)
