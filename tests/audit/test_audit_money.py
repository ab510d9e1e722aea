"""Proves that the audit holds for an honest run, and finds every planted bug by its equation."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hongbao.adapters import sql
from hongbao.audit.findings import EQUATIONS
from hongbao.domain.claim import CLOSING
from hongbao.domain.cursor import RESERVED, CursorEntry
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import Fen
from hongbao.settle.book import KeyRules
from hongbao.shards.block import Block, BlockKind, ShardKey

from tests import postgres
from tests.audit.world import LATENCY_MS, Run, make_run
from tests.minted import MintedCampaign, tiny_campaign
from tests.settle.claims import blocks_of, good_claim, schemes_of, serials_of_shard, shard_claims


async def test_an_honest_run_holds_and_its_sums_add_up(run: Run) -> None:
    claims = await run.play()
    report = await run.audit()
    line = report.line
    opened = sum(claim.amount_fen for claim in claims)
    assert line == {
        "minted_fen": run.minted.manifest.total_fen,
        "opened_fen": opened,
        "credited_fen": opened,
        "pending_fen": 0,
        "quarantined_fen": 0,
        "unclaimed_fen": run.minted.manifest.total_fen - opened,
        "refunded_fen": 0,
        "packets_minted": run.minted.manifest.packets,
        "packets_opened": len(claims),
        "paid_twice": 0,
        "claims_lost": 0,
        "residue_packets": 0,
        "credit_p99_s": LATENCY_MS / 1000,
        "equations": "hold",
    }
    assert report.holds


async def test_every_packet_opened_leaves_nothing_unclaimed(run: Run) -> None:
    await run.play(count=None)
    line = (await run.audit()).line
    assert line["equations"] == "hold"
    assert line["opened_fen"] == line["minted_fen"]
    assert line["unclaimed_fen"] == 0


async def test_a_deposit_that_no_packet_used_goes_back_beside_the_refunds(run: Run) -> None:
    """R40: and the audit tells both apart."""
    await run.play()
    run.pay(1, 77, "more")
    run.refund()
    report = await run.audit()
    assert report.line["equations"] == "hold"
    assert report.line["refunded_fen"] == report.line["unclaimed_fen"]
    assert [row["surplus_fen"] for row in report.tables.sponsors] == [77, 0]


async def test_a_surplus_beyond_what_was_not_minted_breaks_the_audit(run: Run) -> None:
    await run.play()
    run.execute("INSERT INTO fundings VALUES ('surplus/1/1', 'surplus', 1, 5, 1)")
    run.execute("UPDATE accounts SET debited_fen = debited_fen + 5 WHERE kind = 1 AND owner = 1")
    run.execute("UPDATE accounts SET credited_fen = credited_fen + 5 WHERE kind = 0")
    assert (await run.audit()).line["equations"] == ["surplus_within_paid_in"]


async def test_packets_opened_beyond_what_access_reserved_break_the_audit(run: Run) -> None:
    """An insider who calls Shards.Submit opens tickets that no gateway has ever issued."""
    claims = await run.play()
    file = claims[0].file
    opened = sum(claim.file == file for claim in claims)
    await run.reserve(file, CursorEntry(RESERVED, 1, 1, 0, opened - 1, 0))
    report = await run.audit(alive={(1, 1)})
    assert report.line["equations"] == ["opened_within_reserved"]
    (broken,) = [verdict for verdict in report.tables.verdicts if not verdict.holds]
    assert broken.examples == ({"limit": opened - 1, "used": opened, "file": file},)


async def test_every_reserved_packet_may_be_opened(run: Run) -> None:
    claims = await run.play()
    file = claims[0].file
    opened = sum(claim.file == file for claim in claims)
    await run.reserve(file, CursorEntry(RESERVED, 1, 1, 0, opened, 0))
    assert (await run.audit(alive={(1, 1)})).line["equations"] == "hold"


async def test_a_closed_campaign_refunded_all_that_nobody_claimed(run: Run) -> None:
    """R36: refunded = unclaimed once the campaign is closed."""
    await run.play()
    run.refund()
    line = (await run.audit()).line
    assert line["equations"] == "hold"
    assert line["refunded_fen"] == line["unclaimed_fen"] > 0


async def test_claims_that_are_not_settled_or_not_paid_yet_are_pending(run: Run) -> None:
    """A live audit: minted = opened + unclaimed, opened = credited + pending + quarantined."""
    run.pay_in()
    claims = shard_claims(run.minted, 0, count=30)
    await run.log_and_settle(0, blocks_of(claims[:10]))
    position = len(blocks_of(claims[:10]))
    unpaid = blocks_of(claims[10:20], position=position)
    await run.log_and_settle(0, unpaid, state=0)
    unread = blocks_of(claims[20:], position=position + len(unpaid))
    await run.log_and_settle(0, unread, settle=False)
    line = (await run.audit()).line
    assert line["equations"] == "hold"
    assert line["credited_fen"] == sum(claim.amount_fen for claim in claims[:10])
    assert line["pending_fen"] == sum(claim.amount_fen for claim in claims[10:])


async def test_claims_kept_back_for_a_denied_key_are_quarantined_and_the_equations_hold(
    run: Run,
) -> None:
    run.pay_in()
    claims = shard_claims(run.minted, 0)
    keys = KeyRules(denied=frozenset({claims[0].key_id}))
    await run.log_and_settle(0, blocks_of(claims), keys=keys)
    report = await run.audit()
    held = [claim.amount_fen for claim in claims if claim.key_id in keys.denied]
    assert report.line["equations"] == "hold"
    assert report.line["quarantined_fen"] == sum(held)
    assert report.tables.quarantine["reasons"] == {"key_denied": len(held)}
    run.refund()
    line = (await run.audit()).line
    assert line["equations"] == "hold"
    assert line["refunded_fen"] == line["unclaimed_fen"]


async def test_the_tables_sum_to_the_line_and_are_json(run: Run) -> None:
    await run.play()
    report = await run.audit()
    document = json.loads(json.dumps(report.document()))
    for name in ("minted_fen", "opened_fen", "credited_fen", "unclaimed_fen", "packets_opened"):
        for table in ("slots", "sponsors"):
            assert sum(row[name] for row in document[table]) == document[name]
    for table in ("keys", "files", "pods"):
        assert sum(row["opened_fen"] for row in document[table]) == document["opened_fen"]
    assert sum(row["minted_fen"] for row in document["files"]) == document["minted_fen"]
    for table in ("opened_per_second", "credited_per_second"):
        counted = sum(row.get("packets", row.get("claims")) for row in document[table])
        assert counted == document["packets_opened"]
    second = document["credited_per_second"][0]
    assert LATENCY_MS / 1000 <= second["p99_s"] <= LATENCY_MS / 1000 * 1.05
    assert [one["equation"] for one in document["verdicts"]] == list(EQUATIONS)


Plant = Callable[[Run], Awaitable[object]]


async def plant_double_pay(run: Run) -> None:
    """A settlement without the unique id pays a packet to a second user."""
    run.execute("CREATE TABLE loose AS SELECT * FROM transfers")
    run.execute("DROP TABLE transfers")
    run.execute("ALTER TABLE loose RENAME TO transfers")
    run.execute("INSERT INTO transfers SELECT * FROM transfers LIMIT 1")


async def plant_double_credit(run: Run) -> None:
    """A user's account was credited twice for one transfer."""
    run.execute(
        "UPDATE accounts SET credited_fen = credited_fen * 2 WHERE kind = 2 AND owner = 100"
    )


