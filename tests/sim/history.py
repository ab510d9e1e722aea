"""What happened in a run, and the rules that it must have kept whatever the faults were.

The rules about logs hold for every plane; a scenario adds its own (money, for example).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hongbao.domain.errors import HongbaoError
from hongbao.shards.block import Block, BlockKind, ShardKey, decode_block, position_of
from hongbao.shards.machine import Machine
from hongbao.shards.ports import LogStore

END = 1 << 63


@dataclass(frozen=True)
class Violation:
    """Is a broken rule, by a fixed name, with the evidence."""

    rule: str
    evidence: str


@dataclass
class Call:
    """Is one operation of a client, from its first try to its result."""

    client: str
    shard: int
    operation: bytes
    invoked_s: float
    ended_s: float | None = None
    result: bytes | None = None
    tries: int = 0


@dataclass
class Seen:
    """Is one block that a reader consumed, and whether its derived keys were there by then."""

    position: int
    block: Block
    derived_present: bool


@dataclass
class History:
    """Records a run as the clients and readers saw it."""

    calls: list[Call] = field(default_factory=list)
    reads: dict[int, list[Seen]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)


async def read_log(store: LogStore, shard: ShardKey) -> list[Block]:
    """Return the whole log, straight from the store."""
    pairs = await store.scan(shard.log(0), shard.log(END), END)
    return [decode_block(data, position=position_of(key)) for key, data in pairs]


def check_log(shard: ShardKey, blocks: Sequence[Block]) -> list[Violation]:
    """One writer per position and epoch; epochs only rise, each begins with an epoch block."""
    found = []
    writers: dict[int, bytes] = {}
    for index, block in enumerate(blocks):
        where = f"{shard} block {block.position} of epoch {block.epoch}"
        last = blocks[index - 1].epoch if index else 0
        if block.position != index:
            found.append(Violation("no hole in the log", f"{where} is number {index}"))
        if block.epoch < last:
            found.append(Violation("epochs only rise", f"{where} behind epoch {last}"))
        if writers.setdefault(block.epoch, block.nonce) != block.nonce:
            found.append(Violation("one writer per epoch", where))
        if (block.kind == BlockKind.EPOCH) != (block.epoch != last):
            found.append(Violation("an epoch begins with its block", where))
    return found


def check_reader(
    shard: ShardKey, blocks: Sequence[Block], seen: Sequence[Seen], *, complete: bool
) -> list[Violation]:
    """Readers see a prefix, each block once, never before what it derived."""
    found = []
    for index, item in enumerate(seen):
        where = f"{shard} read {item.position}"
        if item.position != index or index >= len(blocks) or item.block != blocks[index]:
            found.append(Violation("readers see a prefix of the log", where))
            break
        if not item.derived_present:
            found.append(Violation("readers never pass what is applied", where))
    if complete and len(seen) < len(blocks):
        evidence = f"{shard}: {len(seen)} of {len(blocks)} blocks"
        found.append(Violation("readers reach the end", evidence))
    return found


async def check_derived(
    store: LogStore, shard: ShardKey, blocks: Sequence[Block], machine: Machine
) -> list[Violation]:
    """Replaying the whole log gives exactly the derived keys that are in the store."""
    found = []
    for block in blocks:
        for entry in block.entries:
            try:
                machine.apply(entry, block.position)
            except (AssertionError, HongbaoError) as error:
                found.append(Violation("the log can be replayed", f"{shard}: {error!r}"))
                return found
            for key, value in machine.derive(entry):
                if await store.get(key) != value:
                    evidence = f"{shard} block {block.position}: {key!r}"
                    found.append(Violation("derived keys follow from the log", evidence))
        if await store.get(shard.applied(block.position)) is None:
            evidence = f"{shard} block {block.position}"
            found.append(Violation("every block is applied in the end", evidence))
    return found
