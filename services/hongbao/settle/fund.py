"""Owns the rules of sponsors' money: when and how much goes back. Refuses any SQL.

A sponsor's pool: paid in − credited − pending − held − returned. All that is left of it goes
back once the campaign is over and every claim is settled: as refund what nobody claimed, as
surplus what no packet was minted for (R35, R36, R40). Closing comes first: every claims log has
its last entry then, so none can grow behind what refunds were computed from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hongbao.domain.errors import Rejected, Transient
from hongbao.domain.money import format_yuan

REFERENCE_CHARS_MAX = 100
PAY_IN = "pay-in"
REFUND = "refund"
SURPLUS = "surplus"
OWN_REFERENCES = (f"{REFUND}/", f"{SURPLUS}/")


@dataclass(frozen=True)
class Pool:
    """Is the money of one sponsor in the ledger."""

    sponsor: int
    paid_in_fen: int = 0
    credited_fen: int = 0
    pending_fen: int = 0
    held_fen: int = 0  # kept back for quarantined claims
    refunded_fen: int = 0  # of packets that nobody claimed
    surplus_fen: int = 0  # returned of what no packet was minted for

    @property
    def returned_fen(self) -> int:
        return self.refunded_fen + self.surplus_fen

    @property
    def balance_fen(self) -> int:
        """Return what is neither paid, promised, kept back nor returned."""
        spoken_for = self.credited_fen + self.pending_fen + self.held_fen + self.returned_fen
        return self.paid_in_fen - spoken_for


@dataclass(frozen=True)
class FundMovement:
    """Is one pay-in or return of money, named by its reference."""

    reference: str
    kind: str  # pay-in | refund | surplus
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

    def surplus_fen(self, pool: Pool) -> int:
        """Return what no packet was minted for, so that nothing of a pool stays behind."""
        return max(0, pool.balance_fen - self.refundable_fen(pool))


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

    def pay_in(self, movement: FundMovement, deposit_fen: int) -> bool:
        """Record a pay-in; False when this very one is there already.

        Raises Rejected when the reference names another movement, or when the pool would hold
        more than the sponsor's deposit.
        """

    def refund(self, minted: Minted, at_ms: int) -> list[FundMovement]:
        """Close the ledger for claims and return to each sponsor all that is left of its pool.

        Raises Transient, and changes nothing, while transfers wait for the sink.
        """

    def pools(self) -> list[Pool]:
        """Return the pool of every sponsor that the ledger knows, by sponsor."""

    def pending_transfers(self) -> int: ...


def check_deposit(pool: Pool, movement: FundMovement, deposit_fen: int) -> None:
    """Raise Rejected when a pay-in would bring a pool over the deposit: a payment booked twice."""
    held_fen = pool.paid_in_fen - pool.returned_fen
    if held_fen + movement.amount_fen > deposit_fen:
        raise Rejected(
            f"sponsor {movement.sponsor} has paid in {format_yuan(held_fen)} of "
            f"{format_yuan(deposit_fen)} yuan: {format_yuan(movement.amount_fen)} are too much",
            field="amount",
        )


def plan_returns(pools: Sequence[Pool], minted: Minted) -> list[tuple[str, int, int]]:
    """Return the movements that empty the pools, as (kind, sponsor, fen)."""
    parts = ((REFUND, minted.refundable_fen), (SURPLUS, minted.surplus_fen))
    return [
        (kind, pool.sponsor, fen_of(pool))
        for kind, fen_of in parts
        for pool in pools
        if fen_of(pool)
    ]


def plan_pay_in(
    reference: str, sponsor: int, amount_fen: int, deposits: dict[int, int], at_ms: int
) -> FundMovement:
    """Check a pay-in against the campaign. Raises Rejected naming the field."""
    if not (reference.isprintable() and 0 < len(reference) <= REFERENCE_CHARS_MAX):
        message = f"a reference has 1 to {REFERENCE_CHARS_MAX} printable characters"
        raise Rejected(message, field="reference")
    if own := next((one for one in OWN_REFERENCES if reference.startswith(one)), None):
        raise Rejected(f"references that begin with {own} are the ledger's own", field="reference")
    if sponsor not in deposits:
        raise Rejected(f"the campaign has no sponsor {sponsor}", field="sponsor")
    if amount_fen <= 0:
        raise Rejected(f"a pay-in of {amount_fen} fen is not positive", field="amount")
    return FundMovement(reference, PAY_IN, sponsor, amount_fen, at_ms)
