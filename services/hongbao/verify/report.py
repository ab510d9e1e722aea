"""Owns what a verification found; refuses to judge which finding matters: every one does."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

FINDINGS_TOLD_MAX: Final = 20  # of one kind in one object; the rest is counted


@dataclass(frozen=True, order=True, slots=True)
class Finding:
    """Is one fault: the object it is in, a fixed word for its kind, and the numbers.

    Kinds: manifest, signature, missing, header, size, hash, ticket, foreign, duplicate, absent,
    mismatch, bounds, amount, sum, key_cap, budget, plan.
    """

    where: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"


@dataclass(slots=True)
class Findings:
    """Gathers the findings of one object and keeps the first few of every kind."""

    where: str
    found: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= FINDINGS_TOLD_MAX:
            self.found.append(Finding(self.where, kind, message))

    def add_many(self, kind: str, places: Iterable[object], message: str) -> None:
        """Add one finding for each place; `message` has {} where the place stands."""
        for place in places:
            self.add(kind, message.format(place))

    def told(self) -> list[Finding]:
        """Return what was kept, and for every kind how many were not."""
        left_out = {kind: count - FINDINGS_TOLD_MAX for kind, count in self.counts.items()}
        return self.found + [
            Finding(self.where, kind, f"and {count} more")
            for kind, count in left_out.items()
            if count > 0
        ]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Is the outcome of a verification: what was read and deciphered, and all that is wrong."""

    packets: int
    total_fen: int
    files: int
    problems: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return not self.problems
