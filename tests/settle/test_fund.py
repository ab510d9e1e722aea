"""Proves sponsors' money: pay-ins once, refunds once, never more than nobody claimed."""

import inspect

import pytest
import sqlalchemy as sa
from hongbao.access.limits import AccessLimits
from hongbao.adapters import sql
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.cli.fund import refund
from hongbao.domain.errors import Rejected, Transient
from hongbao.redeem.limits import RedeemLimits
from hongbao.settle.fund import (
    Backlog,
    FundMovement,
    Minted,
    Pool,
    check_over,
    plan_pay_in,
    plan_returns,
)
from hongbao.settle.ports import Posting, Quarantined, Transfer, TransferState
from hypothesis import given
from hypothesis import strategies as st

AT_MS = 1_700_000_000_000
DEPOSIT_FEN = 2000
MINTED = Minted({1: 1000, 2: 500})


def pay_in(sponsor: int, fen: int, reference: str) -> FundMovement:
    return FundMovement(reference, "pay-in", sponsor, fen, AT_MS)


def transfer(serial: int, sponsor: int, fen: int) -> Transfer:
    return Transfer(serial, 7, sponsor, 1, 1, fen, AT_MS)


def accounts(engine: sa.Engine) -> dict[tuple[int, int], tuple[int, int]]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(sql.accounts)).all()
    return {(row.kind, row.owner): (row.debited_fen, row.credited_fen) for row in rows}


def test_a_pay_in_counts_once_by_its_reference(engine: sa.Engine) -> None:
    fund = SqlFund(engine)
    assert fund.pay_in(pay_in(1, 1000, "r1"), DEPOSIT_FEN)
    assert not fund.pay_in(pay_in(1, 1000, "r1"), DEPOSIT_FEN)
    assert fund.pay_in(pay_in(1, 50, "r2"), DEPOSIT_FEN)
    assert fund.pools() == [Pool(1, paid_in_fen=1050)]
    assert accounts(engine) == {(0, 0): (1050, 0), (1, 1): (0, 1050)}


@pytest.mark.parametrize("other", [pay_in(1, 999, "r1"), pay_in(2, 1000, "r1")])
def test_a_reference_of_another_movement_is_refused(engine: sa.Engine, other: FundMovement) -> None:
    fund = SqlFund(engine)
    fund.pay_in(pay_in(1, 1000, "r1"), DEPOSIT_FEN)
    with pytest.raises(Rejected, match="r1"):
        fund.pay_in(other, DEPOSIT_FEN)


@pytest.mark.parametrize(
    ("reference", "sponsor", "fen", "field"),
    [
        ("", 1, 5, "reference"),
        ("a\n", 1, 5, "reference"),
        ("x" * 101, 1, 5, "reference"),
        ("refund/1/1", 1, 5, "reference"),
        ("surplus/1/1", 1, 5, "reference"),
        ("r", 3, 5, "sponsor"),
        ("r", 1, 0, "amount"),
        ("r", 1, -5, "amount"),
    ],
)
def test_a_wrong_pay_in_names_the_field(reference: str, sponsor: int, fen: int, field: str) -> None:
    with pytest.raises(Rejected) as caught:
        plan_pay_in(reference, sponsor, fen, {1: 1000, 2: 500}, AT_MS)
    assert caught.value.field == field


def test_a_deposit_cannot_be_paid_in_twice_under_two_references(engine: sa.Engine) -> None:
    """As found: the second one stayed in the pool for ever."""
    fund = SqlFund(engine)
    assert fund.pay_in(pay_in(1, 600, "bank-1"), 1000)
    with pytest.raises(Rejected, match=r"has paid in 6.00 of 10.00 yuan: 4.01 are too much"):
        fund.pay_in(pay_in(1, 401, "bank-2"), 1000)
    assert fund.pay_in(pay_in(1, 400, "bank-2"), 1000)
    assert not fund.pay_in(pay_in(1, 400, "bank-2"), 1000)
    assert fund.pools() == [Pool(1, paid_in_fen=1000)]
    assert accounts(engine) == {(0, 0): (1000, 0), (1, 1): (0, 1000)}


def test_what_no_packet_was_minted_for_goes_back_as_surplus(engine: sa.Engine) -> None:
    """R40: a deposit that the active mix of schemes does not use whole is not stuck."""
    fund, ledger = SqlFund(engine), SqlLedger(engine)
    fund.pay_in(pay_in(1, 1500, "r1"), 1500)
    fund.pay_in(pay_in(3, 70, "r3"), 70)
    ledger.post(Posting(0, 0, 1, TransferState.CREDITED, AT_MS, [transfer(10, 1, 300)], []))
    returned = [(one.reference, one.amount_fen) for one in fund.refund(MINTED, AT_MS)]
    assert returned == [("refund/1/1", 700), ("surplus/1/1", 500), ("surplus/3/1", 70)]
    assert fund.refund(MINTED, AT_MS) == []
    assert [pool.balance_fen for pool in fund.pools()] == [0, 0]
    assert accounts(engine)[0, 0] == (1570, 1270)
    assert accounts(engine)[1, 1] == (1500, 1500)


