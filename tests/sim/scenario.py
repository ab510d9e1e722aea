"""What a plane brings to a simulation: its machine, its clients' operations, its own rules.

The toy is the first; claims with settlement implement the same Protocol (P6, P7): give
`consume` the settler to hand each applied block to, and check the money in `check`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from hongbao.shards.block import Block
from hongbao.shards.machine import Machine

from tests.sim.dice import Dice
from tests.sim.history import Call, Violation
from tests.sim.toy import ENTRY, READ, TOTAL, ToyMachine, add


class Scenario(Protocol):
    """Is everything about a simulated plane that the framework does not know."""

    plane: str
    shards: Sequence[int]

    def machine(self, shard: int) -> Machine:
        """Return a new machine."""

    def operation(self, client: int, dice: Dice) -> tuple[int, bytes]:
        """Return the shard and bytes of a client's next operation (repeats are welcome)."""

    def consume(self, shard: int, position: int, block: Block) -> None:
        """Take an applied block, once and in order, as a reader that keeps its own position.

        The reader's process may be killed between any two calls, never inside one.
        """

    def check(self, logs: Mapping[int, Sequence[Block]], calls: Sequence[Call]) -> list[Violation]:
        """Return which of the plane's own rules are broken."""


class ToyScenario:
    """Adds amounts, repeats earlier additions, reads totals."""

    plane = "toy"

    def __init__(self, shards: int = 2) -> None:
        self.shards = tuple(range(shards))
        self._added: dict[int, tuple[int, bytes]] = {}

    def machine(self, shard: int) -> Machine:
        return ToyMachine()

    def operation(self, client: int, dice: Dice) -> tuple[int, bytes]:
        shard = dice.choose(self.shards)
        kind = dice.share()
        if kind < 0.3:
            return shard, READ
        if kind < 0.45 and self._added:
            return self._added[dice.below(len(self._added))]
        number = len(self._added)
        self._added[number] = (shard, add(number, 1 + dice.below(100)))
        return self._added[number]

    def consume(self, shard: int, position: int, block: Block) -> None:
        pass

    def check(self, logs: Mapping[int, Sequence[Block]], calls: Sequence[Call]) -> list[Violation]:
        found: list[Violation] = []
        for shard in self.shards:
            entries = [ENTRY.unpack(entry) for block in logs[shard] for entry in block.entries]
            own = [call for call in calls if call.shard == shard]
            found += _check_once(shard, entries)
            found += _check_results(shard, entries, own)
            found += _check_order(shard, entries, own)
        return found


Entry = tuple[int, int, int]


def _check_once(shard: int, entries: Sequence[Entry]) -> list[Violation]:
    """No operation is applied twice, and every total follows from the ones before."""
    found, total, numbers = [], 0, set()
    for number, amount, after in entries:
        total += amount
        if number in numbers:
            found.append(Violation("no operation is applied twice", f"{shard}: {number}"))
        if total != after:
            found.append(Violation("totals add up", f"{shard}: {number}: {after} is not {total}"))
        numbers.add(number)
    return found


def _check_results(shard: int, entries: Sequence[Entry], calls: Sequence[Call]) -> list[Violation]:
    """No acknowledged operation is lost, and each try got the one true result."""
    results = {add(number, amount): TOTAL.pack(after) for number, amount, after in entries}
    found = []
    for call in calls:
        if call.result is None or call.operation == READ:
            continue
        if call.operation not in results:
            found.append(Violation("no acknowledged operation is lost", f"{shard}: {call}"))
        elif call.result != results[call.operation]:
            found.append(Violation("every try gets the same result", f"{shard}: {call}"))
    return found


def _check_order(shard: int, entries: Sequence[Entry], calls: Sequence[Call]) -> list[Violation]:
    """Whoever starts after a result was out sees it: no stale answers."""
    index_of = {TOTAL.pack(after): index + 1 for index, (_, _, after) in enumerate(entries)}
    index_of[TOTAL.pack(0)] = 0
    found = []
    ended = sorted(
        (call for call in calls if call.result in index_of), key=lambda call: call.ended_s or 0.0
    )
    for call in calls:
        if call.result is None or call.operation != READ:
            continue
        if call.result not in index_of:
            found.append(Violation("reads see totals that were", f"{shard}: {call}"))
            continue
        known = 0
        for earlier in ended:
            if (earlier.ended_s or 0.0) >= call.invoked_s:
                break
            assert earlier.result is not None
            known = max(known, index_of[earlier.result])
        if index_of[call.result] < known:
            found.append(Violation("no answer is stale", f"{shard}: {call}"))
    return found
