"""Plans: every packet once, every sum exact, every key under its cap, all numbers apart."""

from bisect import bisect_right
from itertools import pairwise

import pytest
from hongbao.domain.campaign import Allocation, Campaign, Scheme, Slot, Sponsor
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import CampaignId, Fen, SlotNumber, SponsorIndex
from hongbao.domain.plan import CHUNK_PACKETS_MAX, Batch, MintPlan
from hongbao.domain.script import Numbers, check_numbers, key_count, plan_campaign
from hongbao.domain.ticket import SERIAL_MAX
from hongbao.mint.plan_check import plan_problems
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.funding.files import small_campaign

KEY_CAP_FEN = 3_000


@st.composite
def allocations(draw: st.DrawFn, slots: int, sponsors: int) -> tuple[Allocation, ...]:
    """Draw allocations of small to large counts, with money anywhere within the bounds."""
    keys = st.tuples(
        st.integers(1, sponsors), st.integers(1, slots), st.sampled_from(("image", "video"))
    )
    made = []
    for sponsor, slot, kind in draw(st.lists(keys, min_size=1, max_size=8, unique=True)):
        count = draw(st.one_of(st.integers(1, 9), st.integers(1, 2_000)))
        low = draw(st.integers(1, 40))
        high = draw(st.integers(low, KEY_CAP_FEN if count < 100 else 200))
        total = draw(st.integers(count * low, count * high))
        money = Fen(total), Fen(low), Fen(high)
        made.append(
            Allocation(f"s{sponsor}", SlotNumber(slot), kind, count, *money, "lucky", "image/x")
        )
    return tuple(made)


@st.composite
def campaigns(draw: st.DrawFn) -> Campaign:
    slots, sponsors = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    schemes = draw(st.lists(allocations(slots, sponsors), min_size=1, max_size=3))
    return Campaign(
        campaign=CampaignId("drawn"),
        title="drawn",
        sponsors=tuple(
            Sponsor(SponsorIndex(index), f"s{index}", f"S{index}", Fen(0), 1)
            for index in range(1, sponsors + 1)
        ),
        slots=tuple(Slot(SlotNumber(n), str(n), n * 10, n * 10 + 10) for n in range(1, slots + 1)),
        schemes=tuple(Scheme(f"x{n}", "x", rows) for n, rows in enumerate(schemes)),
        active_scheme="x0",
        per_user_packets=1,
        key_cap_fen=Fen(KEY_CAP_FEN),
    )


SHARDS = st.integers(1, 40)


@settings(deadline=None)
@given(campaigns(), SHARDS, SHARDS)
def test_spans_cover_every_packet_once_and_sum_exactly(
    campaign: Campaign, ticket_shards: int, claims_shards: int
) -> None:
    """R40, R54: what mint draws span by span is the script, to the packet and to the fen."""
    plans = plan_campaign(campaign, ticket_shards=ticket_shards, claims_shards=claims_shards)
    for plan, scheme in zip(plans, campaign.schemes, strict=True):
        covered: dict[int, list[tuple[int, int, int]]] = {batch.batch: [] for batch in plan.batches}
        for slot in {batch.slot for batch in plan.batches}:
            for chunk in range(plan.slot_chunks(slot)):
                spans = plan.chunk_spans(slot, chunk)
                assert spans  # no chunk is empty
                assert sum(span.count for span in spans) <= CHUNK_PACKETS_MAX
                for span in spans:
                    covered[span.batch.batch].append((span.start, span.end, span.total_fen))
        for batch in plan.batches:
            spans_of = sorted(covered[batch.batch])
            assert [spans_of[0][0], spans_of[-1][1]] == [0, batch.count]
            assert all(before[1] == after[0] for before, after in pairwise(spans_of))
            assert sum(fen for _, _, fen in spans_of) == batch.total_fen
            for start, end, fen in spans_of:
                assert (end - start) * batch.min_fen <= fen <= (end - start) * batch.max_fen
        assert (plan.packets, plan.total_fen) == (scheme.packets, scheme.total_fen)


