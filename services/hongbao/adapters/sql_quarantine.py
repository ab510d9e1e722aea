"""Owns the SQL of quarantine: what lies there, and posting what is released."""

from typing import Any

import sqlalchemy as sa

from hongbao.adapters import sql
from hongbao.adapters.sql_fund import read_pools
from hongbao.adapters.sql_ledger import TRANSFER_COLUMNS, book_credits
from hongbao.domain.errors import Rejected
from hongbao.settle.ports import Quarantined, Transfer, TransferState
from hongbao.settle.release import QuarantinedRow, Release

REFUSED = int(TransferState.REFUSED)


class SqlQuarantine:
    """Is a settle.release.QuarantineLedger in SQLite or PostgreSQL."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take an engine of `sql.open_engine` whose schema is prepared."""
        self._engine = engine

    def rows(self, serial: int | None = None) -> list[QuarantinedRow]:
        """Return quarantined claims, of one packet or all, in the order of the logs."""
        table, transfers, releases = sql.quarantine.c, sql.transfers, sql.releases
        paid = (transfers.c.serial == table.serial) & (transfers.c.state != REFUSED)
        query = sa.select(sql.quarantine, transfers.c.user_id.label("paid_to"), releases.c.why)
        query = query.select_from(
            sql.quarantine.outerjoin(transfers, paid).outerjoin(
                releases, releases.c.serial == table.serial
            )
        )
        if serial is not None:
            query = query.where(table.serial == serial)
        with sql.reading(self._engine) as connection:
            found = connection.execute(query.order_by(table.shard, table.position, table.entry))
            return [_row(row) for row in found.mappings()]

    def release(self, release: Release) -> bool:
        """Post the transfer; False when the packet is paid to this user already.

        Raises Rejected when it is paid to another, or when refunds have begun and the sponsor's
        pool does not cover it.
        """
        transfers, transfer = sql.transfers, release.transfer
        credited = release.state is TransferState.CREDITED
        changes = {
            "shard": release.shard,
            "state": int(release.state),
            "credited_at_ms": release.at_ms if credited else 0,
        }
        with sql.writing(self._engine) as connection:
            closed = sql.lock_fact(connection, sql.CLOSED_AT)  # refunds and releases: one by one
            known = sa.select(transfers).where(transfers.c.serial == transfer.serial)
            found = connection.execute(known.with_for_update()).one_or_none()
            if found is not None:
                _check_same(found, transfer)
                if found.state != REFUSED:
                    return False
            if closed:
                _check_covered(connection, release)
            if found is None:
                row = dict(zip(TRANSFER_COLUMNS, transfer, strict=False)) | changes
                connection.execute(sa.insert(transfers), row)
            else:
                connection.execute(
                    sa.update(transfers)
                    .where(transfers.c.serial == transfer.serial)
                    .values(**changes)
                )
            if credited:
                book_credits(connection, release.shard, [transfer], release.at_ms)
            _keep_reason(connection, release)
        return True


def _check_same(found: "sa.Row[Any]", transfer: Transfer) -> None:
    if (found.user_id, found.amount_fen) != (transfer.user, transfer.amount_fen):
        raise Rejected(
            f"packet {transfer.serial} is paid to user {found.user_id} already", field="serial"
        )


def _check_covered(connection: sa.Connection, release: Release) -> None:
    """Once refunds have begun only money that was kept back is there to pay."""
    transfer = release.transfer
    held = sa.select(sa.func.max(sql.quarantine.c.held_fen)).where(
        sql.quarantine.c.serial == transfer.serial, sql.quarantine.c.sponsor == transfer.sponsor
    )
    held_fen = int(connection.execute(held).scalar() or 0)
    balances = {pool.sponsor: pool.balance_fen for pool in read_pools(connection)}
    there_fen = balances.get(transfer.sponsor, 0) + held_fen
    if there_fen < transfer.amount_fen:
        raise Rejected(
            f"sponsor {transfer.sponsor} has {there_fen} fen left after refunds, "
            f"packet {transfer.serial} needs {transfer.amount_fen}: let the sponsor pay in first",
            field="serial",
        )


def _keep_reason(connection: sa.Connection, release: Release) -> None:
    row = {"serial": release.transfer.serial, "why": release.why, "at_ms": release.at_ms}
    statement = sql.insert(connection, sql.releases)
    newest = {name: statement.excluded[name] for name in ("why", "at_ms")}
    connection.execute(statement.on_conflict_do_update(index_elements=["serial"], set_=newest), row)


def _row(row: "sa.RowMapping") -> QuarantinedRow:
    names = ("user_id" if name == "user" else name for name in Quarantined._fields)
    claim = Quarantined._make(row[name] for name in names)
    status = "held"
    if row["paid_to"] is not None:
        status = "posted" if row["paid_to"] == claim.user else "posted to another"
    return QuarantinedRow(claim, row["at_ms"], status, row["why"] or "")
