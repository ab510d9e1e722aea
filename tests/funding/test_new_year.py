"""The example is real enough to rehearse a New Year's Eve on, and its edits re-plan exactly."""

from collections import Counter
from pathlib import Path

import pytest
from hongbao.cli.campaign_input import load_campaign
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import SlotNumber
from hongbao.domain.plan import MintPlan
from hongbao.domain.plan_file import read_record, write_record
from hongbao.domain.script import (
    PlanRecord,
    check_activation,
    check_replan,
    plan_campaign,
    record_plans,
    replan,
    spent_fen,
)
from hongbao.mint.plan_check import plan_problems

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "new-year"
SLOTS = [SlotNumber(number) for number in range(1, 6)]
SHARDS = {"ticket_shards": 6, "claims_shards": 6}


def load(edit: str = "") -> Campaign:
    campaign, problems = load_campaign(EXAMPLE / "edits" / edit if edit else EXAMPLE)
    assert [str(problem) for problem in problems] == []
    assert campaign is not None
    return campaign


@pytest.fixture(scope="module")
def record() -> PlanRecord:
    """The plans before any edit; they pass through their file, as in real life."""
    campaign = load()
    record = record_plans(campaign, plan_campaign(campaign, **SHARDS))
    document = write_record(record)
    assert read_record(document) == record
    assert write_record(read_record(document)) == document
    return record


def issued_from(number: int, *slots: int) -> dict[SlotNumber, int]:
    return dict.fromkeys([SlotNumber(slot) for slot in slots], number)


def total_after(
    campaign: Campaign, record: PlanRecord, issued: dict[SlotNumber, int], new: MintPlan
) -> Counter[int]:
    active = {**dict.fromkeys(SLOTS, new.scheme_number), **issued}
    return spent_fen((*record.plans, new), active)


def test_the_example_has_the_size_of_the_real_thing() -> None:
    campaign = load()
    assert len(campaign.sponsors) >= 10
    assert len(campaign.slots) == 5
    for scheme in campaign.schemes:
        assert 1_000_000 <= scheme.packets <= 1_500_000
        assert {one.kind for one in scheme.allocations} == {"image", "video", "logo"}
        assert scheme.total_fen == campaign.budget_fen
    assert len(campaign.schemes) == 2


def test_any_mix_of_the_schemes_spends_every_deposit_exactly(record: PlanRecord) -> None:
    """R42: the scheme can change from slot to slot, and the budget stays spent to the fen."""
    deposits = load().deposits
    for mix in range(2 ** len(SLOTS)):
        active = {slot: 1 + (mix >> index & 1) for index, slot in enumerate(SLOTS)}
        assert spent_fen(record.plans, active) == deposits
        assert check_activation(record.plans, {}, active, frozenset(), deposits) == []


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("edit", "issued"),
    [
        ("late-sponsor", (1, 2)),
        ("late-sponsor", (1,)),
        ("late-sponsor", ()),
        ("withdrawn-sponsor", (1,)),
        ("changed-allocation", (1, 2, 3)),
        ("changed-allocation", (1,)),
    ],
)
def test_after_an_edit_issued_money_stays_and_totals_are_exact(
    record: PlanRecord, edit: str, issued: tuple[int, ...], number: int
) -> None:
    """R35: whichever scheme the issued slots were served from."""
    campaign = load(edit)
    served = issued_from(number, *issued)
    new = replan(campaign, record, scheme="main", issued=served, **SHARDS)
    assert {batch.slot for batch in new.batches} == set(SLOTS) - set(served)
    assert total_after(campaign, record, served, new) == {
        sponsor: fen for sponsor, fen in campaign.deposits.items() if fen
    }
    assert list(plan_problems(new)) == []


def test_a_late_sponsor_joins_the_slots_that_are_left(record: PlanRecord) -> None:
    campaign = load("late-sponsor")
    served = issued_from(1, 1, 2)
    new = replan(campaign, record, scheme="main", issued=served, **SHARDS)
    late = campaign.sponsor_indexes["dengta-books"]
    assert late == 13
    assert sum(batch.total_fen for batch in new.batches if batch.sponsor == late) == 150_000_00
    assert total_after(campaign, record, served, new)[late] == 150_000_00


