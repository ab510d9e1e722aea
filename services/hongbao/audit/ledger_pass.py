"""Owns the audit's own reading of the ledger, in plain SQL on one snapshot.

Refuses to use the code that writes it. Marks every packet that the ledger moved.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from hongbao.audit.findings import Findings
from hongbao.audit.latency import Latency
from hongbao.audit.packets import (
    CREDITED,
    HELD,
    PENDING,
    REFUSED,
    TRANSFERRED,
    Columns,
    Ints,
    Packets,
)

ROWS_MAX: Final = 50_000
QUARANTINE_EXAMPLES_MAX: Final = 100
MARK_OF_STATE: Final = np.array([PENDING, CREDITED, REFUSED], np.uint8)

_STREAMED: Final = {"yield_per": ROWS_MAX}
_TRANSFERS: Final = (
    "SELECT serial, user_id, sponsor, slot, key_id, amount_fen, opened_at_ms, state,"
    " credited_at_ms FROM transfers"
)
_QUARANTINE: Final = (
    "SELECT shard, position, entry, serial, user_id, claimed_fen, held_fen, reason, evidence"
    " FROM quarantine ORDER BY shard, position, entry"
)
_WRONG_USERS: Final = """
    SELECT COUNT(*) FROM (
        SELECT owner FROM (
            SELECT owner, credited_fen AS fen, debited_fen AS debited FROM accounts WHERE kind = 2
            UNION ALL
            SELECT user_id, -amount_fen, 0 FROM transfers WHERE state = 1
        ) AS entries
        GROUP BY owner HAVING SUM(fen) <> 0 OR SUM(debited) <> 0
    ) AS wrong
"""
_SECONDS: Final = (
    "SELECT second, bucket, SUM(claims) FROM credit_latency GROUP BY second, bucket"
    " ORDER BY second, bucket"
)


@dataclass
class LedgerSums:
    """Is what the ledger says in sum."""

    positions: dict[int, int] = field(default_factory=dict)
    transfers: int = 0
    credited_fen: int = 0
    paid_twice: int = 0
    credited_by_sponsor: Counter[int] = field(default_factory=Counter)
    pending_by_sponsor: Counter[int] = field(default_factory=Counter)
    paid_in: Counter[int] = field(default_factory=Counter)
    refunded: Counter[int] = field(default_factory=Counter)
    surplus: Counter[int] = field(default_factory=Counter)

    @property
    def fundings(self) -> dict[str, Counter[int]]:
        """Return the sums of each kind of funding, by sponsor."""
        return {"pay-in": self.paid_in, "refund": self.refunded, "surplus": self.surplus}

    quarantine: list[dict[str, Any]] = field(default_factory=list)  # the first ones
    quarantine_reasons: Counter[str] = field(default_factory=Counter)
    credited_per_second: list[tuple[int, int, int]] = field(default_factory=list)
    latency: Latency = field(default_factory=Latency)


def read_ledger(engine: sa.Engine, packets: Packets, findings: Findings) -> LedgerSums:
    """Read the whole ledger on one snapshot, marking packets."""
    sums = LedgerSums()
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        rows = connection.execute(sa.text("SELECT shard, position FROM positions"))
        sums.positions = {int(row[0]): int(row[1]) for row in rows}
        for chunk in _chunks(connection, _TRANSFERS):
            _read_transfers(chunk, packets, sums, findings)
        _read_quarantine(connection, packets, sums)
        for kind, sponsor, fen in connection.execute(
            sa.text("SELECT kind, sponsor, SUM(amount_fen) FROM fundings GROUP BY kind, sponsor")
        ):
            sums.fundings[kind][sponsor] += int(fen)
        _check_books(connection, sums, findings)
        rows = connection.execute(sa.text(_SECONDS))
        sums.credited_per_second = [(int(a), int(b), int(c)) for a, b, c in rows]
        connection.rollback()
    return sums


def _chunks(connection: sa.Connection, query: str) -> Iterator[Ints]:
    streamed = connection.execute(sa.text(query), execution_options=_STREAMED)
    for rows in streamed.partitions(ROWS_MAX):
        yield np.array([tuple(row) for row in rows], np.int64)


def _read_transfers(rows: Ints, packets: Packets, sums: LedgerSums, findings: Findings) -> None:
    serial, user, sponsor, _, _, amount, opened_at, state, credited_at = rows.T
    found = packets.find(serial)
    sums.transfers += len(rows)
    credited = state == 1
    sums.credited_fen += int(amount[credited].sum())
    for kind, mask in ((sums.credited_by_sponsor, credited), (sums.pending_by_sponsor, state == 0)):
        for number in np.unique(sponsor[mask]).tolist():
            kind[number] += int(amount[mask & (sponsor == number)].sum())
    sums.latency.add((credited_at - opened_at)[credited])
    _check_transfers(found, packets, rows, findings)
    twice = _twice(found, packets, serial)
    sums.paid_twice += int(twice.sum())
    for index in np.flatnonzero(twice).tolist():
        findings.add("paid_once", serial=int(serial[index]), user=int(user[index]))
    place = found.place[found.known]
    packets.marks[place] |= MARK_OF_STATE[state[found.known]]
    packets.users[place] = user[found.known]


def _check_transfers(found: Columns, packets: Packets, rows: Ints, findings: Findings) -> None:
    """A transfer must be of a packet as it was minted."""
    serial, user, sponsor, slot, key, amount = rows.T[:6]
    wrong = (
        ~(found.known & found.active)
        | (amount != packets.amounts(found.place))
        | (sponsor != found.sponsor)
        | (slot != found.slot)
        | (key != found.key)
    )
    for index in np.flatnonzero(wrong).tolist():
        findings.add(
            "paid_as_claimed",
            serial=int(serial[index]),
            user=int(user[index]),
            amount_fen=int(amount[index]),
            says="not a packet as it was minted",
        )


def _twice(found: Columns, packets: Packets, serial: Ints) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Say which transfers are the second of their packet, in this chunk or over all."""
    before = found.known & (packets.marks[found.place] & TRANSFERRED > 0)
    _, first = np.unique(serial, return_index=True)
    again = np.ones(len(serial), np.bool_)
    again[first] = False
    return before | again


