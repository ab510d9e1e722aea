"""Owns the checks that a claim must pass before it is paid; pure and vectorised.

Each check is named after the violation that it finds, and the first one that fails is the
reason for quarantine (seed 000 §10, R51, R54).
"""

import enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hongbao.settle.book import Book, Ints, MintedPackets

USER_MAX: Final = (1 << 63) - 1
OPENED_AT_MS_MAX: Final = 1 << 53

Claims = NDArray[np.void]


class Reason(enum.IntEnum):
    """Says why a claim is not paid; the order is that of precedence."""

    GOOD = 0
    OUT_OF_RANGE = 1  # a user or time that no process of ours writes
    UNKNOWN_PACKET = 2  # never minted: no scheme has this serial in this batch
    SCHEME_NOT_ACTIVE = 3  # minted, but for a scheme that this slot does not play
    FOREIGN_SHARD = 4  # the packet's claims belong into another shard's log
    HEADER_DIFFERS = 5  # slot, sponsor or key is not the packet's
    FILE_DIFFERS = 6  # file or bit is not where the packet lies
    AMOUNT_DIFFERS = 7
    KEY_DENIED = 8
    CLAIMED_TWICE = 9  # another user claimed it first
    CAMPAIGN_CLOSED = 10  # unclaimed money went back to the sponsors before
    SINK_REFUSED = 11

    @property
    def label(self) -> str:
        return self.name.lower()


def check_claims(
    claims: Claims, minted: MintedPackets, book: Book, shard: int
) -> NDArray[np.uint8]:
    """Return the Reason of each claim, duplicates aside. `minted` is the book's answer."""
    found = (
        (Reason.OUT_OF_RANGE, _out_of_range(claims)),
        (Reason.UNKNOWN_PACKET, ~minted.known),
        (
            Reason.SCHEME_NOT_ACTIVE,
            book.active_scheme(minted.slot) != minted.scheme_number,
        ),
        (Reason.FOREIGN_SHARD, minted.claims_shard != shard),
        (Reason.HEADER_DIFFERS, _header_differs(claims, minted)),
        (
            Reason.FILE_DIFFERS,
            (claims["file"] != minted.file) | (claims["bit"] != minted.bit),
        ),
        (Reason.AMOUNT_DIFFERS, claims["amount_fen"] != minted.amount_fen),
        (Reason.KEY_DENIED, book.keys.refused(minted.key_id)),
    )
    reasons = np.zeros(len(claims), np.uint8)
    for reason, violated in reversed(found):
        reasons[violated] = reason
    return reasons


def find_repeats(claims: Claims, good: Ints) -> tuple[Ints, Ints]:
    """Split good claims of one packet after the first: (same user, another user), as indexes."""
    _, first, inverse = np.unique(claims["serial"][good], return_index=True, return_inverse=True)
    if len(first) == len(good):
        return good[:0], good[:0]
    firsts = first[inverse]
    later = firsts != np.arange(len(good))
    users = claims["user"][good]
    same = users == users[firsts]
    return good[later & same], good[later & ~same]


def _out_of_range(claims: Claims) -> NDArray[np.bool_]:
    user, opened_at_ms = claims["user"], claims["opened_at_ms"]
    bad: NDArray[np.bool_] = (user < 1) | (user > USER_MAX) | (opened_at_ms > OPENED_AT_MS_MAX)
    return bad


def _header_differs(claims: Claims, minted: MintedPackets) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = (
        (claims["slot"] != minted.slot)
        | (claims["sponsor"] != minted.sponsor)
        | (claims["key_id"] != minted.key_id)
    )
    return differs
