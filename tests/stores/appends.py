"""Appends to the logs of several shards through real owners while a store breaks; judges it all.

A shard whose owner stops is taken over with the next epoch, and clients repeat what was not
answered: what they were told, how long they waited and what lies in the store is the history.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from hongbao.domain.errors import Fenced, HongbaoError, Transient
from hongbao.shards.block import Block, ShardKey
from hongbao.shards.owner import Owner, OwnerLimits
from hongbao.shards.ports import LogStore
from hongbao.shards.reader import LogReader

from tests.sim.dice import Dice
from tests.sim.history import (
    Seen,
    Violation,
    check_derived,
    check_log,
    check_reader,
    read_log,
)
from tests.sim.toy import ENTRY, TOTAL, ToyMachine, add
from tests.waiting import LIMIT_S

PLANE = "t"
CLIENTS = 3
PAUSE_S = 0.02
POLL_S = 0.02
AMOUNT_MAX = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """Is an operation that was acknowledged; times are the event loop's."""

    shard: int
    number: int
    total: int
    asked_s: float
    answered_s: float


@dataclass
class Appends:
    """Is what clients, readers and owners saw."""

    answers: list[Answer] = field(default_factory=list)
    seen: dict[int, list[Seen]] = field(default_factory=dict)
    takeovers: Counter[int] = field(default_factory=Counter)


class Writers:
    """Keeps shards served, busy and read, from `start` to `finish`."""

    def __init__(self, stores: dict[int, LogStore], dice: Dice) -> None:
        self.appends = Appends(seen={shard: [] for shard in stores})
        self._stores = stores
        self._dice = dice
        self._owners: dict[int, Owner] = {}
        self._stopping = False
        self._clients: dict[int, list[asyncio.Task[None]]] = {shard: [] for shard in stores}
        self._serving: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for index, (shard, store) in enumerate(self._stores.items()):
            self._serving.append(asyncio.create_task(self._serve(shard, store)))
            self._reading.append(asyncio.create_task(self._read(shard, store)))
            for client in range(CLIENTS):
                first = (index * CLIENTS + client) << 32
                self._clients[shard].append(asyncio.create_task(self._ask(shard, first)))

    async def finish(self) -> None:
        """Let every client get its last answer, drain the owners, let readers reach the end."""
        self._stopping = True
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*self._serving)
            await asyncio.gather(*self._reading)

    async def _serve(self, shard: int, store: LogStore) -> None:
        """Own the shard, again with the next epoch when the owner had to stop, until all is done.

        An owner that is drained ends as Fenced.
        """
        while not isinstance(await self._own(shard, store), Fenced):
            self._owners.pop(shard, None)
            await asyncio.sleep(POLL_S)

    async def _own(self, shard: int, store: LogStore) -> HongbaoError:
        self.appends.takeovers[shard] += 1
        try:
            owner = await self._take_over(shard, store, self.appends.takeovers[shard])
        except Transient as error:
            return error
        self._owners[shard] = owner
        while owner.stopped_by is None:
            if self._stopping and all(client.done() for client in self._clients[shard]):
                await owner.drain()
            await asyncio.sleep(POLL_S)
        return owner.stopped_by

    async def _take_over(self, shard: int, store: LogStore, epoch: int) -> Owner:
        return await Owner.take_over(
            store,
            PLANE,
            shard,
            epoch=epoch,
            nonce=self._dice.nonce(),
            lease_valid=lambda: True,
            machine=ToyMachine(),
            limits=OwnerLimits(checkpoint_blocks=64),
        )

    async def _ask(self, shard: int, number: int) -> None:
        """Add one amount after the other, each until it is acknowledged."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            number += 1
            operation = add(number, 1 + self._dice.below(AMOUNT_MAX))
            asked_s = loop.time()
            result = await self._until_answered(shard, operation)
            total = int(TOTAL.unpack(result)[0])
            self.appends.answers.append(Answer(shard, number, total, asked_s, loop.time()))
            await asyncio.sleep(PAUSE_S)

    async def _until_answered(self, shard: int, operation: bytes) -> bytes:
        while True:
            owner = self._owners.get(shard)
            if owner is not None:
                with suppress(Transient, Fenced):
                    return await owner.submit(operation)
            await asyncio.sleep(POLL_S)

    async def _read(self, shard: int, store: LogStore) -> None:
        """Follow the log to its end, and look whether what each block derived is there."""
        reader, machine = LogReader(store, PLANE, shard), ToyMachine()
        seen = self.appends.seen[shard]
        while True:
            done = self._stopping and all(task.done() for task in self._serving)
            with suppress(Transient):
                await reader.look(len(seen))
                blocks = await reader.read(len(seen))
                for block in blocks:
                    pairs = [pair for entry in block.entries for pair in machine.derive(entry)]
                    there = await asyncio.gather(*(_is_there(store, key) for key, _ in pairs))
                    seen.append(Seen(block.position, block, all(there)))
                if done and not blocks:
                    return
            await asyncio.sleep(POLL_S)


async def _is_there(store: LogStore, key: bytes) -> bool:
    return await Answered(store).get(key) is not None


class Answered:
    """Is how a judge reads: until there is an answer. A store that is down says nothing."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self.create, self.put_many = store.create, store.put_many

    async def get(self, key: bytes) -> bytes | None:
        return await self._ask(lambda: self._store.get(key))

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return await self._ask(lambda: self._store.scan(start, end, limit))

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(LIMIT_S):
            while True:
                with suppress(Transient):
                    return await call()
                await asyncio.sleep(POLL_S)


