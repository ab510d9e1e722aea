"""Proves that claims are settled exactly once, whatever arrives how often and in which order."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hongbao.adapters import sql
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.domain.claim import CLOSING, Claim, parse_claim
from hongbao.domain.errors import Corrupt, Fenced, Transient
from hongbao.settle.book import Book, KeyRules, map_amounts
from hongbao.settle.fund import Minted
from hongbao.settle.memory import MemoryLedger
from hongbao.settle.ports import Ledger, Posted, Posting, TransferState
from hongbao.settle.settler import Settler, cut_posting
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.minted import MintedCampaign, tiny_campaign
from tests.settle.claims import (
    SteppedClock,
    blocks_of,
    book_of,
    good_claim,
    serials_of_shard,
    shard_claims,
)


def settler_on(ledger: Ledger, shard: int = 0) -> Settler:
    return Settler(shard, ledger, state=TransferState.CREDITED, wall_ms=SteppedClock().wall_ms)


def paid(ledger: MemoryLedger) -> dict[int, tuple[int, int]]:
    """Return packet → (user, fen)."""
    return {key: (one.user, one.amount_fen) for key, one in ledger.transfers.items()}


def claimed(claims: list[Claim]) -> dict[int, tuple[int, int]]:
    return {claim.serial: (claim.user, claim.amount_fen) for claim in claims}


def reasons(ledger: MemoryLedger) -> list[str]:
    return [row.reason for row in ledger.quarantine.values()]


def test_every_good_claim_is_credited_with_its_amount(minted: MintedCampaign) -> None:
    """R52: reconciled against what was minted, then credited, in one pass over all claims."""
    ledger, claims = MemoryLedger(), shard_claims(minted)
    done = settler_on(ledger).settle(blocks_of(claims), book_of(minted))
    assert (done.claims, done.transfers, done.quarantined) == (len(claims), len(claims), 0)
    assert paid(ledger) == claimed(claims)
    assert sum(ledger.credited_fen.values()) == sum(claim.amount_fen for claim in claims)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_redelivered_and_reordered_blocks_are_credited_once(
    minted: MintedCampaign, data: st.DataObject
) -> None:
    """F5: blocks come N times, in any order, in any portions."""
    claims = shard_claims(minted, count=40)
    blocks = blocks_of(claims, size=4)
    ledger, book = MemoryLedger(), book_of(minted)
    settler = settler_on(ledger)
    portions = st.lists(st.sampled_from(blocks), max_size=6)
    for portion in data.draw(st.lists(portions, max_size=12)):
        settler.settle(portion, book)
        if data.draw(st.booleans()):
            settler = settler_on(ledger)  # a restart
    while settler.settle(blocks, book).blocks:
        pass
    assert paid(ledger) == claimed(claims)
    assert ledger.quarantine == {}


def test_a_claim_that_the_log_repeats_is_credited_once(minted: MintedCampaign) -> None:
    ledger, book = MemoryLedger(), book_of(minted)
    claims = shard_claims(minted, count=3)
    done = settler_on(ledger).settle(blocks_of([*claims, claims[0]], size=2), book)
    assert (done.transfers, done.repeated, done.quarantined) == (3, 1, 0)
    later = blocks_of([claims[1], *shard_claims(minted, count=4)], position=3)
    done = settler_on(ledger).settle(later, book)
    assert (done.transfers, done.repeated, done.quarantined) == (1, 4, 0)
    assert ledger.quarantine == {}


@pytest.mark.parametrize("later_block", [False, True])
def test_a_second_user_of_a_packet_is_quarantined(
    minted: MintedCampaign, later_block: bool
) -> None:
    ledger, book = MemoryLedger(), book_of(minted)
    serial = serials_of_shard(minted, 0)[0]
    claims = [good_claim(minted, serial, 7), good_claim(minted, serial, 8)]
    blocks = blocks_of(claims, size=1)
    for portion in [blocks[:2], blocks[2:]] if later_block else [blocks]:
        settler_on(ledger).settle(portion, book)
    assert paid(ledger) == claimed(claims[:1])
    assert reasons(ledger) == ["claimed_twice"]
    assert next(iter(ledger.quarantine.values())).held_fen == 0


Change = Callable[[MintedCampaign, Claim], Claim]
FAULTS: list[tuple[str, Change]] = [
    ("out_of_range", lambda _, claim: claim._replace(user=0)),
    ("out_of_range", lambda _, claim: claim._replace(user=1 << 63)),
    ("out_of_range", lambda _, claim: claim._replace(opened_at_ms=(1 << 64) - 1)),
    ("unknown_packet", lambda _, claim: claim._replace(serial=5)),
    ("unknown_packet", lambda _, claim: claim._replace(serial=(1 << 64) - 1)),
    ("unknown_packet", lambda _, claim: claim._replace(batch=claim.batch + 1)),
    ("foreign_shard", lambda minted, _: shard_claims(minted, shard=1, count=1)[0]),
    ("header_differs", lambda _, claim: claim._replace(slot=2)),
    ("header_differs", lambda _, claim: claim._replace(sponsor=2)),
    ("header_differs", lambda _, claim: claim._replace(key_id=claim.key_id + 1)),
    ("file_differs", lambda _, claim: claim._replace(file=1)),
    ("file_differs", lambda _, claim: claim._replace(bit=claim.bit + 1)),
    ("amount_differs", lambda _, claim: claim._replace(amount_fen=claim.amount_fen + 1)),
]


@pytest.mark.parametrize(("reason", "change"), FAULTS)
def test_a_claim_that_differs_from_what_was_minted_is_never_paid(
    minted: MintedCampaign, reason: str, change: Change
) -> None:
    """R51: amount tampering, minted packets, unclaimed credited; the evidence is kept."""
    good, victim = shard_claims(minted, count=2)
    bad = change(minted, victim)
    ledger = MemoryLedger()
    settler_on(ledger).settle(blocks_of([good, bad]), book_of(minted))
    assert paid(ledger) == claimed([good])
    assert reasons(ledger) == [reason]
    row = next(iter(ledger.quarantine.values()))
    evidence = json.loads(row.evidence)
    assert parse_claim(bytes.fromhex(evidence["claim"])) == bad
    assert evidence["log"] == "claims/0/1/1"
    known = evidence["minted"] is not None
    assert known == (row.held_fen > 0)


def test_a_claim_under_a_denied_key_is_kept_back(minted: MintedCampaign) -> None:
    """R46: what was opened before the key was denied, and not credited yet."""
    ledger, claims = MemoryLedger(), shard_claims(minted, count=60)
    denied = claims[0].key_id
    book = book_of(minted, keys=KeyRules(denied=frozenset({denied})))
    settler_on(ledger).settle(blocks_of(claims), book)
    assert {claim.serial for claim in claims if claim.key_id != denied} == set(ledger.transfers)
    assert set(reasons(ledger)) == {"key_denied"}


def test_only_keys_of_an_allow_list_are_paid(minted: MintedCampaign) -> None:
    claims = shard_claims(minted, count=60)
    allowed = frozenset({claims[0].key_id})
    ledger = MemoryLedger()
    book = book_of(minted, keys=KeyRules(allowed=allowed))
    settler_on(ledger).settle(blocks_of(claims), book)
    assert {one.key_id for one in ledger.transfers.values()} == allowed


def test_a_packet_of_a_scheme_that_the_slot_does_not_play_is_kept_back(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    """R42: several ticket sets of one budget, and only the active one is paid."""
    second = tiny_campaign(tmp_path, scheme_number=2)
    claims = shard_claims(minted, count=60)
    slots = {claim.slot for claim in claims}
    assert slots == {1}
    ledger = MemoryLedger()
    book = book_of(minted, second, active={1: 2, 2: 1})
    settler_on(ledger).settle(blocks_of(claims[:1]), book)
    assert reasons(ledger) == ["scheme_not_active"]
    rules = book.with_rules({1: 1, 2: 1}, KeyRules())
    settler_on(ledger).settle(blocks_of(claims[1:2], position=2), rules)
    assert paid(ledger) == claimed(claims[1:2])


def test_an_amount_table_that_was_changed_is_refused(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    table = bytearray((minted.folder / minted.manifest.amounts.name).read_bytes())
    table[3] ^= 1
    forged = tmp_path / "amounts.bin"
    forged.write_bytes(table)
    with pytest.raises(Corrupt, match="sha256"):
        map_amounts(forged, minted.manifest)
    with pytest.raises(Corrupt):
        Book([(minted.manifest, forged)], active={1: 1})


class CrashingLedger:
    """Is a ledger whose process dies around a commit, at the calls that are told."""

    def __init__(self, ledger: SqlLedger, before: set[int], after: set[int]) -> None:
        self._ledger = ledger
        self._before = before
        self._after = after
        self.calls = 0

    def post(self, posting: Posting) -> Posted:
        self.calls += 1
        if self.calls in self._before:
            raise Transient("died before the commit")
        posted = self._ledger.post(posting)
        if self.calls in self._after:
            raise Transient("died after the commit")
        return posted

    def __getattr__(self, name: str) -> object:
        return getattr(self._ledger, name)


@pytest.mark.parametrize("restart", [False, True])
def test_settlement_resumes_exactly_after_a_crash_around_any_commit(
    minted: MintedCampaign, engine: sa.Engine, restart: bool
) -> None:
    """F2: every second posting dies, before or after its commit, restarted or not."""
    claims, book = shard_claims(minted, count=60), book_of(minted)
    blocks = blocks_of(claims, size=5)
    ledger = CrashingLedger(SqlLedger(engine), before={1, 4, 7}, after={2, 6, 9})
    settler = settler_on(ledger)  # type: ignore[arg-type]
    crashes = 0
    while settler_on(SqlLedger(engine)).position() < len(blocks):
        position = settler.position()
        try:
            settler.settle(blocks[position : position + 2], book)
        except Transient:
            crashes += 1
            if restart:
                settler = settler_on(ledger)  # type: ignore[arg-type]
    assert crashes == 6
    with engine.connect() as connection:
        rows = connection.execute(sa.select(sql.transfers)).all()
    assert {row.serial: (row.user_id, row.amount_fen) for row in rows} == claimed(claims)
    assert sum(row.amount_fen for row in rows) == sum(claim.amount_fen for claim in claims)


def test_a_crash_inside_the_transaction_leaves_nothing(
    minted: MintedCampaign, engine: sa.Engine
) -> None:
    """F2: the connection dies between the transfers and the commit."""
    book, blocks = book_of(minted), blocks_of(shard_claims(minted, count=10))

    def die(_: sa.Connection) -> None:
        sa.event.remove(engine, "commit", die)
        raise sa.exc.OperationalError("COMMIT", {}, RuntimeError("the disk is gone"))

    sa.event.listen(engine, "commit", die)
    settler = settler_on(SqlLedger(engine))
    with pytest.raises(Transient):
        settler.settle(blocks, book)
    with engine.connect() as connection:
        assert connection.execute(sa.select(sql.transfers)).all() == []
    assert settler.settle(blocks, book).transfers == 10


def test_a_settler_that_was_overtaken_goes_on_where_the_ledger_stands(
    minted: MintedCampaign,
) -> None:
    ledger, book = MemoryLedger(), book_of(minted)
    blocks = blocks_of(shard_claims(minted, count=40))
    slow, fast = settler_on(ledger), settler_on(ledger)
    slow.position()
    fast.settle(blocks[:4], book)
    with pytest.raises(Fenced):
        slow.settle(blocks[:2], book)
    assert slow.position() == 4
    assert slow.settle(blocks, book).blocks == len(blocks) - 4
    assert len(ledger.transfers) == 40


def test_a_claim_after_the_refunds_is_quarantined_not_paid(
    minted: MintedCampaign, engine: sa.Engine
) -> None:
    book, ledger = book_of(minted), SqlLedger(engine)
    first, second = shard_claims(minted, count=2)
    settler_on(ledger).settle(blocks_of([first]), book)
    SqlFund(engine).refund(Minted({}), 1)
    done = settler_on(ledger).settle(blocks_of([second, first], position=2), book)
    assert (done.transfers, done.repeated, done.quarantined) == (0, 1, 1)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(sql.quarantine)).all()
    assert [(row.reason, row.serial) for row in rows] == [("campaign_closed", second.serial)]


def test_a_posting_is_cut_by_claims_but_never_empty(minted: MintedCampaign) -> None:
    claims = shard_claims(minted, count=50)
    blocks = blocks_of(claims * 800, size=10_000)
    assert len(cut_posting(blocks)) == 3
    assert len(cut_posting(blocks_of(claims * 800, size=40_000)[1:])) == 1


def test_every_packet_of_a_campaign_can_be_claimed_and_paid(minted: MintedCampaign) -> None:
    ledger, book = MemoryLedger(), book_of(minted)
    for shard in (0, 1):
        settler_on(ledger, shard).settle(blocks_of(shard_claims(minted, shard)), book)
    assert len(ledger.transfers) == minted.manifest.packets
    assert sum(one.amount_fen for one in ledger.transfers.values()) == minted.manifest.total_fen


def test_the_entry_that_closes_a_log_is_no_claim(minted: MintedCampaign) -> None:
    claims = shard_claims(minted, count=12)
    blocks = blocks_of(claims)
    blocks[-1] = replace(blocks[-1], entries=(*blocks[-1].entries, CLOSING))
    ledger = MemoryLedger()
    assert settler_on(ledger).settle(blocks, book_of(minted)).blocks == len(blocks)
    assert paid(ledger) == claimed(claims)
    assert ledger.quarantine == {}
