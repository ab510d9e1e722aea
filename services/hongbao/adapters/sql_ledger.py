"""Owns the SQL of settlement: postings, credits, refusals. Refuses to check a claim.

The same Core statements run on SQLite and PostgreSQL. Rows that several processes touch
(accounts) are written in key order, so that PostgreSQL never deadlocks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from hongbao.adapters import sql
from hongbao.domain.errors import Fenced
from hongbao.settle.latency import count_latency
from hongbao.settle.ports import AccountKind, Posted, Posting, Quarantined, Transfer, TransferState

TRANSFER_COLUMNS: Final = (
    "serial",
    "user_id",
    "sponsor",
    "slot",
    "key_id",
    "amount_fen",
    "opened_at_ms",
    "shard",
    "state",
    "credited_at_ms",
)
QUARANTINE_COLUMNS: Final = (
    "shard",
    "position",
    "entry",
    "serial",
    "user_id",
    "sponsor",
    "claimed_fen",
    "held_fen",
    "reason",
    "evidence",
    "at_ms",
)
LOOKUP_SERIALS_MAX: Final = 500  # bound parameters of one query

_TRANSFER = [sql.transfers.c[name] for name in TRANSFER_COLUMNS[: len(Transfer._fields)]]


class SqlLedger:
    """Is a settle.ports.Ledger in SQLite or PostgreSQL. Blocking: call it from a thread."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take an engine of `sql.open_engine` whose schema is prepared."""
        self._engine = engine

    def position(self, shard: int) -> int:
        """Return the position of the next block to settle; 0 at first."""
        with sql.reading(self._engine) as connection:
            return _position(connection, shard)

    def post(self, posting: Posting) -> Posted:
        """Write a posting and move the position. Raises Fenced when it is not at `start`."""
        with sql.writing(self._engine) as connection:
            self._move_position(connection, posting)
            if posting.transfers and sql.read_fact(connection, sql.CLOSED_AT):
                connection.rollback()
                return Posted.CLOSED
            if not self._insert_transfers(connection, posting):
                connection.rollback()
                return Posted.REPEATED
            if posting.quarantined:
                self._insert_quarantine(connection, posting.quarantined, posting.posted_at_ms)
            if posting.state is TransferState.CREDITED:
                book_credits(connection, posting.shard, posting.transfers, posting.posted_at_ms)
        return Posted.POSTED

    def find_transfers(self, serials: Sequence[int]) -> list[Transfer]:
        """Return the transfers that exist among these packets."""
        with sql.reading(self._engine) as connection:
            return [
                Transfer._make(row)
                for some in _cut(serials)
                for row in connection.execute(
                    sa.select(*_TRANSFER).where(sql.transfers.c.serial.in_(some))
                )
            ]

    def pending(self, shard: int, limit: int, behind: Transfer | None = None) -> list[Transfer]:
        """Return transfers of a shard that the sink has not paid yet, largest first (R53).

        Of equal amounts the higher serial comes first; `behind` skips up to a transfer.
        """
        table = sql.transfers.c
        query = sa.select(*_TRANSFER).where(table.shard == shard, table.state == 0)
        if behind is not None:
            later = (table.amount_fen == behind.amount_fen) & (table.serial < behind.serial)
            query = query.where((table.amount_fen < behind.amount_fen) | later)
        query = query.order_by(table.amount_fen.desc(), table.serial.desc()).limit(limit)
        with sql.reading(self._engine) as connection:
            return [Transfer._make(row) for row in connection.execute(query)]

    def credit(self, shard: int, transfers: Sequence[Transfer], at_ms: int) -> None:
        """Mark pending transfers as paid and credit the users; skip those no longer pending."""
        with sql.writing(self._engine) as connection:
            credited = [
                transfer
                for transfer in sorted(transfers)
                if _leave_pending(connection, transfer, TransferState.CREDITED, at_ms)
            ]
            book_credits(connection, shard, credited, at_ms)

    def refuse(self, transfer: Transfer, quarantined: Quarantined, at_ms: int) -> None:
        """Mark a pending transfer as refused and keep the evidence; skip if not pending."""
        with sql.writing(self._engine) as connection:
            if _leave_pending(connection, transfer, TransferState.REFUSED, 0):
                self._insert_quarantine(connection, [quarantined], at_ms)

    def _move_position(self, connection: sa.Connection, posting: Posting) -> None:
        """Continue exactly where the ledger stands; the row lock makes later writers wait."""
        table = sql.positions
        row = {"shard": posting.shard, "position": 0, "moved_at_ms": 0}
        if posting.start == 0:
            connection.execute(sql.insert(connection, table).on_conflict_do_nothing(), row)
        moved = connection.execute(
            sa.update(table)
            .where(table.c.shard == posting.shard, table.c.position == posting.start)
            .values(position=posting.end, moved_at_ms=posting.posted_at_ms)
        )
        if moved.rowcount != 1:
            found = _position(connection, posting.shard)
            raise Fenced(
                f"claims/{posting.shard}: settled up to block {found} by another process, "
                f"this one would continue at {posting.start}"
            )

    def _insert_transfers(self, connection: sa.Connection, posting: Posting) -> bool:
        if not posting.transfers:
            return True
        credited_at_ms = posting.posted_at_ms if posting.state is TransferState.CREDITED else 0
        more = (posting.shard, int(posting.state), credited_at_ms)
        rows = [
            dict(zip(TRANSFER_COLUMNS, transfer + more, strict=True))
            for transfer in posting.transfers
        ]
        try:
            connection.execute(sa.insert(sql.transfers), rows)
        except sa.exc.IntegrityError:  # rare: a packet has a transfer already
            return False
        return True

    def _insert_quarantine(
        self, connection: sa.Connection, quarantined: Iterable[Quarantined], at_ms: int
    ) -> None:
        rows = [dict(zip(QUARANTINE_COLUMNS, (*row, at_ms), strict=True)) for row in quarantined]
        connection.execute(sql.insert(connection, sql.quarantine).on_conflict_do_nothing(), rows)


