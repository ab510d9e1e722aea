"""Quarantine has a way out: a claim that passes every check today is paid, once (R51, R54)."""

import asyncio

import pytest
import sqlalchemy as sa
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.adapters.sql_quarantine import SqlQuarantine
from hongbao.domain.claim import Claim
from hongbao.domain.errors import Rejected
from hongbao.settle.book import Book, KeyRules
from hongbao.settle.fund import FundMovement, Minted, Pool
from hongbao.settle.payout import Payout
from hongbao.settle.ports import Posting, SinkAnswer, SinkReply, Transfer, TransferState
from hongbao.settle.release import Release, plan_release
from hongbao.settle.settler import Settler

from tests.minted import CAMPAIGN, MintedCampaign
from tests.settle.claims import SteppedClock, blocks_of, book_of, shard_claims

AT_MS = 1_700_000_100_000
CREDITED, PENDING = TransferState.CREDITED, TransferState.PENDING


def quarantine_one(
    engine: sa.Engine, minted: MintedCampaign, claim: Claim | None = None, *, deny: bool = True
) -> Claim:
    """Settle one claim so that it ends in quarantine, by default as its key is denied."""
    claim = claim or shard_claims(minted, count=1)[0]
    keys = KeyRules(denied=frozenset({claim.key_id})) if deny else None
    ledger = SqlLedger(engine)
    settler = Settler(0, ledger, state=CREDITED, wall_ms=SteppedClock().wall_ms)
    assert settler.settle(blocks_of([claim]), book_of(minted, keys=keys)).quarantined == 1
    return claim


def plan(engine: sa.Engine, claim: Claim, book: Book, state: TransferState = CREDITED) -> Release:
    rows = [row.claim for row in SqlQuarantine(engine).rows(claim.serial)]
    return plan_release(rows, book, state=state, why="it did not leak", at_ms=AT_MS)