@settings(deadline=None)
@given(campaigns(), SHARDS)
def test_no_key_guards_more_than_its_cap_or_two_batches(campaign: Campaign, shards: int) -> None:
    """R45: and no batch uses a key more than it needs."""
    guarded: dict[int, int] = {}
    for plan in plan_campaign(campaign, ticket_shards=shards, claims_shards=1):
        for batch in plan.batches:
            for index, key_id in enumerate(batch.key_ids):
                start, end = batch.key_start(index), batch.key_start(index + 1)
                assert start < end
                assert batch.key_of(start) == batch.key_of(end - 1) == key_id
                assert key_id not in guarded
                guarded[key_id] = batch.money_fen(end) - batch.money_fen(start)
    assert max(guarded.values()) <= KEY_CAP_FEN
    assert sorted(guarded) == list(range(1, len(guarded) + 1))


@settings(deadline=None)
@given(campaigns(), SHARDS, SHARDS)
def test_numbers_are_apart_over_all_schemes(
    campaign: Campaign, ticket_shards: int, claims_shards: int
) -> None:
    """R42, R48: any mix of schemes has unique packets, batches, keys and files."""
    plans = plan_campaign(campaign, ticket_shards=ticket_shards, claims_shards=claims_shards)
    batches = [batch for plan in plans for batch in plan.batches]
    assert [plan.scheme_number for plan in plans] == list(range(1, len(plans) + 1))
    assert [batch.batch for batch in batches] == list(range(1, len(batches) + 1))
    assert [file.file for plan in plans for file in plan.files] == list(
        range(sum(len(plan.files) for plan in plans))
    )
    serial = 1
    for plan in plans:
        assert plan.serial_base == serial
        for batch in plan.batches:
            assert batch.serial_base == serial
            serial += batch.count


@settings(deadline=None)
@given(campaigns(), SHARDS, SHARDS)
def test_files_cover_every_packet_once_and_none_is_empty(
    campaign: Campaign, ticket_shards: int, claims_shards: int
) -> None:
    for plan in plan_campaign(campaign, ticket_shards=ticket_shards, claims_shards=claims_shards):
        ends = {batch.batch: 0 for batch in plan.batches}
        for file in plan.files:
            ranges = plan.file_ranges(file)
            assert ranges
            assert 0 <= file.claims_shard < claims_shards
            assert 0 <= file.ticket_shard < ticket_shards
            for batch, start, end in ranges:
                assert start == ends[batch.batch]
                ends[batch.batch] = end
        assert ends == {batch.batch: batch.count for batch in plan.batches}
        assert [(f.slot, f.ticket_shard) for f in plan.files] == sorted(
            (f.slot, f.ticket_shard) for f in plan.files
        )