def book_credits(
    connection: sa.Connection, shard: int, transfers: Sequence[Transfer], at_ms: int
) -> None:
    """Move the money of credited transfers between the accounts and count their latency."""
    debits: Counter[int] = Counter()
    credits: Counter[int] = Counter()
    for transfer in transfers:
        debits[transfer.sponsor] += transfer.amount_fen
        credits[transfer.user] += transfer.amount_fen
    sql.add_to_accounts(
        connection,
        [(AccountKind.SPONSOR, sponsor, debits[sponsor], 0) for sponsor in sorted(debits)]
        + [(AccountKind.USER, user, 0, credits[user]) for user in sorted(credits)],
    )
    rows = [{"shard": shard, **row._asdict()} for row in count_latency(transfers, at_ms)]
    if rows:
        table = sql.credit_latency
        statement = sql.insert(connection, table)
        claims = table.c.claims + statement.excluded.claims
        keys = ["shard", "second", "bucket"]
        connection.execute(
            statement.on_conflict_do_update(index_elements=keys, set_={"claims": claims}), rows
        )


def _position(connection: sa.Connection, shard: int) -> int:
    query = sa.select(sql.positions.c.position).where(sql.positions.c.shard == shard)
    return int(connection.execute(query).scalar() or 0)


def _leave_pending(
    connection: sa.Connection, transfer: Transfer, state: TransferState, credited_at_ms: int
) -> bool:
    """Move one transfer out of PENDING; False when it had left already."""
    table = sql.transfers
    changed = connection.execute(
        sa.update(table)
        .where(table.c.serial == transfer.serial, table.c.state == int(TransferState.PENDING))
        .values(state=int(state), credited_at_ms=credited_at_ms)
    )
    return bool(changed.rowcount == 1)


def _cut(serials: Sequence[int]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(serials), LOOKUP_SERIALS_MAX):
        yield serials[start : start + LOOKUP_SERIALS_MAX]