def test_refunds_keep_back_what_was_paid_promised_or_quarantined(engine: sa.Engine) -> None:
    """R36: deposit − credited − pending − quarantined; twice changes nothing."""
    fund, ledger = SqlFund(engine), SqlLedger(engine)
    fund.pay_in(pay_in(1, 1000, "r1"), DEPOSIT_FEN)
    fund.pay_in(pay_in(2, 500, "r2"), DEPOSIT_FEN)
    credited, pending = TransferState.CREDITED, TransferState.PENDING
    held = Quarantined(0, 0, 0, 30, 7, 1, 90, 40, "amount_differs", "{}")
    paid_later = held._replace(entry=1, serial=10, held_fen=300)
    ledger.post(Posting(0, 0, 1, credited, AT_MS, [transfer(10, 1, 300)], [held, paid_later]))
    ledger.post(Posting(0, 1, 2, pending, AT_MS, [transfer(11, 1, 60)], []))
    assert fund.pending_transfers() == 1
    with pytest.raises(Transient, match="60 fen are not paid out yet"):
        fund.refund(MINTED, AT_MS)
    ledger.credit(0, [transfer(11, 1, 60)], AT_MS)
    first = fund.refund(MINTED, AT_MS)
    assert [(one.sponsor, one.amount_fen) for one in first] == [(1, 600), (2, 500)]
    assert fund.refund(MINTED, AT_MS) == []
    assert [pool.balance_fen for pool in fund.pools()] == [0, 0]
    assert accounts(engine)[0, 0] == (1500, 1100)
    debits, credits = zip(*accounts(engine).values(), strict=True)
    assert sum(debits) == sum(credits)


@pytest.mark.xdist_group("postgres")
def test_a_payment_credited_while_refunds_are_computed_is_not_refunded(
    postgres_engine: sa.Engine,
) -> None:
    """Sums of several statements at READ COMMITTED would miss it: no longer pending, not credited.

    SQLite has one writer, so nothing can move meanwhile.
    """
    fund, one = SqlFund(postgres_engine), transfer(10, 1, 300)
    fund.pay_in(pay_in(1, 1000, "r1"), DEPOSIT_FEN)
    SqlLedger(postgres_engine).post(Posting(0, 0, 1, TransferState.PENDING, AT_MS, [one], []))
    elsewhere = sql.open_engine(postgres_engine.url.render_as_string(hide_password=False))

    def pay_meanwhile(*arguments: object) -> None:
        if "FROM transfers" in str(arguments[2]):
            SqlLedger(elsewhere).credit(0, [one], AT_MS)

    sa.event.listen(postgres_engine, "after_cursor_execute", pay_meanwhile)
    with pytest.raises(Transient):
        fund.refund(MINTED, AT_MS)
    sa.event.remove(postgres_engine, "after_cursor_execute", pay_meanwhile)
    assert [one.amount_fen for one in fund.refund(MINTED, AT_MS)] == [700]
    elsewhere.dispose()


def test_a_refused_payment_is_kept_back_as_quarantine_not_as_pending(engine: sa.Engine) -> None:
    fund, ledger, one = SqlFund(engine), SqlLedger(engine), transfer(10, 1, 300)
    fund.pay_in(pay_in(1, 1000, "r1"), DEPOSIT_FEN)
    ledger.post(Posting(0, 0, 1, TransferState.PENDING, AT_MS, [one], []))
    ledger.refuse(one, Quarantined(0, 10, -1, 10, 7, 1, 300, 300, "sink_refused", "{}"), AT_MS)
    assert fund.pools() == [Pool(1, paid_in_fen=1000, held_fen=300)]


@given(
    paid_in=st.integers(0, 2000),
    minted=st.integers(0, 1000),
    shares=st.tuples(*[st.integers(0, 400)] * 3),
)
def test_a_refund_never_passes_the_balance_nor_what_nobody_claimed(
    paid_in: int, minted: int, shares: tuple[int, int, int]
) -> None:
    credited, pending, held = shares
    pool = Pool(1, paid_in, credited, pending, held)
    fen = Minted({1: minted}).refundable_fen(pool)
    assert 0 <= fen <= max(0, pool.balance_fen)
    assert fen <= max(0, minted - credited - pending - held)
    surplus = Minted({1: minted}).surplus_fen(pool)
    assert fen + surplus == max(0, pool.balance_fen)
    after = Pool(1, paid_in, credited, pending, held, fen, surplus)
    assert plan_returns([after], Minted({1: minted})) == []


def test_refunds_wait_for_the_end_and_for_the_grace() -> None:
    check_over(AT_MS, AT_MS - 5000, 5000)
    with pytest.raises(Transient, match="over in 1 s") as caught:
        check_over(AT_MS, AT_MS - 4999, 5000)
    assert caught.value.retry_after_s == 1


def test_refunds_wait_for_settlement_and_for_the_sink() -> None:
    assert Backlog({0: 0, 1: 0}, 0).problems() == []
    assert len(Backlog({0: 3, 1: 0}, 2).problems()) == 2


def test_by_default_redeem_and_refunds_agree_on_the_users_time_to_open() -> None:
    """As found: money went back after 120 s, packets could be opened for 600 s."""
    grace_ms = inspect.signature(refund).parameters["grace_s"].default * 1000
    assert grace_ms >= RedeemLimits().open_grace_ms
    assert grace_ms >= AccessLimits().claim_ttl_s * 1000
