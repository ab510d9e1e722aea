"""Owns the ledger's schema and how SQLite and PostgreSQL are opened for it.

Refuses to know any rule of money. One database (in PostgreSQL: one schema) is the ledger of one
run of a campaign; the rows `run` and `campaign` of `ledger_facts` bind it. Money is BIGINT fen.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hongbao.domain.errors import Corrupt, Rejected, Transient

SCHEMA_VERSION: Final = 2  # 1 knew no run
RUN: Final = "run"  # the fact whose logs the positions of settlement belong to
CLOSED_AT: Final = "closed_at_ms"  # the fact that refunds have begun: no claim is paid any more
BUSY_TIMEOUT_MS: Final = 30_000
SQLITE_PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",  # a commit is on disk before it is reported (faults.md F18)
    f"busy_timeout={BUSY_TIMEOUT_MS}",  # several settle processes write one file, one at a time
    "cache_size=-65536",  # 64 MiB
    "wal_autocheckpoint=8000",  # pages; a checkpoint for each few postings, not for each
)
POSTGRES_LIMITS: Final = {  # a server whose machine is gone sends no word; the URL may say others
    "connect_timeout": 5,  # s
    "keepalives_idle": 10,  # s
    "keepalives_interval": 5,  # s
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # ms
}

# SQLite keeps a table by its INTEGER key only when the type has exactly that name.
Id: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
metadata: Final = sa.MetaData()


def _column(name: str, kind: Any = sa.BigInteger, *, key: bool = False) -> "sa.Column[Any]":
    return sa.Column(name, kind, primary_key=key, nullable=False, autoincrement=False)


facts = sa.Table(  # schema_version, campaign, run, closed_at_ms
    "ledger_facts", metadata, _column("fact", sa.Text, key=True), _column("value", sa.Text)
)
accounts = sa.Table(  # double entry: Σ debited_fen = Σ credited_fen over all accounts
    "accounts",
    metadata,
    _column("kind", sa.SmallInteger, key=True),  # AccountKind
    _column("owner", Id, key=True),  # 0, sponsor index or user id
    _column("debited_fen"),
    _column("credited_fen"),
    sqlite_with_rowid=False,
)
transfers = sa.Table(  # one for each packet that was claimed: sponsor's pool → user
    "transfers",
    metadata,
    _column("serial", Id, key=True),  # the packet: a second transfer of it cannot exist
    _column("user_id"),
    _column("sponsor", sa.Integer),
    _column("slot", sa.Integer),
    _column("key_id", sa.Integer),
    _column("amount_fen"),
    _column("opened_at_ms"),
    _column("shard", sa.Integer),
    _column("state", sa.SmallInteger),  # settle.ports.TransferState
    _column("credited_at_ms"),  # 0 while it is not credited
    sa.CheckConstraint("amount_fen > 0", name="transfers_move_money"),
)
sa.Index(
    "transfers_pending",
    transfers.c.shard,
    transfers.c.amount_fen,
    sqlite_where=transfers.c.state == 0,
    postgresql_where=transfers.c.state == 0,
)
quarantine = sa.Table(
    "quarantine",
    metadata,
    _column("shard", sa.Integer, key=True),
    _column("position", Id, key=True),
    _column("entry", sa.Integer, key=True),
    _column("serial"),
    _column("user_id"),
    _column("sponsor", sa.Integer),
    _column("claimed_fen"),
    _column("held_fen"),
    _column("reason", sa.Text),
    _column("evidence", sa.Text),
    _column("at_ms"),
)
sa.Index("quarantine_serial", quarantine.c.serial)
releases = sa.Table(  # quarantined packets that a person let be paid
    "releases",
    metadata,
    _column("serial", Id, key=True),
    _column("why", sa.Text),
    _column("at_ms"),
)
positions = sa.Table(  # of the next block of a claims shard to settle
    "positions",
    metadata,
    _column("shard", sa.Integer, key=True),
    _column("position"),
    _column("moved_at_ms"),
)
fundings = sa.Table(  # pay-ins and refunds of sponsors, each once by its reference
    "fundings",
    metadata,
    _column("reference", sa.Text, key=True),
    _column("kind", sa.Text),  # pay-in | refund | surplus
    _column("sponsor", sa.Integer),
    _column("amount_fen"),
    _column("at_ms"),
    sa.CheckConstraint("amount_fen > 0", name="fundings_move_money"),
)
credit_latency = sa.Table(
    "credit_latency",
    metadata,
    _column("shard", sa.Integer, key=True),
    _column("second", Id, key=True),
    _column("bucket", sa.Integer, key=True),
    _column("claims"),
)


def open_engine(url: str) -> sa.Engine:
    """Return an engine on `sqlite:///path` or `postgresql+psycopg://…`; connects lazily."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        limits = {name: n for name, n in POSTGRES_LIMITS.items() if name not in parsed.query}
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args=limits)
    if parsed.get_backend_name() != "sqlite":
        raise Rejected(f"a ledger lives in SQLite or PostgreSQL, not in {url}", field="ledger_url")
    engine = sa.create_engine(parsed)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


