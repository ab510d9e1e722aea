"""Owns the shape of a shard's state machine; refuses to know any plane.

An owner asks `decide` for each operation, in order, and writes what it appended in one block.
`decide` changes the state at once: an owner that could not write its block throws the machine
away. Everything must follow from the entries alone, since a new owner replays them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)  # not frozen: one is made per operation, and freezing triples its cost
class Append:
    """Says: write `entry` to the log; once it is durable, the result is `result`."""

    entry: bytes
    result: bytes


@dataclass(slots=True)
class Answer:
    """Says: the state already tells the result; nothing is written."""

    result: bytes


@dataclass(slots=True)
class Lookup:
    """Says: read the key, then ask `answer` for the result; nothing is written.

    The key is a derived one, or that of a block of the shard's own log.
    """

    key: bytes


Decision = Append | Answer | Lookup


class Machine(Protocol):
    """Is the state of one shard. Synchronous, deterministic, without clock or randomness."""

    def decide(self, operation: bytes, position: int) -> Decision:
        """Decide one operation and change the state at once.

        `position` is that of the block which gets what is appended; a Lookup is read once that
        block is durable. May raise Rejected, and then has changed nothing. Any other exception
        stops the owner.
        """

    def answer(self, operation: bytes, value: bytes | None) -> bytes:
        """Return the result after a Lookup; the same whenever it is asked."""

    def apply(self, entry: bytes, position: int) -> None:
        """Change the state as `decide` did when it appended this entry (replay)."""

    def derive(self, entry: bytes) -> Sequence[tuple[bytes, bytes]]:
        """Return the derived pairs of an entry; a pure function of the entry.

        A key always gets the same bytes, whoever writes it and however often. A machine that
        knows where its entries lie derives nothing: a random key costs a store far more than its
        share of a block.
        """

    def snapshot(self) -> Iterator[bytes]:
        """Return the state as it is at this call, complete, in small pieces.

        They are asked for while the state goes on changing, so that a large state does not keep
        its owner from renewing the lease.
        """

    def restore(self, snapshot: bytes | bytearray) -> Iterator[None]:
        """Replace the state of a new machine by a snapshot, in small steps, at the last of them."""