@settings(deadline=None)
@given(campaigns(), SHARDS, SHARDS)
def test_mint_finds_no_fault_in_any_plan(
    campaign: Campaign, ticket_shards: int, claims_shards: int
) -> None:
    for plan in plan_campaign(campaign, ticket_shards=ticket_shards, claims_shards=claims_shards):
        assert list(plan_problems(plan)) == []


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.data())
def test_the_key_count_is_the_fewest_that_keeps_the_cap(
    count: int, low: int, data: st.DataObject
) -> None:
    total_fen = data.draw(st.integers(count * low, count * low * 3))
    cap_fen = data.draw(st.integers(-(-total_fen // count), max(total_fen, 2)))
    keys = key_count(count, total_fen, cap_fen)
    most_packets = -(-count // keys)
    assert -(-most_packets * total_fen // count) <= cap_fen
    if keys > 1:
        more_packets = -(-count // (keys - 1))
        assert more_packets * total_fen // count + 1 > cap_fen


def plan_of_counts(counts: list[int], ticket_shards: int) -> MintPlan:
    rows = tuple(
        Allocation(f"s{n}", SlotNumber(1), "image", c, Fen(c * 20), Fen(10), Fen(90), "lucky", "x")
        for n, c in enumerate(counts, start=1)
    )
    campaign = Campaign(
        campaign=CampaignId("large"),
        title="large",
        sponsors=tuple(
            Sponsor(SponsorIndex(n), f"s{n}", f"S{n}", Fen(c * 20), 1)
            for n, c in enumerate(counts, start=1)
        ),
        slots=(Slot(SlotNumber(1), "1", 0, 1),),
        schemes=(Scheme("x", "x", rows),),
        active_scheme="x",
        per_user_packets=1,
    )
    return plan_campaign(campaign, ticket_shards=ticket_shards, claims_shards=4)[0]


@pytest.mark.parametrize(
    ("counts", "ticket_shards"),
    [
        ([3_000_000_000], 96),
        ([50_000_000, 7, 1], 6),
        ([CHUNK_PACKETS_MAX] * 12, 12),
        ([1], 1000),
        ([2, 2, 2], 1000),
        ([1] * 3000, 6),
        ([100] * 3000, 6),
    ],
)
def test_no_chunk_is_too_large_or_empty_from_one_packet_to_billions(
    counts: list[int], ticket_shards: int
) -> None:
    """R34, R41: constant memory needs bounded chunks, whatever the size of the slot."""
    plan = plan_of_counts(counts, ticket_shards)
    slot = SlotNumber(1)
    chunks = plan.slot_chunks(slot)
    for chunk in {0, 1, chunks // 2, chunks - 2, chunks - 1} & set(range(chunks)):
        packets = sum(span.count for span in plan.chunk_spans(slot, chunk))
        assert 0 < packets <= CHUNK_PACKETS_MAX
    sizes = [sum(end - start for _, start, end in plan.file_ranges(file)) for file in plan.files]
    assert sum(sizes) == sum(counts)
    assert max(sizes) - min(sizes) <= len(counts)
    assert len(plan.files) == min(ticket_shards, max(counts))


def test_the_order_of_rows_changes_no_plan() -> None:
    """R37: sorting a table again must not mint other packets."""
    campaign = small_campaign()
    turned = Campaign(
        **{
            **{name: getattr(campaign, name) for name in campaign.__dataclass_fields__},
            "schemes": tuple(
                Scheme(one.scheme, one.title, one.allocations[::-1]) for one in campaign.schemes
            ),
        }
    )
    shards = {"ticket_shards": 3, "claims_shards": 2}
    assert plan_campaign(turned, **shards) == plan_campaign(campaign, **shards)


def test_the_number_ranges_of_the_ticket_are_limits() -> None:
    """R49: 4,095 keys, 65,535 batches, 2^36 packets: the last one fits, one more is told."""
    one = Allocation("s1", SlotNumber(1), "logo", 10, Fen(10), Fen(1), Fen(1), "uniform", "x")
    assert check_numbers([one], 1, Numbers(key=4086)) == []
    assert [p.column for p in check_numbers([one], 1, Numbers(key=4087))] == ["keys"]
    assert check_numbers([one], 10, Numbers(batch=65_535)) == []
    assert [p.column for p in check_numbers([one], 10, Numbers(batch=65_536))] == ["batches"]
    assert check_numbers([one], 10, Numbers(serial=SERIAL_MAX - 9)) == []
    assert [p.column for p in check_numbers([one], 10, Numbers(serial=SERIAL_MAX - 8))] == [
        "packets"
    ]


@pytest.mark.parametrize("shards", [(0, 1), (1, 0), (65_536, 1), (1, 65_536)])
def test_shards_that_do_not_fit_16_bits_are_rejected(shards: tuple[int, int]) -> None:
    with pytest.raises(Rejected, match="shards"):
        plan_campaign(small_campaign(), ticket_shards=shards[0], claims_shards=shards[1])


def test_key_boundaries_lie_where_key_of_says() -> None:
    (plan, _) = plan_campaign(small_campaign(), ticket_shards=2, claims_shards=2)
    batch: Batch = plan.batches[-1]
    cuts = [batch.key_start(index) for index in range(len(batch.key_ids) + 1)]
    assert len(batch.key_ids) == 3
    for packet in range(batch.count):
        assert batch.key_of(packet) == batch.key_ids[bisect_right(cuts, packet) - 1]
