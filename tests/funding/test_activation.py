"""Activating a scheme: all at once, only before a slot opens, never above a deposit (R42)."""

import json
from collections.abc import Sequence

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.cli.activation import Activation, activate_scheme
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Ambiguous, Corrupt, Transient
from hongbao.domain.ids import SlotNumber
from hongbao.domain.plan import MintPlan
from hongbao.domain.script import check_activation, plan_campaign
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Versioned

from tests.funding.files import SPARE, small_campaign, swapped

KEY = "campaigns/small-eve/active"
ONE, TWO = SlotNumber(1), SlotNumber(2)


def campaign_and_plans() -> tuple[Campaign, tuple[MintPlan, ...]]:
    campaign = small_campaign()
    return campaign, plan_campaign(campaign, ticket_shards=2, claims_shards=2)


CAMPAIGN, PLANS = campaign_and_plans()
FIRST_MS = CAMPAIGN.slots[0].starts_at_ms
SECOND_MS = CAMPAIGN.slots[1].starts_at_ms


async def activate(
    store: MemoryStore,
    number: int,
    slots: Sequence[SlotNumber] = (),
    *,
    now_ms: int = FIRST_MS - 60_000,
    lead_ms: int = 5_000,
) -> Activation:
    return await activate_scheme(
        store, CAMPAIGN, PLANS, number, slots, wall_ms=lambda: now_ms, lead_ms=lead_ms
    )


async def active(store: MemoryStore) -> dict[str, int]:
    document: dict[str, int] = json.loads((await store.read(KEY)).value)
    return document


async def test_a_scheme_is_activated_for_all_slots_and_then_changed_for_one() -> None:
    store = MemoryStore()
    assert (await activate(store, 1)).after == {ONE: 1, TWO: 1}
    done = await activate(store, 2, [TWO])
    assert (done.before, done.after) == ({ONE: 1, TWO: 1}, {ONE: 1, TWO: 2})
    assert await active(store) == {"1": 1, "2": 2}
    assert (await store.read(KEY)).revision == done.revision


async def test_activating_again_writes_nothing() -> None:
    store = MemoryStore()
    first = await activate(store, 1)
    again = await activate(store, 1)
    assert (again.revision, again.problems) == (first.revision, ())


async def test_a_slot_that_has_opened_is_refused_and_nothing_changes() -> None:
    store = MemoryStore()
    await activate(store, 1)
    done = await activate(store, 2, [ONE, TWO], now_ms=FIRST_MS)
    assert [str(one) for one in done.problems] == ["slot 1: it has opened on 1 and cannot change"]
    assert await active(store) == {"1": 1, "2": 1}


async def test_without_slots_only_those_that_have_not_opened_change() -> None:
    store = MemoryStore()
    await activate(store, 1)
    assert (await activate(store, 2, now_ms=FIRST_MS)).after == {ONE: 1, TWO: 2}
    done = await activate(store, 1, now_ms=SECOND_MS)
    assert [str(one) for one in done.problems] == ["slot: plan 1 has no slot left to open"]


async def test_a_slot_that_opens_within_the_lead_counts_as_opened() -> None:
    """Two schemes in one slot would spend twice: pods must hear of a change before it opens."""
    store = MemoryStore()
    await activate(store, 1)
    done = await activate(store, 2, [TWO], now_ms=SECOND_MS - 5_000)
    assert done.problems
    done = await activate(store, 2, [TWO], now_ms=SECOND_MS - 5_001)
    assert done.after[TWO] == 2


async def test_the_run_s_own_timeline_decides_what_has_opened() -> None:
    """A rehearsal plays the evening at another time."""
    store = MemoryStore()
    rehearsal = Timeline(CAMPAIGN.slots).rehearsed(1_000_000, 60_000)
    await store.put("campaigns/small-eve/timeline", rehearsal.to_json())
    done = await activate(store, 1, [TWO], now_ms=1_060_000)
    assert "has opened" in str(done.problems[0])


@pytest.mark.parametrize(
    ("number", "slots", "why"),
    [(9, [ONE], "there is no plan 9"), (1, [SlotNumber(3)], "no packets"), (9, [], "no slot left")],
)
async def test_what_does_not_exist_cannot_be_activated(
    number: int, slots: list[SlotNumber], why: str
) -> None:
    done = await activate(MemoryStore(), number, slots)
    assert why in str(done.problems[0])


def test_a_mix_that_spends_more_than_a_deposit_is_refused() -> None:
    """The spare scheme here gives 500 + 500 of a deposit of 1,000, the main one 400 + 600."""
    spare = swapped(swapped(SPARE, "400.00", "500.00"), "600.00", "500.00")
    campaign = small_campaign(spare=spare)
    plans = plan_campaign(campaign, ticket_shards=1, claims_shards=1)
    current = {ONE: 1, TWO: 1}
    problems = check_activation(plans, current, {ONE: 2}, frozenset(), campaign.deposits)
    assert [str(one) for one in problems] == [
        "sponsor 1: the active slots spend 1,100.00 yuan of a deposit of 1,000.00"
    ]
    assert check_activation(plans, current, {TWO: 2}, frozenset(), campaign.deposits) == []
    both = {ONE: 2, TWO: 2}
    assert check_activation(plans, current, both, frozenset(), campaign.deposits) == []


def test_a_slot_on_an_unknown_plan_is_told_rather_than_counted_as_nothing() -> None:
    problems = check_activation(PLANS, {ONE: 7}, {TWO: 1}, frozenset(), CAMPAIGN.deposits)
    assert "plan 7, which is not among these plans" in str(problems[0])


class RacedStore(MemoryStore):
    """Lets another writer win, or loses replies, the first times that somebody writes."""

    def __init__(self, *, races: int = 0, lost_replies: int = 0) -> None:
        super().__init__()
        self.races = races
        self.lost_replies = lost_replies

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        if self.races:
            self.races -= 1
            document = (await self.read(key)).value
            await self.put(key, (document or b'{"1": 2, "2": 2}') + b" ")
        written = await super().compare_and_put(key, value, revision=revision)
        if self.lost_replies:
            self.lost_replies -= 1
            raise Ambiguous("the reply was lost")
        return written


async def test_a_lost_race_is_judged_anew_on_what_is_there() -> None:
    store = RacedStore(races=1)
    done = await activate(store, 1, [ONE])
    assert (done.before, done.after) == ({ONE: 2, TWO: 2}, {ONE: 1, TWO: 2})


async def test_a_lost_reply_is_read_back() -> None:
    store = RacedStore(lost_replies=1)
    done = await activate(store, 1)
    assert done.after == {ONE: 1, TWO: 1}
    assert await active(store) == {"1": 1, "2": 1}


async def test_endless_races_end_in_try_again() -> None:
    with pytest.raises(Transient):
        await activate(RacedStore(races=100), 1, [ONE])


async def test_a_broken_document_is_never_overwritten() -> None:
    store = MemoryStore()
    await store.put(KEY, b"[1]")
    with pytest.raises(Corrupt):
        await activate(store, 1)
