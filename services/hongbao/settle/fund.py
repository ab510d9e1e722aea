"""Owns the rules of sponsors' money: when and how much goes back. Refuses any SQL.

A sponsor's pool: paid in − credited − pending − held − refunded. What is left of it goes back
once the campaign is over and every claim is settled, never more than what nobody claimed
(R35, R36, R40). Closing comes first: no redeem process opens a packet any more, so the logs
cannot grow behind what refunds were computed from.
"""

from dataclasses import dataclass
from typing import Protocol

from hongbao.domain.errors import Rejected, Transient

REFERENCE_CHARS_MAX = 100


@dataclass(frozen=True)
class Pool:
    """Is the money of one sponsor in the ledger."""

    sponsor: int
    paid_in_fen: int = 0
    credited_fen: int = 0
    pending_fen: int = 0
    held_fen: int = 0  # kept back for quarantined claims
    refunded_fen: int = 0

    @property
    def balance_fen(self) -> int:
        """Return what is neither paid, promised, kept back nor returned."""
        spoken_for = self.credited_fen + self.pending_fen + self.held_fen + self.refunded_fen
        return self.paid_in_fen - spoken_for


@dataclass(frozen=True)
class FundMovement:
    """Is one pay-in or refund, named by its reference."""

    reference: str
    kind: str  # pay-in | refund
    sponsor: int
    amount_fen: int
    at_ms: int


@dataclass(frozen=True)
class Minted:
    """Is what the active scheme of each slot minted, per sponsor."""

    fen: dict[int, int]

    def unclaimed_fen(self, pool: Pool) -> int:
        """Return the money of packets that nobody claimed, once every claim is settled."""
        opened_fen = pool.credited_fen + pool.pending_fen + pool.held_fen
        return self.fen.get(pool.sponsor, 0) - opened_fen

    def refundable_fen(self, pool: Pool) -> int:
        """Return what still may go back to the sponsor; 0 when all has."""
        return max(0, min(pool.balance_fen, self.unclaimed_fen(pool) - pool.refunded_fen))


def check_over(now_ms: int, ends_at_ms: int, grace_ms: int) -> None:
    """Raise Transient unless the last slot and the users' time to open after it are over."""
    left_ms = ends_at_ms + grace_ms - now_ms
    if left_ms > 0:
        left_s = (left_ms + 999) // 1000
        raise Transient(
            f"too early for refunds: the campaign is over in {left_s} s, grace included",
            retry_after_s=left_s,
        )


@dataclass(frozen=True)
class Backlog:
    """Is what settlement must have done, after closing, before money goes back."""

    lag_blocks: dict[int, int]  # per claims shard: durable blocks that are not settled
    pending_transfers: int

    def problems(self) -> list[str]:
        """Return every reason why refunds must wait."""
        found = []
        for shard, blocks in sorted(self.lag_blocks.items()):
            if blocks:
                found.append(f"claims/{shard}: {blocks} blocks are not settled yet")
        if self.pending_transfers:
            found.append(f"{self.pending_transfers} transfers are not paid out yet")
        return found


class FundLedger(Protocol):
    """Keeps pay-ins and refunds; each method is one transaction."""

    def pay_in(self, movement: FundMovement) -> bool:
        """Record a pay-in; False when this very one is there already.

        Raises Rejected when the reference names another movement.
        """

    def refund(self, minted: Minted, at_ms: int) -> list[FundMovement]:
        """Close the ledger for claims and return to each sponsor what is refundable.

        Raises Transient, and changes nothing, while transfers wait for the sink.
        """

    def pools(self) -> list[Pool]:
        """Return the pool of every sponsor that the ledger knows, by sponsor."""

    def pending_transfers(self) -> int: ...


def plan_pay_in(
    reference: str, sponsor: int, amount_fen: int, deposits: dict[int, int], at_ms: int
) -> FundMovement:
    """Check a pay-in against the campaign. Raises Rejected naming the field."""
    if not (reference.isprintable() and 0 < len(reference) <= REFERENCE_CHARS_MAX):
        message = f"a reference has 1 to {REFERENCE_CHARS_MAX} printable characters"
        raise Rejected(message, field="reference")
    if reference.startswith("refund/"):
        raise Rejected("references that begin with refund/ are the ledger's own", field="reference")
    if sponsor not in deposits:
        raise Rejected(f"the campaign has no sponsor {sponsor}", field="sponsor")
    if amount_fen <= 0:
        raise Rejected(f"a pay-in of {amount_fen} fen is not positive", field="amount")
    return FundMovement(reference, "pay-in", sponsor, amount_fen, at_ms)
