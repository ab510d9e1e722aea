"""The timeline: which slot is open at a moment, and its rehearsal (R3, R33)."""

import pytest
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import Corrupt, Rejected
from hongbao.domain.ids import SlotNumber
from hongbao.domain.timeline import REHEARSED_GAPS_PERCENT_MAX, Timeline
from hypothesis import given
from hypothesis import strategies as st


def slot(number: int, starts_at_ms: int, ends_at_ms: int) -> Slot:
    return Slot(SlotNumber(number), f"第{number}场", starts_at_ms, ends_at_ms)


EVE = Timeline((slot(1, 1000, 2000), slot(2, 2000, 3000), slot(4, 9000, 9500)))


@pytest.mark.parametrize(
    ("now_ms", "at", "following"),
    [(999, None, 1), (1000, 1, 2), (1999, 1, 2), (2000, 2, 4), (3000, None, 4), (9000, 4, None)],
)
def test_a_slot_is_open_from_its_start_to_just_before_its_end(
    now_ms: int, at: int | None, following: int | None
) -> None:
    open_slot, next_slot = EVE.slot_at(now_ms), EVE.next_slot(now_ms)
    assert (open_slot and open_slot.slot, next_slot and next_slot.slot) == (at, following)


def test_the_timeline_ends_with_its_last_slot() -> None:
    assert [EVE.ended(now_ms) for now_ms in (0, 5000, 9499, 9500)] == [False, False, False, True]


def test_a_slot_counts_as_opened_from_its_lead_on() -> None:
    assert EVE.opened(1999) == {1}
    assert EVE.opened(1999, lead_ms=1) == {1, 2}
    assert EVE.opened(0) == frozenset()


@pytest.mark.parametrize(
    "slots",
    [
        (),
        (slot(1, 5, 5),),
        (slot(1, 0, 10), slot(2, 9, 20)),
        (slot(1, 10, 20), slot(2, 0, 5)),
    ],
)
def test_slots_that_make_no_timeline_are_rejected(slots: tuple[Slot, ...]) -> None:
    with pytest.raises(Rejected):
        Timeline(slots)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    steps = draw(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**7)), min_size=1))
    slots, now_ms = [], draw(st.integers(0, 2**41))
    for number, (pause_ms, length_ms) in enumerate(steps, start=1):
        slots.append(slot(number, now_ms + pause_ms, now_ms + pause_ms + length_ms))
        now_ms = slots[-1].ends_at_ms
    return Timeline(tuple(slots))


@given(timelines())
def test_a_timeline_comes_back_from_its_document(timeline: Timeline) -> None:
    assert Timeline.from_json(timeline.to_json()) == timeline


@given(timelines(), st.integers(0, 2**41), st.integers(10**6, 10**9))
def test_a_rehearsal_fills_its_time_and_keeps_order_and_proportions(
    timeline: Timeline, start_ms: int, duration_ms: int
) -> None:
    open_ms = sum(one.ends_at_ms - one.starts_at_ms for one in timeline.slots)
    shortest_ms = min(one.ends_at_ms - one.starts_at_ms for one in timeline.slots)
    if shortest_ms * duration_ms < 2 * open_ms:
        return  # that slot would round to nothing: refused, see below
    rehearsed = timeline.rehearsed(start_ms, duration_ms)
    assert [one.slot for one in rehearsed.slots] == [one.slot for one in timeline.slots]
    ends_at_ms = rehearsed.slots[-1].ends_at_ms
    assert start_ms <= rehearsed.slots[0].starts_at_ms
    assert ends_at_ms == start_ms + duration_ms
    new_open_ms = sum(one.ends_at_ms - one.starts_at_ms for one in rehearsed.slots)
    assert duration_ms - new_open_ms <= duration_ms * REHEARSED_GAPS_PERCENT_MAX // 100
    for was, now in zip(timeline.slots, rehearsed.slots, strict=True):
        exact_ms = (was.ends_at_ms - was.starts_at_ms) * new_open_ms / open_ms
        assert abs(now.ends_at_ms - now.starts_at_ms - exact_ms) <= 1


def test_a_rehearsal_too_short_for_its_slots_is_rejected() -> None:
    with pytest.raises(Rejected):
        EVE.rehearsed(0, 2)


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[]", b'{"slots": []}', b'{"slots": [{"slot": 1}]}']
)
def test_a_broken_document_is_corrupt(document: bytes) -> None:
    with pytest.raises(Corrupt):
        Timeline.from_json(document)
