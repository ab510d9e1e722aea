"""Owns finding the owner of a shard and carrying operations to it, in this process or another."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import Final, Protocol

import structlog

from hongbao.domain.errors import Ambiguous, Corrupt, Fenced, HongbaoError, Overloaded, Transient
from hongbao.shards.member import Member
from hongbao.shards.owner import Owner
from hongbao.shards.ports import Coordination, Versioned

NO_OWNER_RETRY_S: Final = 0.3
OWNER_WAIT_S: Final = 2.5
"""A lease runs out and a new owner replays well within this; longer waits are the caller's."""
RETRY_S: Final = 0.2
CALL_OPERATIONS_MAX: Final = 512
"""Operations in one call to a peer."""
PEER_CALLS_MAX: Final = 2
"""Calls under way per shard at a peer; what arrives meanwhile shares the next one."""
PEER_WAITING_MAX: Final = 4096
LEASES: Final = "lease/"

log = structlog.get_logger()

Outcome = bytes | HongbaoError
FindOwner = Callable[[str, int], Owner | None]


class _Moved(Ambiguous):
    """Says that a call was given up because its shard has another owner now."""


class Peers(Protocol):
    """Carries operations to other processes."""

    async def submit(
        self, address: str, plane: str, shard: int, operations: Sequence[bytes]
    ) -> Sequence[Outcome]:
        """Return one outcome per operation, in order.

        Raises Fenced when the process at the address does not own the shard (nothing done),
        Ambiguous when the call itself failed.
        """


async def submit_all(owner: Owner, operations: Sequence[bytes]) -> list[Outcome]:
    """Submit operations to an owner in this process and wait for all of their outcomes."""
    outcomes: list[Outcome | asyncio.Future[bytes]] = []
    for operation in operations:
        try:
            outcomes.append(owner.enqueue(operation))
        except HongbaoError as error:
            outcomes.append(error)
    waits = [outcome for outcome in outcomes if isinstance(outcome, asyncio.Future)]
    results = iter(await asyncio.gather(*waits, return_exceptions=True))
    ended = [
        next(results) if isinstance(outcome, asyncio.Future) else outcome for outcome in outcomes
    ]
    return [_domain_outcome(outcome) for outcome in ended]


def _domain_outcome(outcome: object) -> Outcome:
    if isinstance(outcome, bytes | HongbaoError):
        return outcome
    assert isinstance(outcome, BaseException)
    raise outcome


class ShardRouter:
    """Submits operations to whoever owns their shard, again to the next owner when one dies.

    Repeating is safe because every operation of a plane is idempotent: a machine answers an
    operation that it has done before with its first result (design §1).
    """

    def __init__(
        self,
        coordination: Coordination,
        find_owner: FindOwner,
        peers: Peers,
        *,
        owner_wait_s: float = OWNER_WAIT_S,
    ) -> None:
        self._coordination = coordination
        self._find_owner = find_owner
        self._peers = peers
        self._owner_wait_s = owner_wait_s
        self._addresses: dict[tuple[str, int], str] = {}
        self._revisions: dict[tuple[str, int], int] = {}  # of the newest fact of each shard
        self._queues: dict[tuple[str, str, int], _PeerQueue] = {}
        self._pauses: dict[tuple[str, int], asyncio.Future[None]] = {}

    async def submit(self, plane: str, shard: int, operation: bytes) -> bytes:
        """Return the operation's result from its owner, durable.

        A shard without an owner is waited for: a take-over costs latency, not failures (R24).
        The wait begins with the first failure: how long an owner that was paused kept the call
        says nothing about its successor.
        Raises Transient (nobody owned the shard all the while, or overloaded), Ambiguous (the
        outcome is unknown) or Rejected.
        """
        give_up_s = 0.0
        while True:
            try:
                owner = self._find_owner(plane, shard)
                if owner is not None:
                    return await owner.enqueue(operation)
                return await self._submit_to_peer(plane, shard, operation)
            except Overloaded:
                raise
            except _Moved:
                continue
            except (Fenced, Transient) as error:  # the shard has moved, or is about to
                now_s = asyncio.get_running_loop().time()
                give_up_s = give_up_s or now_s + self._owner_wait_s
                if now_s >= give_up_s:
                    if isinstance(error, Transient):
                        raise
                    raise Transient(str(error), retry_after_s=NO_OWNER_RETRY_S) from None
            await self._pause(plane, shard)

    async def _pause(self, plane: str, shard: int) -> None:
        """Wait for a news of the shard, RETRY_S at most; all who wait share one timer."""
        self._addresses.pop((plane, shard), None)
        pause = self._pauses.get((plane, shard))
        if pause is None or pause.done():
            loop = asyncio.get_running_loop()
            pause = self._pauses[(plane, shard)] = loop.create_future()
            loop.call_later(RETRY_S, _end, pause)
        await asyncio.shield(pause)

    async def follow(self, plane: str) -> None:
        """Learn for ever where shards go, so that a paused owner is left before a call fails.

        Without it the router finds out from the calls themselves.
        """
        prefix = f"{LEASES}{plane}/"
        while True:
            try:
                newest = await self._learn_all(plane)
                async for fact in self._coordination.watch(prefix, after_revision=newest):
                    self._learn(plane, fact)
            except Exception:  # outermost level of a loop: it must not end in silence
                log.exception("owners_not_followed", plane=plane)
            await asyncio.sleep(RETRY_S)

    async def _learn_all(self, plane: str) -> int:
        """Learn where all shards are now; return a revision to go on from.

        It is that of the newest lease of any kind, best that of a process which has just started:
        where no shard of the plane is held, all that ever was would be told again.
        """
        facts = await self._coordination.read_prefix(LEASES)
        held = [fact for fact in facts if fact.key.startswith(f"{LEASES}{plane}/")]
        for fact in held:
            self._learn(plane, fact)
        there = {int(fact.key.rpartition("/")[2]) for fact in held}
        for key in [key for key in self._addresses if key[0] == plane and key[1] not in there]:
            del self._addresses[key]
        return max((fact.revision for fact in facts), default=0)

    def _learn(self, plane: str, fact: Versioned) -> None:
        shard = int(fact.key.rpartition("/")[2])
        if fact.revision < self._revisions.get((plane, shard), 0):
            return  # told late: calls are at a newer owner already
        self._revisions[(plane, shard)] = fact.revision
        self._addresses.pop((plane, shard), None)
        if not fact.value:
            return
        try:
            address = Member.from_json(fact.value).address
        except Corrupt as error:  # the others are followed on
            log.error("owner_unreadable", key=fact.key, reason=str(error))
            return
        self._addresses[(plane, shard)] = address
        self._leave_others(plane, shard, address)
        if pause := self._pauses.get((plane, shard)):
            _end(pause)

    def _leave_others(self, plane: str, shard: int, address: str) -> None:
        """Give up what was sent to the owner before: a paused process never answers."""
        for target in [target for target in self._queues if target[1:] == (plane, shard)]:
            if target[0] != address:
                self._queues.pop(target).give_up()

    async def _submit_to_peer(self, plane: str, shard: int, operation: bytes) -> bytes:
        address = await self._address_of(plane, shard)
        queue = self._queues.get((address, plane, shard))
        if queue is None:
            queue = _PeerQueue(self._peers, address, plane, shard)
            self._queues[(address, plane, shard)] = queue
        return await queue.submit(operation)

    async def _address_of(self, plane: str, shard: int) -> str:
        address = self._addresses.get((plane, shard))
        if address is None:
            fact = await self._coordination.read(f"{LEASES}{plane}/{shard}")
            if not fact.value:
                raise Transient(
                    f"{plane}/{shard}: nobody owns it now", retry_after_s=NO_OWNER_RETRY_S
                )
            address = self._addresses[(plane, shard)] = Member.from_json(fact.value).address
            self._revisions[(plane, shard)] = fact.revision
        return address


