"""Holds every ledger to one contract: in memory, on SQLite, on PostgreSQL."""

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hongbao.adapters import sql
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.domain.errors import Fenced, Rejected, Transient
from hongbao.settle.memory import MemoryLedger
from hongbao.settle.ports import (
    AccountKind,
    Ledger,
    Posted,
    Posting,
    Quarantined,
    Transfer,
    TransferState,
)

from tests.minted import CAMPAIGN, RUN
from tests.stalls import Stalls

AT_MS = 1_700_000_001_500
HELD = Quarantined(0, 1, 3, 99, 8, 2, 5, 700, "amount_differs", "{}")


def transfer(serial: int, user: int = 7, amount_fen: int = 100) -> Transfer:
    return Transfer(serial, user, 1, 1, 3, amount_fen, AT_MS - 500)


def posting(*transfers: Transfer, start: int = 0, end: int = 1, shard: int = 0) -> Posting:
    credited = TransferState.CREDITED
    return Posting(shard, start, end, credited, AT_MS, transfers, ())


@pytest.fixture(
    params=[
        "memory",
        "sqlite_engine",
        pytest.param("postgres_engine", marks=pytest.mark.xdist_group("postgres")),
    ]
)
def ledger(request: pytest.FixtureRequest) -> Ledger:
    if request.param == "memory":
        return MemoryLedger()
    return SqlLedger(request.getfixturevalue(request.param))


def test_a_posting_moves_the_position_with_its_transfers(ledger: Ledger) -> None:
    assert ledger.position(0) == 0
    assert ledger.post(posting(transfer(1), transfer(2), end=4)) is Posted.POSTED
    assert ledger.position(0) == 4
    assert sorted(ledger.find_transfers([1, 2, 3])) == [transfer(1), transfer(2)]


def test_a_posting_that_does_not_continue_the_position_is_fenced(ledger: Ledger) -> None:
    ledger.post(posting(transfer(1), end=4))
    for start in (0, 3, 5):
        with pytest.raises(Fenced):
            ledger.post(posting(transfer(2), start=start, end=9))
    assert ledger.position(0) == 4
    assert ledger.find_transfers([2]) == []


def test_a_posting_with_a_known_packet_writes_nothing(ledger: Ledger) -> None:
    ledger.post(posting(transfer(1)))
    again = posting(transfer(2), transfer(1, user=8), start=1, end=2)
    assert ledger.post(again) is Posted.REPEATED
    assert ledger.position(0) == 1
    assert ledger.find_transfers([1, 2]) == [transfer(1)]


def test_shards_have_positions_of_their_own(ledger: Ledger) -> None:
    ledger.post(posting(transfer(1), end=2, shard=0))
    ledger.post(posting(transfer(2), end=5, shard=1))
    assert (ledger.position(0), ledger.position(1)) == (2, 5)


def test_pending_transfers_come_largest_first_and_leave_once(ledger: Ledger) -> None:
    small, large = transfer(1, amount_fen=1), transfer(2, amount_fen=9_000)
    ledger.post(replace(posting(small, large), state=TransferState.PENDING))
    assert ledger.pending(0, 10) == [large, small]
    assert ledger.pending(0, 10, large) == [small]
    assert ledger.pending(0, 10, small) == []
    assert ledger.pending(1, 10) == []
    ledger.credit(0, [large], AT_MS)
    ledger.credit(0, [large], AT_MS)
    assert ledger.pending(0, 10) == [small]
    ledger.refuse(small, HELD, AT_MS)
    ledger.credit(0, [small], AT_MS)
    assert ledger.pending(0, 10) == []


def test_accounts_are_double_entry_and_count_credits_once(engine: sa.Engine) -> None:
    ledger = SqlLedger(engine)
    ledger.post(posting(transfer(1, user=7), transfer(2, user=7), transfer(3, user=1 << 62)))
    pending = replace(posting(transfer(4), start=1, end=2), state=TransferState.PENDING)
    ledger.post(pending)
    for _ in range(2):
        ledger.credit(0, pending.transfers, AT_MS)
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(sa.select(sql.accounts))]
        buckets = connection.execute(sa.select(sa.func.sum(sql.credit_latency.c.claims))).scalar()
    assert sorted(rows) == [
        (AccountKind.SPONSOR, 1, 400, 0),
        (AccountKind.USER, 7, 0, 300),
        (AccountKind.USER, 1 << 62, 0, 100),
    ]
    assert buckets == 4


