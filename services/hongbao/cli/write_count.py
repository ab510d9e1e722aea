"""Owns counting what is written to Coordination while something goes on: none of it per call.

It only watches, so it counts alike on every store. Renewals of leases are no writes.
"""

from collections import Counter
from typing import Final

from hongbao.shards.ports import Coordination

MARK: Final = "observers/write-count"


class WriteCount:
    """Counts the changes of all keys by what they are for, while `run` goes on."""

    def __init__(self, coordination: Coordination) -> None:
        self.by_purpose: Counter[str] = Counter()
        self._coordination = coordination

    @property
    def total(self) -> int:
        return sum(self.by_purpose.values())

    async def run(self) -> None:
        """Count for ever."""
        mark = await self._coordination.put(MARK, b"here")
        async for fact in self._coordination.watch("", after_revision=mark.revision):
            self.by_purpose[purpose_of(fact.key)] += 1

    def describe(self) -> str:
        """Return the counts as words, the most frequent first."""
        return ", ".join(f"{name} {count}" for name, count in self.by_purpose.most_common())


def purpose_of(key: str) -> str:
    """Return what a key is for: `campaigns/<c>/quota` and `lease/claims/<shard>` by their kind."""
    first, *rest = key.split("/")
    match first, rest:
        case "campaigns", [_, kind, *_]:
            return kind
        case "lease", [kind, *_]:
            return f"lease {kind}"
    return first
