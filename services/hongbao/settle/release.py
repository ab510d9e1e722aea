"""Owns which quarantined claim may be paid after all; refuses to write.

A release checks the claim anew, against today's book: a key that is allowed again, a scheme that
became active. What still fails a check stays, whoever asks (R51, R54).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from hongbao.domain.claim import claims_array
from hongbao.domain.errors import Rejected
from hongbao.settle.book import Book
from hongbao.settle.checks import Reason, check_claims
from hongbao.settle.ports import Quarantined, Transfer, TransferState

WHY_CHARS_MAX: Final = 200


@dataclass(frozen=True)
class Release:
    """Is a quarantined claim that is to be paid, and why."""

    shard: int
    transfer: Transfer
    state: TransferState  # PENDING with a sink that pays outside, else CREDITED
    why: str
    at_ms: int


@dataclass(frozen=True)
class QuarantinedRow:
    """Is a quarantined claim and what became of its packet since."""

    claim: Quarantined
    at_ms: int
    status: str  # held | posted | posted to another
    why: str  # of the release; empty without one


class QuarantineLedger(Protocol):
    """Shows and releases quarantined claims; each method is one transaction."""

    def rows(self, serial: int | None = None) -> list[QuarantinedRow]:
        """Return quarantined claims, of one packet or all, in the order of the logs."""

    def release(self, release: Release) -> bool:
        """Post the transfer; False when the packet is paid to this user already.

        Raises Rejected when it is paid to another, or when refunds have begun and the sponsor's
        pool does not cover it.
        """


def plan_release(
    rows: Sequence[Quarantined], book: Book, *, state: TransferState, why: str, at_ms: int
) -> Release:
    """Choose the first claim of a packet that passes every check today. Raises Rejected."""
    if not (why.strip() and why.isprintable() and len(why) <= WHY_CHARS_MAX):
        raise Rejected(f"a reason has 1 to {WHY_CHARS_MAX} printable characters", field="why")
    failed = []
    for row in rows:
        if row.reason == Reason.SINK_REFUSED.label:
            transfer: Transfer | None = _refused_transfer(row)
        else:
            transfer, reason = _check(row, book)
            failed.append(reason.label)
        if transfer is not None:
            return Release(row.shard, transfer, state, why, at_ms)
    serial = rows[0].serial if rows else "?"
    raise Rejected(f"packet {serial} still fails: {', '.join(failed)}", field="serial")


def _refused_transfer(row: Quarantined) -> Transfer:
    """Return the transfer that the sink refused: it was checked before it was posted."""
    evidence = json.loads(row.evidence)
    return Transfer._make(int(evidence[name]) for name in Transfer._fields)


def _check(row: Quarantined, book: Book) -> tuple[Transfer | None, Reason]:
    claims = claims_array(bytes.fromhex(json.loads(row.evidence)["claim"]))
    serials, batches = claims["serial"].astype(np.int64), claims["batch"].astype(np.int64)
    minted = book.look_up(batches, serials)
    reason = Reason(int(check_claims(claims, minted, book, row.shard)[0]))
    if reason is not Reason.GOOD:
        return None, reason
    return Transfer._make(int(claims[name][0]) for name in Transfer._fields), reason
