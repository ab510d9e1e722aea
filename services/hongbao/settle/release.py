"""Owns which quarantined claim may be paid after all; refuses to write.

A release checks the claim anew, against today's book: a key that is allowed again, a scheme that
became active. What still fails a check stays, whoever asks (R51, R54).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from hongbao.domain.claim import CLAIM_DTYPE, claims_array
from hongbao.domain.errors import Rejected
from hongbao.settle.book import Book, MintedPackets
from hongbao.settle.checks import Claims, Reason, check_claims
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
        claims = _claims(row, book)
        minted = _look_up(claims, book)
        reason = Reason(int(check_claims(claims, minted, book, row.shard)[0]))
        if reason is Reason.GOOD:
            transfer = Transfer._make(int(claims[name][0]) for name in Transfer._fields)
            return Release(row.shard, transfer, state, why, at_ms)
        failed.append(reason.label)
    serial = rows[0].serial if rows else "?"
    raise Rejected(f"packet {serial} still fails: {', '.join(failed)}", field="serial")


def _claims(row: Quarantined, book: Book) -> Claims:
    """Return the quarantined claim as an array of one.

    Of a payment that the sink refused the transfer is kept: where its packet lies was checked
    before it was posted, and no rule changes that.
    """
    evidence = json.loads(row.evidence)
    if row.reason != Reason.SINK_REFUSED.label:
        return claims_array(bytes.fromhex(evidence["claim"]))
    claims = np.zeros(1, CLAIM_DTYPE)
    for name in Transfer._fields:
        claims[name] = evidence[name]
    claims["batch"] = book.batch_of(int(evidence["serial"])) or 0
    minted = _look_up(claims, book)
    claims["file"], claims["bit"] = minted.file, minted.bit
    return claims


def _look_up(claims: Claims, book: Book) -> MintedPackets:
    return book.look_up(claims["batch"].astype(np.int64), claims["serial"].astype(np.int64))