def _end(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)


_Call = tuple[bytes, asyncio.Future[bytes]]


class _PeerQueue:
    """Gathers the operations for one shard at one address into few calls."""

    def __init__(self, peers: Peers, address: str, plane: str, shard: int) -> None:
        self._peers = peers
        self._target = (address, plane, shard)
        self._waiting: deque[_Call] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._sending = 0
        self._sent: list[list[_Call]] = []

    async def submit(self, operation: bytes) -> bytes:
        if len(self._waiting) >= PEER_WAITING_MAX:
            raise Overloaded(f"{self._target}: {len(self._waiting)} operations wait")
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, done))
        if self._sending < PEER_CALLS_MAX:
            self._sending += 1
            sender = asyncio.ensure_future(self._send_waiting())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return await done

    def give_up(self) -> None:
        """Fail what waits and what was sent; nothing is sent from here any more."""
        moved = [done for calls in (*self._sent, self._waiting) for _, done in calls]
        self._waiting.clear()
        for sender in list(self._senders):
            sender.cancel()
        for done in moved:
            if not done.done():
                done.set_exception(_Moved(f"{self._target}: the shard has moved"))

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._send_batch()
        finally:
            self._sending -= 1  # not when the task is seen to be done: a submit may come before

    async def _send_batch(self) -> None:
        size = min(len(self._waiting), CALL_OPERATIONS_MAX)
        batch = [self._waiting.popleft() for _ in range(size)]
        self._sent.append(batch)
        outcomes = await self._outcomes([item for item, _ in batch])
        self._sent = [calls for calls in self._sent if calls is not batch]
        for (_, done), outcome in zip(batch, outcomes, strict=True):
            if done.done():
                continue
            if isinstance(outcome, HongbaoError):
                done.set_exception(copy(outcome))
            else:
                done.set_result(outcome)

    async def _outcomes(self, operations: Sequence[bytes]) -> Sequence[Outcome]:
        """Return one outcome per operation, whatever happens to the call."""
        try:
            outcomes = await self._peers.submit(*self._target, operations)
            if len(outcomes) == len(operations):
                return outcomes
            failure: HongbaoError = Ambiguous(f"{self._target}: answered {len(outcomes)} outcomes")
        except HongbaoError as error:
            failure = error
        except Exception as error:  # outermost level of a call: its callers must not wait for ever
            log.exception("peer_call_broken", target=self._target)
            failure = Ambiguous(f"{self._target}: {type(error).__name__}: {error}")
        return [failure] * len(operations)