async def check_appends(store: LogStore, appends: Appends) -> list[Violation]:
    """Return every broken rule over what was seen and what lies in the store."""
    found, store = [], Answered(store)
    for shard, seen in appends.seen.items():
        key = ShardKey(PLANE, shard)
        blocks = await read_log(store, key)
        found += check_log(key, blocks)
        found += check_reader(key, blocks, seen, complete=True)
        found += await check_derived(store, key, blocks, ToyMachine())
        answers = [answer for answer in appends.answers if answer.shard == shard]
        found += check_acknowledged(key, blocks, answers)
    return found


def check_acknowledged(
    key: ShardKey, blocks: Sequence[Block], answers: Sequence[Answer]
) -> list[Violation]:
    """What was acknowledged is in the log once, with the total that was told; nothing is twice."""
    entries = [ENTRY.unpack(entry) for block in blocks for entry in block.entries]
    times = Counter(number for number, _, _ in entries)
    totals = {number: total for number, _, total in entries}
    found = [
        Violation("no operation is doubled", f"{key}: {number} is in the log {count} times")
        for number, count in times.items()
        if count > 1
    ]
    found += [
        Violation("no acknowledged operation is lost", f"{key}: {answer}")
        for answer in answers
        if answer.number not in times
    ]
    found += [
        Violation("what was told is in the log", f"{key}: {answer}, the log has {total}")
        for answer in answers
        if (total := totals.get(answer.number, answer.total)) != answer.total
    ]
    return found


def resumed_s(appends: Appends, broke_s: float) -> dict[int, float]:
    """Return, by shard, how long after a fault the first later question was answered.

    Infinite when none was.
    """
    return {
        shard: min(
            (one.answered_s for one in appends.answers if one.shard == shard
             and one.asked_s >= broke_s),
            default=float("inf"),
        ) - broke_s
        for shard in appends.seen
    }  # fmt: skip


def check_resumed(
    appends: Appends,
    faults: dict[str, float],
    within_s: float,
    stalled_s: Callable[[float, float], float] = lambda from_s, until_s: 0.0,
) -> list[Violation]:
    """Every shard appends again soon after each fault (by name: when it was).

    The time in which the machine stood still, which `stalled_s` tells, is nobody's fault.
    """
    return [
        Violation("appends go on", f"shard {shard}: {after_s:.2f} s after {name}")
        for name, broke_s in faults.items()
        for shard, after_s in resumed_s(appends, broke_s).items()
        if after_s - stalled_s(broke_s, broke_s + after_s) > within_s
    ]
