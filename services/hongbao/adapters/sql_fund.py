"""Owns the SQL of sponsors' pay-ins and refunds; the rules are settle.fund's."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import sqlalchemy as sa

from hongbao.adapters import sql
from hongbao.domain.errors import Rejected, Transient
from hongbao.settle.fund import (
    PAY_IN,
    REFUND,
    SURPLUS,
    FundMovement,
    Minted,
    Pool,
    check_deposit,
    plan_returns,
)
from hongbao.settle.ports import AccountKind, TransferState

KINDS = (("paid_in_fen", PAY_IN), ("refunded_fen", REFUND), ("surplus_fen", SURPLUS))


class SqlFund:
    """Is a settle.fund.FundLedger in SQLite or PostgreSQL."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take an engine of `sql.open_engine` whose schema is prepared."""
        self._engine = engine

    def pay_in(self, movement: FundMovement, deposit_fen: int) -> bool:
        """Record a pay-in; False when this very one is there already.

        Raises Rejected when the reference names another movement, or when the pool would hold
        more than the sponsor's deposit.
        """
        with sql.writing(self._engine) as connection:
            sql.lock_fact(connection, sql.CLOSED_AT)  # or two at once would both fit
            statement = sql.insert(connection, sql.fundings).on_conflict_do_nothing()
            statement = statement.returning(sql.fundings.c.reference)
            pools = {pool.sponsor: pool for pool in read_pools(connection)}
            if connection.execute(statement, asdict(movement)).one_or_none():
                pool = pools.get(movement.sponsor, Pool(movement.sponsor))
                check_deposit(pool, movement, deposit_fen)
                _book(connection, [movement])
                return True
            known = sa.select(sql.fundings).where(sql.fundings.c.reference == movement.reference)
            found = FundMovement(**connection.execute(known).mappings().one())
        same = (found.kind, found.sponsor, found.amount_fen)
        if same != (movement.kind, movement.sponsor, movement.amount_fen):
            raise Rejected(
                f"reference {movement.reference} is a {found.kind} of {found.amount_fen} fen "
                f"of sponsor {found.sponsor} already",
                field="reference",
            )
        return False

    def refund(self, minted: Minted, at_ms: int) -> list[FundMovement]:
        """Close the ledger for claims and return to each sponsor all that is left of its pool.

        Amounts are computed inside the transaction that closes: nothing can be posted between.
        Raises Transient, and changes nothing, while transfers wait for the sink.
        """
        facts = sql.facts
        with sql.writing(self._engine) as connection:
            connection.execute(
                sa.update(facts)
                .where(facts.c.fact == sql.CLOSED_AT)
                .values(value=sa.case((facts.c.value == "", str(at_ms)), else_=facts.c.value))
            )
            pools = read_pools(connection)
            if pending_fen := sum(pool.pending_fen for pool in pools):
                raise Transient(f"too early for refunds: {pending_fen} fen are not paid out yet")
            movements = [
                FundMovement(_next_reference(connection, kind, sponsor), kind, sponsor, fen, at_ms)
                for kind, sponsor, fen in plan_returns(pools, minted)
            ]
            if movements:
                connection.execute(sa.insert(sql.fundings), [asdict(one) for one in movements])
                _book(connection, movements)
        return movements

    def pools(self) -> list[Pool]:
        """Return the pool of every sponsor that the ledger knows, by sponsor."""
        with sql.reading(self._engine) as connection:
            return read_pools(connection)

    def pending_transfers(self) -> int:
        """Return how many transfers wait for the sink."""
        query = sa.select(sa.func.count()).where(sql.transfers.c.state == TransferState.PENDING)
        with sql.reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())


def _book(connection: sa.Connection, movements: Sequence[FundMovement]) -> None:
    """Move pay-ins from the bank to the pools and returns back."""
    debits: Counter[int] = Counter()
    credits: Counter[int] = Counter()
    for one in movements:
        (credits if one.kind == PAY_IN else debits)[one.sponsor] += one.amount_fen
    sql.add_to_accounts(
        connection,
        [
            (AccountKind.BANK, 0, credits.total(), debits.total()),
            *(
                (AccountKind.SPONSOR, sponsor, debits[sponsor], credits[sponsor])
                for sponsor in sorted(debits.keys() | credits.keys())
            ),
        ],
    )


def _next_reference(connection: sa.Connection, kind: str, sponsor: int) -> str:
    table = sql.fundings.c
    query = sa.select(sa.func.count()).where(table.kind == kind, table.sponsor == sponsor)
    return f"{kind}/{sponsor}/{int(connection.execute(query).scalar_one()) + 1}"


def read_pools(connection: sa.Connection) -> list[Pool]:
    """Return the pool of every sponsor, in one statement.

    Several would see different moments at READ COMMITTED: a transfer that is credited between
    two of them would count as neither credited nor pending, and its money would go back.
    """
    sums: dict[int, dict[str, int]] = {}
    for name, sponsor, fen in connection.execute(sa.union_all(*_parts())):
        sums.setdefault(sponsor, {})[name] = int(fen)
    return [Pool(sponsor, **sums[sponsor]) for sponsor in sorted(sums) if sponsor]


def _parts() -> "Iterator[sa.Select[str, int, int]]":
    """Yield, for each column of a pool, its name and the sum of each sponsor."""
    transfers, fundings = sql.transfers.c, sql.fundings.c
    for name, kind in KINDS:
        of_kind = sa.select(_text(name), fundings.sponsor, sa.func.sum(fundings.amount_fen))
        yield of_kind.where(fundings.kind == kind).group_by(fundings.sponsor)
    states = (("credited_fen", TransferState.CREDITED), ("pending_fen", TransferState.PENDING))
    for name, state in states:
        of_state = sa.select(_text(name), transfers.sponsor, sa.func.sum(transfers.amount_fen))
        yield of_state.where(transfers.state == int(state)).group_by(transfers.sponsor)
    yield _held()


def _text(name: str) -> "sa.Label[str]":
    return sa.literal_column(f"'{name}'", sa.Text).label("name")


def _held() -> "sa.Select[str, int, int]":
    """Sum, per sponsor, the packets in quarantine that have no living transfer, each once."""
    transfers, quarantine = sql.transfers.c, sql.quarantine.c
    alive = sa.exists().where(
        transfers.serial == quarantine.serial, transfers.state != int(TransferState.REFUSED)
    )
    packets = (
        sa.select(quarantine.sponsor, sa.func.max(quarantine.held_fen).label("held_fen"))
        .where(~alive)
        .group_by(quarantine.sponsor, quarantine.serial)
        .subquery()
    )
    held = sa.select(_text("held_fen"), packets.c.sponsor, sa.func.sum(packets.c.held_fen))
    return held.group_by(packets.c.sponsor)