def test_a_claim_whose_key_is_allowed_again_is_paid_once(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    claim, quarantine = quarantine_one(engine, minted), SqlQuarantine(engine)
    assert [row.status for row in quarantine.rows()] == ["held"]
    release = plan(engine, claim, book_of(minted))
    assert quarantine.release(release)
    assert not quarantine.release(release)
    (row,) = quarantine.rows()
    assert (row.status, row.why) == ("posted", "it did not leak")
    (transfer,) = SqlLedger(engine).find_transfers([claim.serial])
    assert (transfer.user, transfer.amount_fen) == (claim.user, claim.amount_fen)
    assert SqlFund(engine).pools() == [Pool(claim.sponsor, credited_fen=claim.amount_fen)]


def test_with_a_sink_a_released_claim_is_pending_and_not_credited(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    claim = quarantine_one(engine, minted)
    assert SqlQuarantine(engine).release(plan(engine, claim, book_of(minted), PENDING))
    assert [one.serial for one in SqlLedger(engine).pending(0, 10)] == [claim.serial]


def test_a_claim_that_still_fails_stays_and_says_why(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    wrong = shard_claims(minted, count=1)[0]
    claim = quarantine_one(engine, minted, wrong._replace(amount_fen=wrong.amount_fen + 1))
    with pytest.raises(Rejected, match="still fails: amount_differs"):
        plan(engine, claim, book_of(minted))


@pytest.mark.parametrize("why", ["", " ", "a\nb", "x" * 201])
def test_a_release_needs_a_reason(why: str, minted: MintedCampaign) -> None:
    with pytest.raises(Rejected) as caught:
        plan_release([], book_of(minted), state=CREDITED, why=why, at_ms=AT_MS)
    assert caught.value.field == "why"


def test_a_packet_that_is_paid_to_another_is_not_released(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    claim = quarantine_one(engine, minted)
    theirs = transfer_of(claim)._replace(user=claim.user + 1)
    SqlLedger(engine).post(Posting(0, 2, 3, CREDITED, AT_MS, [theirs], []))
    assert [row.status for row in SqlQuarantine(engine).rows()] == ["posted to another"]
    with pytest.raises(Rejected, match=f"paid to user {claim.user + 1} already"):
        SqlQuarantine(engine).release(plan(engine, claim, book_of(minted)))


def test_money_kept_back_for_a_claim_is_still_there_after_refunds(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    """R36: refunds keep it back, so a release afterwards empties the pool exactly."""
    fund, claim = SqlFund(engine), quarantine_one(engine, minted)
    fund.pay_in(FundMovement("r", "pay-in", claim.sponsor, 10_000, AT_MS), 10_000)
    fund.refund(Minted({claim.sponsor: 10_000}), AT_MS)
    assert SqlQuarantine(engine).release(plan(engine, claim, book_of(minted)))
    assert [pool.balance_fen for pool in fund.pools()] == [0]


def test_a_claim_behind_refunds_is_not_paid_from_money_that_is_gone(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    fund = SqlFund(engine)
    claim = shard_claims(minted, count=1)[0]
    fund.pay_in(FundMovement("r", "pay-in", claim.sponsor, 10_000, AT_MS), 10_000)
    fund.refund(Minted({claim.sponsor: 10_000}), AT_MS)
    quarantine_one(engine, minted, deny=False)
    with pytest.raises(Rejected, match="has 0 fen left after refunds"):
        SqlQuarantine(engine).release(plan(engine, claim, book_of(minted)))
    again = FundMovement("r2", "pay-in", claim.sponsor, claim.amount_fen, AT_MS)
    fund.pay_in(again, 10_000)
    assert SqlQuarantine(engine).release(plan(engine, claim, book_of(minted)))


def refuse_one(engine: sa.Engine, minted: MintedCampaign, **changes: int) -> Claim:
    """Post one good claim, but for the changes, and let the sink refuse it."""
    claim = shard_claims(minted, count=1)[0]._replace(**changes)
    transfer = transfer_of(claim)
    SqlLedger(engine).post(Posting(0, 0, 1, PENDING, AT_MS, [transfer], []))
    payout = Payout(
        0,
        SqlLedger(engine),
        RefusingSink(),
        paused=lambda: False,
        clock=SteppedClock(),
        campaign=CAMPAIGN,
    )
    assert asyncio.run(payout.step()).refused == 1
    return claim


def transfer_of(claim: Claim) -> Transfer:
    return Transfer._make(getattr(claim, name) for name in Transfer._fields)


class RefusingSink:
    """Is a payment backend that wants none of it."""

    async def pay(self, _transfer: Transfer) -> SinkReply:
        return SinkReply(SinkAnswer.REFUSED, "422 no such user")


def test_a_payment_that_the_sink_refused_is_asked_for_again(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    claim = refuse_one(engine, minted)
    assert SqlQuarantine(engine).release(plan(engine, claim, book_of(minted), PENDING))
    assert SqlLedger(engine).pending(0, 10) == [transfer_of(claim)]
    assert SqlFund(engine).pools() == [Pool(claim.sponsor, pending_fen=claim.amount_fen)]


def test_a_payment_that_the_sink_refused_is_checked_by_todays_rules(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    """R46, F20: as found, a key that was denied since did not matter."""
    claim = refuse_one(engine, minted)
    denied = book_of(minted, keys=KeyRules(denied=frozenset({claim.key_id})))
    with pytest.raises(Rejected, match="still fails: key_denied"):
        plan(engine, claim, denied, PENDING)
    with pytest.raises(Rejected, match="still fails: scheme_not_active"):
        plan(engine, claim, book_of(minted, active={1: 2, 2: 2}), PENDING)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"serial": 30}, "unknown_packet"),
        ({"sponsor": 9}, "header_differs"),
        ({"amount_fen": 90_000}, "amount_differs"),
        ({"user": 0}, "out_of_range"),
    ],
)
def test_a_payment_that_the_sink_refused_is_held_against_what_was_minted(
    sqlite_engine: sa.Engine, minted: MintedCampaign, change: dict[str, int], reason: str
) -> None:
    claim = refuse_one(sqlite_engine, minted, **change)
    with pytest.raises(Rejected, match=f"still fails: {reason}"):
        plan(sqlite_engine, claim, book_of(minted), PENDING)