def test_quarantine_keeps_an_entry_once(engine: sa.Engine) -> None:
    ledger = SqlLedger(engine)
    ledger.post(replace(posting(), quarantined=[HELD]))
    ledger.post(replace(posting(start=1, end=2), quarantined=[HELD]))
    with engine.connect() as connection:
        assert (
            connection.execute(sa.select(sa.func.count()).select_from(sql.quarantine)).scalar() == 1
        )


def test_a_ledger_belongs_to_one_run_campaign_and_schema_version(engine: sa.Engine) -> None:
    sql.prepare_schema(engine, CAMPAIGN, RUN)
    assert sql.find_run(engine) == RUN
    with pytest.raises(Rejected, match=r"has run .* wants another"):
        sql.prepare_schema(engine, CAMPAIGN, "another")
    with pytest.raises(Rejected, match="campaign"):
        sql.prepare_schema(engine, "another", RUN)
    with engine.begin() as connection:
        version = sa.update(sql.facts).where(sql.facts.c.fact == "schema_version")
        connection.execute(version.values(value="99"))
    with pytest.raises(Rejected, match="schema_version"):
        sql.prepare_schema(engine, CAMPAIGN, RUN)


def test_a_ledger_that_knows_no_run_yet_is_nobody_elses_either(engine: sa.Engine) -> None:
    """Of schema version 1."""
    with engine.begin() as connection:
        connection.execute(sa.delete(sql.facts).where(sql.facts.c.fact == sql.RUN))
    assert sql.find_run(engine) == CAMPAIGN


def test_a_database_without_a_ledger_belongs_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    for _ in range(2):
        engine = sql.open_engine(f"sqlite:///{path}")
        assert sql.find_run(engine) is None
        engine.dispose()
    assert not path.exists()


def test_several_writers_of_one_database_all_get_through(engine: sa.Engine) -> None:
    """Settle processes of different shards share one file: they wait, they never fail."""
    errors: list[Exception] = []

    def settle(shard: int) -> None:
        ledger = SqlLedger(engine)
        try:
            for start in range(20):
                serial = shard * 1000 + start
                ledger.post(posting(transfer(serial), start=start, end=start + 1, shard=shard))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=settle, args=(shard,)) for shard in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [SqlLedger(engine).position(shard) for shard in range(4)] == [20] * 4


def test_two_settlers_of_one_shard_post_each_block_once(engine: sa.Engine) -> None:
    """Leases may fail: the ledger's position decides, and one of the two is fenced."""
    outcomes: list[str] = []
    ready = threading.Barrier(2)

    def settle() -> None:
        ledger = SqlLedger(engine)
        for start in range(10):
            ready.wait()
            try:
                outcomes.append(
                    ledger.post(posting(transfer(start), start=start, end=start + 1)).value
                )
            except Fenced:
                outcomes.append("fenced")

    threads = [threading.Thread(target=settle) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["fenced"] * 10 + ["posted"] * 10


def test_a_database_that_is_gone_is_transient(postgres_url: str) -> None:
    engine = sql.open_engine(
        sa.make_url(postgres_url).set(port=1).render_as_string(hide_password=False)
    )
    with pytest.raises(Transient):
        SqlLedger(engine).position(0)


def test_a_database_that_takes_connections_and_says_nothing_is_transient(stalls: Stalls) -> None:
    """A frozen server or a lost machine: settlement must come to its next try by itself."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = sql.open_engine(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/rain")
        began_s = time.monotonic()
        with pytest.raises(Transient, match="timeout"):
            SqlLedger(engine).position(0)
    took_s = time.monotonic() - began_s - stalls.within_s(began_s, time.monotonic())
    assert took_s < 3 * int(sql.POSTGRES_LIMITS["connect_timeout"])