async def plant_lost_claim(run: Run) -> None:
    """The position moved past a claim that was never posted."""
    claims = shard_claims(run.minted, 0)[60:62]
    blocks = blocks_of(claims, position=9)
    await run.log_and_settle(0, blocks, settle=False)
    run.execute("UPDATE positions SET position = 10 WHERE shard = 0")


async def plant_changed_amount_in_log(run: Run) -> None:
    claim = shard_claims(run.minted, 0)[60]
    forged = claim._replace(amount_fen=claim.amount_fen + 100)
    await run.log_and_settle(0, blocks_of([forged], position=9), settle=False)


async def plant_changed_amount_in_ledger(run: Run) -> None:
    run.execute("UPDATE transfers SET amount_fen = amount_fen + 1 WHERE user_id = 100")


async def plant_foreign_claim(run: Run) -> None:
    """A claim of a packet that was never minted."""
    claim = shard_claims(run.minted, 0)[60]._replace(serial=12345)
    await run.log_and_settle(0, blocks_of([claim], position=9), settle=False)


async def plant_foreign_transfer(run: Run) -> None:
    run.execute("INSERT INTO transfers VALUES (12345, 5, 1, 1, 1, 777, 1, 0, 1, 2)")


async def plant_transfer_without_claim(run: Run) -> None:
    serial = serials_of_shard(run.minted, 0)[-1]
    claim = good_claim(run.minted, serial)
    run.execute(
        "INSERT INTO transfers VALUES (:serial, 5, :sponsor, :slot, :key, :fen, 1, 0, 1, 2)",
        serial=serial,
        sponsor=claim.sponsor,
        slot=claim.slot,
        key=claim.key_id,
        fen=claim.amount_fen,
    )


