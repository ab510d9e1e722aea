"""What a report shows of credits, and how far its time goes: from the audit's tables."""

from typing import Any

import pytest
from hongbao.domain.campaign import Slot
from hongbao.domain.ids import SlotNumber
from hongbao.domain.timeline import OPEN_GRACE_MS, Timeline
from hongbao.report.facts import build_settle_rows, find_end_ms

TIMELINE = Timeline((Slot(SlotNumber(1), "one", 1000, 9000),))


def audit(opened: dict[int, int], credited: dict[int, int]) -> dict[str, Any]:
    return {
        "opened_per_second": [{"second": s, "packets": n} for s, n in opened.items()],
        "credited_per_second": [
            {"second": s, "claims": n, "p50_s": 0.1, "p99_s": 0.2} for s, n in credited.items()
        ],
    }


def test_credits_and_what_waits_are_told_by_second() -> None:
    rows = build_settle_rows(audit({1: 5, 2: 5}, {2: 6, 3: 4}))
    assert [(row["at_ms"], row["credited"], row["lag"]) for row in rows] == [
        (1000, 0, 0),
        (2000, 0, 5),
        (3000, 6, 4),
        (4000, 10, 0),
    ]


def test_a_credit_of_a_year_later_costs_no_row_for_each_second_between() -> None:
    rows = build_settle_rows(audit({1: 1}, {31_536_000: 1}))
    assert [row["lag"] for row in rows] == [0, 1, 1, 0]


def test_nothing_opened_is_no_row() -> None:
    assert build_settle_rows(audit({}, {})) == []


@pytest.mark.parametrize(
    ("credited_at_s", "end_ms"),
    [(2, 9000), (59, 60_000), (31_536_000, 9000 + OPEN_GRACE_MS)],
)
def test_an_evening_ends_with_its_slots_or_with_the_credits_soon_behind_them(
    credited_at_s: int, end_ms: int
) -> None:
    assert find_end_ms(TIMELINE, build_settle_rows(audit({}, {credited_at_s: 1}))) == end_ms
