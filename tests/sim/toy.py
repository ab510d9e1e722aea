"""A small machine that uses every kind of decision: adds amounts to a total, each id once.

operation `+` id u64 amount u32 → the total after it (appended; the same id again: looked up)
operation `?`                   → the total (answered from the state)
operation `!`                   → refused
"""

import struct
from collections.abc import Iterator, Sequence

from hongbao.domain.errors import Rejected
from hongbao.shards.machine import Answer, Append, Decision, Lookup

ADD = struct.Struct(">cQI")
ENTRY = struct.Struct(">QIQ")  # id, amount, total after
TOTAL = struct.Struct(">Q")


def add(number: int, amount: int) -> bytes:
    return ADD.pack(b"+", number, amount)


READ = b"?"
REFUSED = b"!"


def derived_key(number: int) -> bytes:
    return b"toy/%016x" % number


class ToyMachine:
    """Keeps a total and the ids that were added."""

    def __init__(self) -> None:
        self.total = 0
        self.numbers: set[int] = set()

    def decide(self, operation: bytes, position: int) -> Decision:
        if operation == READ:
            return Answer(TOTAL.pack(self.total))
        if operation == REFUSED:
            raise Rejected("the toy refuses this")
        _, number, amount = ADD.unpack(operation)
        if number in self.numbers:
            return Lookup(derived_key(number))
        self.numbers.add(number)
        self.total += amount
        return Append(ENTRY.pack(number, amount, self.total), TOTAL.pack(self.total))

    def answer(self, operation: bytes, value: bytes | None) -> bytes:
        assert value is not None, "an id that was added has a derived key"
        return TOTAL.pack(ENTRY.unpack(value)[2])

    def apply(self, entry: bytes, position: int) -> None:
        number, amount, total = ENTRY.unpack(entry)
        self.numbers.add(number)
        self.total += amount
        assert self.total == total

    def derive(self, entry: bytes) -> Sequence[tuple[bytes, bytes]]:
        return [(derived_key(ENTRY.unpack(entry)[0]), entry)]

    def snapshot(self) -> Iterator[bytes]:
        return map(TOTAL.pack, [self.total, *sorted(self.numbers)])

    def restore(self, snapshot: bytes | bytearray) -> Iterator[None]:
        yield
        self.total, *numbers = (value for (value,) in TOTAL.iter_unpack(snapshot))
        self.numbers = set(numbers)
