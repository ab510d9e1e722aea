"""Records who held the leases of shards and what a reader of their logs saw; judges both.

The rules are those of etcd's and TiKV's promises as the runtime uses them: one holder of a lease at
a time, epochs only rise, each has one writer who was granted it, readers see a prefix (design §1).
When a holder believed in its lease cannot be seen from here: etcd_history.py judges that.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from hongbao.domain.errors import Transient
from hongbao.shards.block import Block, BlockKind, ShardKey
from hongbao.shards.ports import Coordination, LogStore
from hongbao.shards.reader import LogReader

from tests.sim.history import Violation, check_log
from tests.waiting import LIMIT_S

POLL_S = 0.02
END = "end"  # a name beside the shards' leases: who is told of it was told of all before


@dataclass(frozen=True)
class Grant:
    """Is a lease that someone got; `epoch` is the revision that wrote it."""

    shard: int
    process: str
    epoch: int


@dataclass(frozen=True)
class End:
    """Is the end of a lease, given up or run out; `epoch` is the revision that deleted it."""

    shard: int
    epoch: int


@dataclass
class Recorded:
    """Is what one observer saw while a run went on."""

    leases: list[Grant | End] = field(default_factory=list)
    reads: dict[int, list[Block]] = field(default_factory=dict)

    @property
    def grants(self) -> list[Grant]:
        return [one for one in self.leases if isinstance(one, Grant)]


class Recorder:
    """Follows leases and logs of a plane from outside."""

    def __init__(
        self, log_store: LogStore, coordination: Coordination, plane: str, shards: Sequence[int]
    ) -> None:
        self.recorded = Recorded(reads={shard: [] for shard in shards})
        self._log_store = log_store
        self._coordination = coordination
        self._plane = plane
        self._prefix = f"lease/{plane}/"

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Record until the block ends, and every lease that was granted by then.

        Leave it only when no process writes any more: a block that is written behind the end of
        the recording has an epoch whose grant nobody recorded.
        """
        leases = asyncio.create_task(self._follow_leases())
        readers = [asyncio.create_task(self._read(shard)) for shard in self.recorded.reads]
        try:
            yield
            await self._coordination.put(self._prefix + END, END.encode())
            await asyncio.wait_for(leases, LIMIT_S)
            for reader in readers:
                if reader.done():
                    reader.result()  # its error
        finally:
            for task in (leases, *readers):
                task.cancel()
            await asyncio.gather(leases, *readers, return_exceptions=True)

    async def _follow_leases(self) -> None:
        async for fact in self._coordination.watch(self._prefix, after_revision=0):
            name = fact.key.removeprefix(self._prefix)
            if name == END:
                return
            if fact.value:
                process = json.loads(fact.value)["process"]
                self.recorded.leases.append(Grant(int(name), process, fact.revision))
            else:
                self.recorded.leases.append(End(int(name), fact.revision))

    async def _read(self, shard: int) -> None:
        reader = LogReader(self._log_store, self._plane, shard)
        while True:
            with suppress(Transient):
                seen = self.recorded.reads[shard]
                await reader.look(len(seen))
                seen += await reader.read(len(seen))
            await asyncio.sleep(POLL_S)


def check_history(
    plane: str, recorded: Recorded, logs: dict[int, Sequence[Block]]
) -> list[Violation]:
    """Return every broken rule over what was recorded and the logs as they lie now."""
    found = check_leases(recorded.leases) + check_writers(plane, logs)
    for shard, blocks in logs.items():
        key = ShardKey(plane, shard)
        found += check_log(key, blocks)
        found += check_epochs(
            key, blocks, [one.epoch for one in recorded.grants if one.shard == shard]
        )
        found += check_prefix(key, blocks, recorded.reads[shard])
    return found


def check_leases(leases: Sequence[Grant | End]) -> list[Violation]:
    """A lease passes to another process only behind its end; every change comes once, in order.

    A process may be granted again what it holds: it has started anew. Of a lease that ends first,
    nothing is known: it was granted before the recording. A store that drops history under a watch
    that was cut off may keep an end from us: let it compact only while the watch goes on.
    """
    found = []
    last: dict[int, Grant | End] = {}
    for one in leases:
        before = last.get(one.shard)
        if before is not None and one.epoch <= before.epoch:
            found.append(Violation("epochs only rise", f"{one} behind {before}"))
        elif isinstance(before, Grant) and isinstance(one, Grant) and before.process != one.process:
            found.append(Violation("one holder at a time", f"{one}, though {before} had not ended"))
        elif isinstance(before, End) and isinstance(one, End):
            found.append(Violation("what ends was held", f"{one} behind {before}"))
        last[one.shard] = one
    return found


def check_writers(plane: str, logs: Mapping[int, Sequence[Block]]) -> list[Violation]:
    """A nonce is one owner's alone: it writes one shard, in the one epoch that it was granted."""
    found = []
    tenures: dict[bytes, tuple[int, int]] = {}
    for shard, blocks in logs.items():
        for block in blocks:
            if tenures.setdefault(block.nonce, (shard, block.epoch)) != (shard, block.epoch):
                evidence = f"{ShardKey(plane, shard)} block {block.position} of {block.epoch}"
                found.append(Violation("one epoch per writer", evidence))
    return found


def check_epochs(key: ShardKey, blocks: Sequence[Block], granted: Sequence[int]) -> list[Violation]:
    """Whoever wrote held the lease once: every epoch of a log was granted.

    Of epochs before the first recorded grant, nothing is known: the recording began behind them.
    """
    began = min(granted, default=0)
    return [
        Violation("who writes was granted the lease", f"{key} block {one.position}: {one.epoch}")
        for one in blocks
        if one.kind is BlockKind.EPOCH and one.epoch >= began and one.epoch not in granted
    ]


def check_prefix(key: ShardKey, blocks: Sequence[Block], seen: Sequence[Block]) -> list[Violation]:
    """What a reader saw while the log grew is how the log begins."""
    for index, block in enumerate(seen):
        if index >= len(blocks) or block != blocks[index]:
            return [Violation("readers see a prefix of the log", f"{key} read {index}")]
    return []
