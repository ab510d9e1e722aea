"""Owns turning blocks of a claims shard into postings, exactly once; refuses to read a log.

The ledger's position is the only truth about what was settled. Blocks may come again or out of
order: what lies before the position is dropped, what lies behind a gap waits (faults.md F5).
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hongbao.domain.claim import claims_array, logged_claims
from hongbao.domain.errors import Transient
from hongbao.settle.book import Book, Ints, MintedPackets
from hongbao.settle.checks import Claims, Reason, check_claims, find_repeats
from hongbao.settle.ports import (
    POSTING_CLAIMS_MAX,
    Ledger,
    Posted,
    Posting,
    Quarantined,
    Transfer,
    TransferState,
)
from hongbao.shards.block import Block

POST_ATTEMPTS_MAX: Final = 3


@dataclass(frozen=True)
class Settled:
    """Counts what one call settled."""

    blocks: int = 0
    claims: int = 0
    transfers: int = 0
    repeated: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class _Round:
    """Is the checked claims of consecutive blocks; columns are parallel."""

    claims: Claims
    minted: MintedPackets
    positions: Ints  # of the block that holds each claim
    entries: Ints  # index in that block
    reasons: Ints
    repeated: Ints  # indexes of claims that say again what an earlier one says


class Settler:
    """Settles one claims shard. Blocking: call it from a thread, one call at a time."""

    def __init__(
        self, shard: int, ledger: Ledger, *, state: TransferState, wall_ms: Callable[[], int]
    ) -> None:
        """Take the state that transfers start in: CREDITED, or PENDING with an outside sink."""
        self.shard: Final = shard
        self._ledger = ledger
        self._state = state
        self._wall_ms = wall_ms
        self._position: int | None = None

    def position(self) -> int:
        """Return the position of the next block to settle, from the ledger when in doubt."""
        if self._position is None:
            self._position = self._ledger.position(self.shard)
        return self._position

    def settle(self, blocks: Sequence[Block], book: Book) -> Settled:
        """Settle what continues the position among these blocks, in one transaction.

        Raises Transient or Fenced: nothing of this call may be taken for settled, the next call
        asks the ledger where it stands.
        """
        mine = _continuing(blocks, self.position())
        if not mine:
            return Settled()
        checked = self._check(mine, book)
        self._position = None
        settled = self._post(mine[0].position, mine[-1].position + 1, checked)
        self._position = mine[-1].position + 1
        return replace(settled, blocks=len(mine))

    def _check(self, blocks: Sequence[Block], book: Book) -> _Round:
        entries = [logged_claims(block.entries) for block in blocks]
        counts = [len(one) for one in entries]
        claims = claims_array(b"".join(itertools.chain.from_iterable(entries)))
        serials = claims["serial"].astype(np.int64)
        minted = book.look_up(claims["batch"].astype(np.int64), serials)
        reasons = check_claims(claims, minted, book, self.shard).astype(np.int64)
        repeated, twice = find_repeats(claims, np.flatnonzero(reasons == Reason.GOOD))
        reasons[twice] = Reason.CLAIMED_TWICE
        return _Round(
            claims=claims,
            minted=minted,
            positions=np.repeat([block.position for block in blocks], counts).astype(np.int64),
            entries=np.concatenate([np.arange(count) for count in counts]),
            reasons=reasons,
            repeated=repeated,
        )

    def _post(self, start: int, end: int, checked: _Round) -> Settled:
        for _ in range(POST_ATTEMPTS_MAX):
            good = np.setdiff1d(np.flatnonzero(checked.reasons == Reason.GOOD), checked.repeated)
            bad = np.flatnonzero(checked.reasons)
            posting = Posting(
                shard=self.shard,
                start=start,
                end=end,
                state=self._state,
                posted_at_ms=self._wall_ms(),
                transfers=_transfers(checked.claims[good]),
                quarantined=[self._quarantined(checked, index) for index in bad.tolist()],
            )
            posted = self._ledger.post(posting)
            if posted is Posted.POSTED:
                claims, repeated = len(checked.claims), len(checked.repeated)
                return Settled(0, claims, len(good), repeated, len(bad))
            checked = self._without_known(checked, good)
            if posted is Posted.CLOSED:
                unpaid = np.setdiff1d(good, checked.repeated)
                checked.reasons[unpaid[checked.reasons[unpaid] == 0]] = Reason.CAMPAIGN_CLOSED
        raise Transient(f"claims/{self.shard}: transfers of block {start} keep appearing")

    def _without_known(self, checked: _Round, good: Ints) -> _Round:
        """Drop claims that the ledger has; keep those that contradict it for quarantine."""
        serials = checked.claims["serial"][good].tolist()
        known = {transfer.serial: transfer for transfer in self._ledger.find_transfers(serials)}
        repeated = [checked.repeated]
        for index, transfer in zip(good.tolist(), _transfers(checked.claims[good]), strict=True):
            found = known.get(transfer.serial)
            if found is None:
                continue
            if found._replace(opened_at_ms=transfer.opened_at_ms) == transfer:
                repeated.append(np.array([index]))
            else:
                checked.reasons[index] = Reason.CLAIMED_TWICE
        return replace(checked, repeated=np.concatenate(repeated))

    def _quarantined(self, checked: _Round, index: int) -> Quarantined:
        claim, minted = checked.claims[index], checked.minted
        reason = Reason(int(checked.reasons[index]))
        known = bool(minted.known[index])
        position, entry = int(checked.positions[index]), int(checked.entries[index])
        paid_to_another = reason is Reason.CLAIMED_TWICE
        evidence = {
            "claim": claim.tobytes().hex(),
            "log": f"claims/{self.shard}/{position}/{entry}",
            "minted": _minted_evidence(minted, index) if known else None,
        }
        return Quarantined(
            shard=self.shard,
            position=position,
            entry=entry,
            serial=_storable(claim["serial"]),
            user=_storable(claim["user"]),
            sponsor=int(minted.sponsor[index]) if known else 0,
            claimed_fen=int(claim["amount_fen"]),
            held_fen=int(minted.amount_fen[index]) if known and not paid_to_another else 0,
            reason=reason.label,
            evidence=json.dumps(evidence, sort_keys=True),
        )


def cut_posting(blocks: Sequence[Block]) -> Sequence[Block]:
    """Return the first blocks that together fit into one posting, at least one."""
    claims = 0
    for count, block in enumerate(blocks):
        claims += len(block.entries)
        if claims > POSTING_CLAIMS_MAX and count:
            return blocks[:count]
    return blocks


def _continuing(blocks: Sequence[Block], position: int) -> list[Block]:
    """Return the blocks that continue the position without a gap, each once."""
    by_position = {block.position: block for block in blocks}
    found = []
    while position in by_position:
        found.append(by_position[position])
        position += 1
    return found


def _transfers(claims: Claims) -> list[Transfer]:
    columns = ("serial", "user", "sponsor", "slot", "key_id", "amount_fen", "opened_at_ms")
    rows = zip(*(claims[name].tolist() for name in columns), strict=True)
    return [Transfer._make(row) for row in rows]


def _minted_evidence(minted: MintedPackets, index: int) -> dict[str, int]:
    names = ("scheme_number", "slot", "sponsor", "key_id", "file", "bit", "claims_shard")
    row = {name: int(getattr(minted, name)[index]) for name in names}
    return row | {"amount_fen": int(minted.amount_fen[index])}


def _storable(number: int) -> int:
    """Return a u64 as the ledger's BIGINT can keep it; the evidence has the true bytes."""
    return min(int(number), (1 << 63) - 1)