@contextlib.contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Run one write transaction, durable on exit. Raises Transient when the database fails.

    After Transient the transaction may or may not be committed.
    """
    with _translated(), engine.connect() as connection:
        if engine.dialect.name == "sqlite":  # no upgrade from reader to writer can then fail
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.commit()  # nothing is left to commit if the caller rolled back
        except BaseException:
            with contextlib.suppress(sa.exc.DBAPIError):
                connection.rollback()
            raise


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Run one read transaction on a snapshot. Raises Transient when the database fails."""
    with _translated(), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        try:
            yield connection
        finally:
            with contextlib.suppress(sa.exc.DBAPIError):
                connection.rollback()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise Transient(f"the ledger's database failed: {error}") from error
    except sa.exc.DatabaseError as error:
        raise Corrupt(f"the ledger's database refused: {error}") from error


def prepare_schema(engine: sa.Engine, campaign: str, run: str) -> None:
    """Create what is missing and bind the ledger to the run; safe to repeat and to race.

    `run` is the run's id: positions of settlement mean nothing in the logs of another run.
    Raises Rejected when the ledger belongs to another campaign or run, or to another schema
    version.
    """
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('hongbao ledger'))"))
        metadata.create_all(connection)
        wanted = {"schema_version": str(SCHEMA_VERSION), "campaign": campaign, RUN: run}
        rows = [{"fact": fact, "value": value} for fact, value in wanted.items()]
        rows.append({"fact": CLOSED_AT, "value": ""})  # present, so that it can be locked
        connection.execute(insert(connection, facts).on_conflict_do_nothing(), rows)
        found = {row.fact: row.value for row in connection.execute(sa.select(facts))}
    for fact, value in wanted.items():
        if found[fact] != value:
            raise Rejected(
                f"the ledger has {fact} {found[fact]}, this process wants {value}: choose another "
                "database, or go on from the folder of the run that it belongs to",
                field="ledger_url",
            )


def find_run(engine: sa.Engine) -> str | None:
    """Return the id of the run that a ledger belongs to; None when it is new. Writes nothing.

    Of a ledger of schema version 1, which knew no run, the campaign.
    """
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return None
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table(facts.name):
            return None
        found = {row.fact: row.value for row in connection.execute(sa.select(facts))}
    return found.get(RUN, found.get("campaign"))


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """Return the dialect's INSERT, which both know with ON CONFLICT and `excluded`."""
    dialects = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    return dialects[connection.dialect.name](table)


def read_fact(connection: sa.Connection, fact: str) -> str | None:
    """Return a fact; it cannot change before the transaction ends.

    PostgreSQL needs the lock for that; SQLite has one writer.
    """
    query = sa.select(facts.c.value).where(facts.c.fact == fact).with_for_update(read=True)
    value: str | None = connection.execute(query).scalar()
    return value


def lock_fact(connection: sa.Connection, fact: str) -> str:
    """Return a fact; nobody else can read it under `read_fact` or lock it until the end."""
    query = sa.select(facts.c.value).where(facts.c.fact == fact).with_for_update()
    return str(connection.execute(query).scalar_one())


def add_to_accounts(
    connection: sa.Connection, movements: Sequence[tuple[int, int, int, int]]
) -> None:
    """Add (kind, owner, debit fen, credit fen) to accounts, each named once and in key order."""
    if not movements:
        return
    names = ("kind", "owner", "debited_fen", "credited_fen")
    rows = [dict(zip(names, movement, strict=True)) for movement in movements]
    statement = insert(connection, accounts)
    sums = {name: accounts.c[name] + statement.excluded[name] for name in names[2:]}
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(names[:2]), set_=sums), rows
    )