def _read_quarantine(connection: sa.Connection, packets: Packets, sums: LedgerSums) -> None:
    streamed = connection.execute(sa.text(_QUARANTINE), execution_options=_STREAMED)
    for rows in streamed.mappings().partitions(ROWS_MAX):
        sums.quarantine_reasons.update(row["reason"] for row in rows)
        room = QUARANTINE_EXAMPLES_MAX - len(sums.quarantine)
        for row in rows[: max(room, 0)]:
            sums.quarantine.append(dict(row) | {"evidence": json.loads(row["evidence"])})
        found = packets.find(np.array([row["serial"] for row in rows], np.int64))
        packets.marks[found.place[found.known]] |= np.uint8(HELD)


def _check_books(connection: sa.Connection, sums: LedgerSums, findings: Findings) -> None:
    """Every account must equal what the entries say."""
    query = "SELECT kind, owner, debited_fen, credited_fen FROM accounts WHERE kind < 2"
    accounts = {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(sa.text(query))}
    bank = accounts.pop((0, 0), (0, 0))
    for name, found, entries in (
        ("bank, paid in", bank[0], sum(sums.paid_in.values())),
        ("bank, returned", bank[1], sums.refunded.total() + sums.surplus.total()),
    ):
        findings.must_equal("books_balance", found, entries, account=name)
    sponsors = {owner for _, owner in accounts} | set(sums.paid_in) | set(sums.credited_by_sponsor)
    for sponsor in sorted(sponsors):
        debited, credited = accounts.get((1, sponsor), (0, 0))
        entries = sums.credited_by_sponsor[sponsor] + sums.refunded[sponsor] + sums.surplus[sponsor]
        findings.must_equal("books_balance", debited, entries, sponsor=sponsor)
        findings.must_equal("books_balance", credited, sums.paid_in[sponsor], sponsor=sponsor)
    wrong = int(connection.execute(sa.text(_WRONG_USERS)).scalar_one())
    findings.add("books_balance", wrong, says=f"{wrong} user accounts differ from their transfers")
    debits, credits = connection.execute(
        sa.text("SELECT SUM(debited_fen), SUM(credited_fen) FROM accounts")
    ).one()
    findings.must_equal("books_balance", int(debits or 0), int(credits or 0), says="Σ accounts")