def test_a_withdrawn_sponsor_keeps_what_was_issued_and_gets_nothing_more(
    record: PlanRecord,
) -> None:
    before, campaign = load(), load("withdrawn-sponsor")
    gone = campaign.sponsor_indexes["qingfeng-travel"]
    served = issued_from(1, 1)
    new = replan(campaign, record, scheme="steady", issued=served, **SHARDS)
    assert [batch for batch in new.batches if batch.sponsor == gone] == []
    assert total_after(campaign, record, served, new)[gone] == campaign.deposits[gone]
    assert 0 < campaign.deposits[gone] < before.deposits[gone]


def test_a_changed_allocation_moves_money_only_between_slots_that_are_left(
    record: PlanRecord,
) -> None:
    campaign = load("changed-allocation")
    served = issued_from(1, 1, 2, 3)
    new = replan(campaign, record, scheme="main", issued=served, **SHARDS)
    phone = campaign.sponsor_indexes["haitang-mobile"]
    assert {batch.kind for batch in new.batches if batch.sponsor == phone} == {"image", "video"}
    old = {4: 0, 5: 0}
    moved = {4: 0, 5: 0}
    for batches, sums in ((record.plans[0].batches, old), (new.batches, moved)):
        for batch in batches:
            if batch.sponsor == phone and batch.slot in sums:
                sums[batch.slot] += batch.total_fen
    assert moved[4] == old[4] - old[4] // 2
    assert sum(moved.values()) == sum(old.values())


def test_numbers_of_a_replan_lie_behind_all_before(record: PlanRecord) -> None:
    """R48: so packets of every plan stay unique, also when edits follow edits."""
    first = replan(
        load("late-sponsor"), record, scheme="main", issued=issued_from(1, 1, 2), **SHARDS
    )
    longer = record_plans(load("late-sponsor"), (*record.plans, first))
    second = replan(
        load("late-sponsor"),
        longer,
        scheme="steady",
        issued={**issued_from(1, 1, 2), **issued_from(3, 3)},
        **SHARDS,
    )
    plans = (*record.plans, first, second)
    assert [plan.scheme_number for plan in plans] == [1, 2, 3, 4]
    for name in ("batch", "serial_base"):
        numbers = [getattr(batch, name) for plan in plans for batch in plan.batches]
        assert numbers == sorted(set(numbers))
    keys = [key for plan in plans for batch in plan.batches for key in batch.key_ids]
    assert keys == sorted(set(keys))
    files = [file.file for plan in plans for file in plan.files]
    assert files == sorted(set(files))
    assert {batch.slot for batch in second.batches} == {4, 5}


def told(
    campaign: Campaign, record: PlanRecord, issued: dict[SlotNumber, int], scheme: str = "main"
) -> str:
    problems = check_replan(campaign, record, scheme=scheme, issued=issued)
    with pytest.raises(Rejected):
        replan(campaign, record, scheme=scheme, issued=issued, **SHARDS)
    return "\n".join(str(problem) for problem in problems)


def test_an_edit_that_takes_back_issued_money_is_refused(record: PlanRecord) -> None:
    text = told(load("withdrawn-sponsor"), record, issued_from(1, 1, 2))
    assert text == (
        "sponsor qingfeng-travel: slot 2 has issued 82,530.00 yuan, "
        "the script says 0.00: issued stays"
    )


def test_an_edit_that_puts_money_into_an_issued_slot_is_refused(record: PlanRecord) -> None:
    assert "sponsor dengta-books: slot 3 has issued 0.00" in told(
        load("late-sponsor"), record, issued_from(1, 1, 2, 3)
    )


def test_an_edit_that_takes_a_sponsors_row_away_is_refused(record: PlanRecord) -> None:
    """A sponsor's index is in every ticket: the others must not move up."""
    late = load("late-sponsor")
    longer = record_plans(late, plan_campaign(late, **SHARDS))
    assert "sponsor 13 was dengta-books and is nobody" in told(load(), longer, {})
    other = PlanRecord(record.campaign, ("someone", *record.sponsors[1:]), record.plans)
    assert "sponsor 1 was someone and is changhe-auto" in told(load(), other, {})


def test_edits_that_name_what_does_not_exist_are_refused(record: PlanRecord) -> None:
    campaign = load()
    assert "scheme nope: not in the campaign" in told(campaign, record, {}, scheme="nope")
    assert "plan 7 has no packets for it" in told(campaign, record, issued_from(7, 1))
    assert "all of it is issued" in told(campaign, record, issued_from(1, *range(1, 6)))
    other = PlanRecord("another", record.sponsors, record.plans)
    assert "the plans are of another" in told(campaign, other, {})
