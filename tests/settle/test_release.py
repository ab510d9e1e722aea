"""Quarantine has a way out: a claim that passes every check today is paid, once (R51, R54)."""

import pytest
import sqlalchemy as sa
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.adapters.sql_quarantine import SqlQuarantine
from hongbao.domain.claim import Claim
from hongbao.domain.errors import Rejected
from hongbao.settle.book import Book, KeyRules
from hongbao.settle.fund import FundMovement, Minted, Pool
from hongbao.settle.ports import Posting, Quarantined, Transfer, TransferState
from hongbao.settle.release import Release, plan_release
from hongbao.settle.settler import Settler

from tests.minted import MintedCampaign
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
    names = ("serial", "user", "sponsor", "slot", "key_id", "amount_fen", "opened_at_ms")
    theirs = Transfer(*(getattr(claim, name) for name in names))._replace(user=claim.user + 1)
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


def test_a_payment_that_the_sink_refused_is_asked_for_again(
    engine: sa.Engine, minted: MintedCampaign
) -> None:
    ledger, quarantine = SqlLedger(engine), SqlQuarantine(engine)
    transfer = Transfer(30, 7, 1, 1, 1, 90, AT_MS)
    ledger.post(Posting(0, 0, 1, PENDING, AT_MS, [transfer], []))
    evidence = str(transfer._asdict()).replace("'", '"')
    refused = Quarantined(0, 30, -1, 30, 7, 1, 90, 90, "sink_refused", evidence)
    ledger.refuse(transfer, refused, AT_MS)
    release = plan_release([refused], book_of(minted), state=PENDING, why="typo", at_ms=AT_MS)
    assert quarantine.release(release)
    assert ledger.pending(0, 10) == [transfer]
    assert SqlFund(engine).pools() == [Pool(1, pending_fen=90)]
