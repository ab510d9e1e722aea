"""Owns the equations that money must obey, and what was found against them.

Refuses to compute: passes record violations here, and an equation without any holds.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

EXAMPLES_MAX: Final = 20

EQUATIONS: Final = {
    "tables_match_manifests": "amount tables hash and sum to the signed manifests (R54)",
    "minted_within_deposits": "per sponsor: minted in the active schemes ≤ deposit",
    "logs_whole": "claims logs have no gap, no broken block, no falling epoch",
    "claims_within_minted": "every claim names a packet of its slot's active scheme, as minted",
    "amounts_equal": "every claim carries the amount that was minted (R51)",
    "packet_opened_once": "no packet has two claims (R51)",
    "acknowledged_claims_kept": "every open that a client saw is a claim in the log",
    "no_claim_lost": "every settled claim has a transfer or lies in quarantine",
    "paid_once": "no packet is paid twice (R51)",
    "paid_as_claimed": "every transfer pays a claim: same user, same amount (R54)",
    "opened_is_accounted": "opened = credited + pending + quarantined",
    "minted_is_accounted": "minted = opened + unclaimed",
    "keys_within_caps": "per key: opened ≤ the key's cap (R45)",
    "books_balance": "accounts equal their entries, Σ debits = Σ credits",
    "pools_cover_payments": "per sponsor: paid in ≥ credited + pending + kept back + returned",
    "refunds_within_unclaimed": "per sponsor: refunded ≤ unclaimed (R36)",
    "surplus_within_paid_in": "per sponsor: surplus returned ≤ paid in − minted (R40)",
    "opened_within_reserved": "per ticket file: opened ≤ records that access reserved (R7)",
    "tickets_reserved_once": "no record of a ticket file was reserved twice (R7)",
}


@dataclass(frozen=True)
class Verdict:
    """Is one equation after the audit."""

    equation: str
    says: str
    violations: int
    examples: tuple[dict[str, Any], ...]

    @property
    def holds(self) -> bool:
        return not self.violations


class Findings:
    """Collects violations, with a few examples of each equation."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[dict[str, Any]]] = {name: [] for name in EQUATIONS}

    def add(self, equation: str, count: int = 1, **example: Any) -> None:
        """Record violations of an equation; an example is kept while there is room."""
        kept = self._examples[equation]
        self._counts[equation] += count
        if count and example and len(kept) < EXAMPLES_MAX:
            kept.append(example)

    def must_equal(self, equation: str, left: int, right: int, **where: Any) -> None:
        """Record a violation unless both sides are equal."""
        if left != right:
            self.add(equation, left=left, right=right, **where)

    def must_cover(self, equation: str, limit: int, used: int, **where: Any) -> None:
        """Record a violation unless used ≤ limit."""
        if used > limit:
            self.add(equation, limit=limit, used=used, **where)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return every equation, in the order of the table."""
        return tuple(
            Verdict(name, says, self._counts[name], tuple(self._examples[name]))
            for name, says in EQUATIONS.items()
        )

    @property
    def broken(self) -> list[str]:
        return [verdict.equation for verdict in self.verdicts() if not verdict.holds]