async def plant_other_payee(run: Run) -> None:
    run.execute("UPDATE transfers SET user_id = 99 WHERE user_id = 100")
    run.execute("UPDATE accounts SET owner = 99 WHERE kind = 2 AND owner = 100")


async def plant_second_claim(run: Run) -> None:
    """A machine let a second user claim a packet; settlement kept it back."""
    claim = shard_claims(run.minted, 0)[0]._replace(user=5)
    await run.log_and_settle(0, blocks_of([claim], position=9))


async def plant_gap(run: Run) -> None:
    claim = shard_claims(run.minted, 0)[60]
    await run.log_and_settle(0, blocks_of([claim], position=11), settle=False)


async def plant_falling_epoch(run: Run) -> None:
    block = Block(BlockKind.EPOCH, 0, b"x" * 16, 9, ())
    await run.log_and_settle(0, [block], settle=False)


async def plant_claim_behind_the_closing(run: Run) -> None:
    closing = Block(BlockKind.OPERATIONS, 1, b"x" * 16, 9, (CLOSING,))
    await run.log_and_settle(0, [closing])
    assert (await run.audit()).holds
    claim = shard_claims(run.minted, 0)[60]
    await run.log_and_settle(0, blocks_of([claim], position=10), settle=False)


async def plant_broken_block(run: Run) -> None:
    await run.store.create(ShardKey("claims", 0).log(9), b"nonsense")


async def plant_lost_log(run: Run) -> None:
    run.execute("UPDATE positions SET position = 99 WHERE shard = 1")


async def plant_greedy_refund(run: Run) -> None:
    run.refund()
    run.execute("UPDATE fundings SET amount_fen = amount_fen + 1 WHERE kind = 'refund'")


async def plant_missing_pay_in(run: Run) -> None:
    run.execute("UPDATE fundings SET amount_fen = 1 WHERE kind = 'pay-in' AND sponsor = 1")


PLANTED: list[tuple[Plant, set[str]]] = [
    (plant_double_pay, {"paid_once", "opened_is_accounted", "books_balance"}),
    (plant_double_credit, {"books_balance"}),
    (plant_lost_claim, {"no_claim_lost", "opened_is_accounted"}),
    (plant_changed_amount_in_log, {"amounts_equal"}),
    (plant_changed_amount_in_ledger, {"paid_as_claimed", "opened_is_accounted", "books_balance"}),
    (plant_foreign_claim, {"claims_within_minted"}),
    (plant_foreign_transfer, {"paid_as_claimed", "opened_is_accounted", "books_balance"}),
    (plant_transfer_without_claim, {"paid_as_claimed", "opened_is_accounted", "books_balance"}),
    (plant_other_payee, {"paid_as_claimed"}),
    (plant_second_claim, {"packet_opened_once"}),
    (plant_gap, {"logs_whole"}),
    (plant_falling_epoch, {"logs_whole"}),
    (plant_claim_behind_the_closing, {"logs_whole"}),
    (plant_broken_block, {"logs_whole"}),
    (plant_lost_log, {"logs_whole"}),
    (plant_greedy_refund, {"refunds_within_unclaimed", "books_balance", "pools_cover_payments"}),
    (plant_missing_pay_in, {"books_balance", "pools_cover_payments"}),
]


