"""Owns what settle asks of a ledger and of a payment sink; refuses to know any of them.

A ledger is written in whole transactions only. A posting carries the claims of consecutive
blocks and moves the reader position with them, so a crash at any point leaves either all of it
or nothing, and the reader resumes exactly (faults.md F2, F5).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

POSTING_CLAIMS_MAX: Final = 20_000


class TransferState(enum.IntEnum):
    """Says how far a claim's money is."""

    PENDING = 0  # booked against the sponsor, not yet paid out by the sink
    CREDITED = 1
    REFUSED = 2  # the sink refused it for good: money is kept back, a person must look


class AccountKind(enum.IntEnum):
    """Says whose money an account counts; Σ debits = Σ credits over all accounts."""

    BANK = 0  # where sponsors' money comes from and goes back to
    SPONSOR = 1  # a sponsor's pool
    USER = 2


class Transfer(NamedTuple):
    """Moves a packet's money from its sponsor's pool to a user; its id is the packet's serial.

    The field order is that of the ledger's columns and of settle's arrays.
    """

    serial: int
    user: int
    sponsor: int
    slot: int
    key_id: int
    amount_fen: int
    opened_at_ms: int


class Quarantined(NamedTuple):
    """Is a claim that failed a check: never paid, kept with the reason and the evidence.

    (shard, position, entry) names the log entry, so the same entry is kept once.
    """

    shard: int
    position: int  # of the block in the shard's log
    entry: int  # index in the block, from 0
    serial: int
    user: int
    sponsor: int  # whose pool keeps `held_fen` back; 0 when no packet is known
    claimed_fen: int
    held_fen: int  # the packet's minted money that is neither paid nor refunded meanwhile
    reason: str
    evidence: str  # JSON: the claim's bytes, what was minted, where it came from


@dataclass(frozen=True)
class Posting:
    """Is what one transaction writes for the blocks [start, end) of a claims shard."""

    shard: int
    start: int  # the reader position that this posting continues
    end: int
    state: TransferState  # PENDING with a sink that pays outside, else CREDITED
    posted_at_ms: int
    transfers: Sequence[Transfer]
    quarantined: Sequence[Quarantined]


class Posted(enum.Enum):
    """Says what became of a posting."""

    POSTED = "posted"
    REPEATED = "repeated"  # nothing was written: some packets have a transfer already
    CLOSED = "closed"  # nothing was written: unclaimed money went back to the sponsors


class Ledger(Protocol):
    """Keeps positions, transfers and quarantine of one campaign, double entry.

    Every method is one short transaction. After Transient it may or may not have been written:
    read `position` again before going on.
    """

    def position(self, shard: int) -> int:
        """Return the position of the next block to settle; 0 at first."""

    def post(self, posting: Posting) -> Posted:
        """Write a posting and move the position. Raises Fenced when it is not at `start`."""

    def find_transfers(self, serials: Sequence[int]) -> list[Transfer]:
        """Return the transfers that exist among these packets."""

    def pending(self, shard: int, limit: int, behind: Transfer | None = None) -> list[Transfer]:
        """Return transfers of a shard that the sink has not paid yet, largest first (R53).

        Of equal amounts the higher serial comes first; `behind` skips up to a transfer.
        """

    def credit(self, shard: int, transfers: Sequence[Transfer], at_ms: int) -> None:
        """Mark pending transfers as paid and credit the users; skip those no longer pending."""

    def refuse(self, transfer: Transfer, quarantined: Quarantined, at_ms: int) -> None:
        """Mark a pending transfer as refused and keep the evidence; skip if not pending."""


class SinkAnswer(enum.Enum):
    """Says what a sink did with a payment."""

    PAID = "paid"
    EXISTS = "exists"  # an earlier call paid it, with the same content (faults.md F6)
    REFUSED = "refused"  # for good, or an earlier call paid something else under this id


@dataclass(frozen=True)
class SinkReply:
    """Is a sink's answer and what it said, for the evidence."""

    answer: SinkAnswer
    detail: str = ""


class Sink(Protocol):
    """Pays outside. Idempotent by (campaign, serial): the same call again pays nothing more."""

    async def pay(self, transfer: Transfer) -> SinkReply:
        """Pay one transfer. Raises Transient when the outcome is unknown or it may be retried."""