@pytest.mark.parametrize(("plant", "broken"), PLANTED)
async def test_a_planted_bug_breaks_its_equation_and_no_other(
    run: Run, plant: Plant, broken: set[str]
) -> None:
    """R51, R54; each checker fails on the bug that it is for (faults.md, mutation proof)."""
    await run.play()
    assert (await run.audit()).holds
    await plant(run)
    report = await run.audit()
    assert set(report.line["equations"]) == broken
    assert not report.holds
    for verdict in report.tables.verdicts:
        assert verdict.holds == (verdict.equation not in broken)
        assert verdict.holds or verdict.examples


async def test_a_packet_that_is_paid_twice_and_a_claim_that_is_lost_are_counted(run: Run) -> None:
    await run.play()
    await plant_double_pay(run)
    await plant_lost_claim(run)
    line = (await run.audit()).line
    assert (line["paid_twice"], line["claims_lost"]) == (1, 2)


async def test_an_open_that_a_client_saw_and_the_log_lacks_is_a_lost_claim(run: Run) -> None:
    claims = await run.play()
    seen = [claim.serial for claim in claims]
    assert (await run.audit(acknowledged=seen)).holds
    never = serials_of_shard(run.minted, 0)[-1]
    line = (await run.audit(acknowledged=[*seen, never, 5])).line
    assert line["equations"] == ["acknowledged_claims_kept"]
    assert line["claims_lost"] == 2


async def test_a_changed_amount_table_breaks_the_audit(run: Run, tmp_path: Path) -> None:
    await run.play()
    manifest, path = schemes_of(run.minted)[0]
    table = bytearray(path.read_bytes())
    table[-1] ^= 1
    forged = tmp_path / "amounts.bin"
    forged.write_bytes(table)
    line = (await run.audit(schemes=[(manifest, forged)])).line
    assert "tables_match_manifests" in line["equations"]


async def test_a_key_that_opened_more_than_its_cap_breaks_the_audit(run: Run) -> None:
    """R45: ¥200–300k a key."""
    await run.play()
    manifest, path = schemes_of(run.minted)[0]
    line = (await run.audit(schemes=[(replace(manifest, key_cap_fen=Fen(10)), path)])).line
    assert line["equations"] == ["keys_within_caps"]


async def test_minting_more_than_a_deposit_breaks_the_audit(run: Run) -> None:
    await run.play()
    campaign = run.given.campaign
    first = campaign.sponsors[0]
    poor = replace(first, deposit_fen=Fen(first.deposit_fen - 1))
    changed = replace(campaign, sponsors=(poor, *campaign.sponsors[1:]))
    line = (await run.audit(campaign=changed)).line
    assert line["equations"] == ["minted_within_deposits"]


async def test_minted_is_the_active_scheme_of_each_slot(
    run: Run, minted: MintedCampaign, tmp_path: Path
) -> None:
    """R42: both schemes exist, one of them plays in a slot; a claim of the other is foreign."""
    second = tiny_campaign(tmp_path, scheme_number=2)
    await run.play(count=5)
    schemes = schemes_of(second, minted)
    report = await run.audit(schemes=schemes, active={1: 1, 2: 2})
    assert report.line["equations"] == "hold"
    assert report.line["packets_minted"] == minted.manifest.packets
    assert [row["scheme_number"] for row in report.tables.slots] == [1, 2]
    report = await run.audit(schemes=schemes, active={1: 2, 2: 2})
    assert {"claims_within_minted", "paid_as_claimed"} <= set(report.line["equations"])


async def test_nothing_active_is_nothing_to_audit(run: Run) -> None:
    with pytest.raises(Rejected):
        await run.audit(active={})


@pytest.mark.xdist_group("postgres")
async def test_the_audit_reads_a_ledger_on_postgresql(
    minted: MintedCampaign, tmp_path: Path
) -> None:
    if reason := postgres.why_not():
        pytest.skip(reason)
    with postgres.running_cluster() as url:
        run = Run(minted, sql.open_engine(url))
        await run.play()
        run.refund()
        there = (await run.audit()).line
        run.engine.dispose()
    here = make_run(minted, tmp_path)
    await here.play()
    here.refund()
    assert there == (await here.audit()).line
    assert there["equations"] == "hold"
    here.engine.dispose()
