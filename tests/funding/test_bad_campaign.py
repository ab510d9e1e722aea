"""Bad input of faults.md, campaign file: slots, ids, schemes, too clever YAML (R37, R39)."""

import pytest
from hongbao.domain.campaign_file import read_campaign

from tests.funding.files import CAMPAIGN, SPARE, only_problem, problems_of, small_files, swapped


@pytest.mark.parametrize(
    ("old", "new", "row", "column", "why"),
    [
        ("small-eve", "Small Eve", 1, "campaign", "not an id"),
        ("small-eve", "s" * 41, 1, "campaign", "not an id"),
        ("small-eve", "../eve", 1, "campaign", "not an id"),
        ("小年夜", '""', 2, "title", "empty"),
        ("小年夜", "[a]", 2, "title", "a single value"),
        ('"3000.00"', "3000", 3, "budget_yuan", "two decimals"),
        ('"3000.00"', "3e3", 3, "budget_yuan", "exponent"),
        ('"500.00"', '"300000.01"', 4, "key_cap_yuan", "outside"),
        ("per_user_packets: 5", "per_user_packets: 256", 5, "per_user_packets", "outside"),
        ("sponsors.csv", "../sponsors.csv", 6, "sponsors", "plain name"),
        ("sponsors.csv", "/etc/sponsors.csv", 6, "sponsors", "plain name"),
        ("sponsors.csv", "sponsors.txt", 6, "sponsors", "plain name"),
        ("sponsors.csv", "missing.csv", 6, "sponsors", "missing"),
        ("active_scheme: main", "active_scheme: mian", 7, "active_scheme", "no scheme"),
        ("scheme: spare", "scheme: main", 12, "scheme", "row 9"),
        ("script: spare.csv", "script: sparse.csv", 14, "script", "missing"),
        ("slot: 2", "slot: 1", 20, "slot", "row 16"),
        ("slot: 2", "slot: 65536", 20, "slot", "outside"),
        ("23:55:00+08:00", "23:55:00", 22, "starts_at", "not an instant"),
        ("23:55:00+08:00", "23:65:00+08:00", 22, "starts_at", "not an instant"),
        ("06T00:05", "05T23:55", 20, "ends_at", "ends before it starts"),
        ("06T00:05", "08T00:05", 20, "ends_at", "longer than a day"),
        ("23:55:00", "20:09:59", 20, "starts_at", "overlaps slot 1"),
        ("small-eve", "small-eve\nbudget: 1", 2, "budget", "unknown key"),
        ("small-eve", "small-eve\ncampaign: other", 2, "campaign", "twice"),
        ("title: 小年夜\n", "", 1, "title", "missing"),
        ("    name: 跨年\n", "", 20, "name", "missing"),
    ],
)
def test_a_bad_value_of_the_campaign_file_is_told_by_row_and_key(
    old: str, new: str, row: int, column: str, why: str
) -> None:
    told = problems_of(campaign=swapped(CAMPAIGN, old, new))
    found = [one for one in told if (one.row, one.column) == (row, column)]
    assert [why in one.message for one in found] == [True], [str(one) for one in told]


def test_slots_are_ordered_by_time() -> None:
    early = swapped(CAMPAIGN, "2027-02-05T23:55", "2027-02-04T23:55")
    problem = only_problem(campaign=swapped(early, "2027-02-06T00:05", "2027-02-05T00:05"))
    assert "order slots by time" in problem.message


def test_slots_that_touch_are_good() -> None:
    assert problems_of(campaign=swapped(CAMPAIGN, "23:55:00", "20:10:00")) == []


def test_one_bad_slot_number_does_not_blame_the_scripts() -> None:
    problem = only_problem(campaign=swapped(CAMPAIGN, "slot: 2", "slot: two"))
    assert (problem.row, problem.column) == (20, "slot")


def test_a_second_scheme_is_checked_as_the_first() -> None:
    """R42: every scheme of a budget spends it exactly."""
    problem = only_problem(spare=swapped(SPARE, "600.00", "500.00"))
    assert (problem.file, problem.column) == ("spare.csv", "total_yuan")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("- a\n- b\n", "a mapping"),
        ("{", "not YAML"),
        ("a: b: c", "not YAML"),
        ("campaign: &x a\ntitle: *x\n", "anchors and aliases"),
        ("campaign: !!python/object/apply:os.system [ls]\n", "tags"),
        ("[" * 10_000, "nested deeper"),
        ("a: \x07", "not YAML"),
        ("--- a\n--- b\n", "not YAML"),
    ],
)
def test_yaml_that_is_broken_or_too_clever_is_refused(text: str, why: str) -> None:
    told = problems_of(campaign=text)
    assert why in told[0].message


def test_a_billion_laughs_stay_a_few_bytes() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert "anchors" in only_problem(campaign="\n".join(lines)).message


def test_a_missing_campaign_file_is_told() -> None:
    files = small_files()
    del files["campaign.yaml"]
    campaign, problems = read_campaign(files)
    assert campaign is None
    assert [str(one) for one in problems] == ["campaign.yaml: the file is missing"]


def test_lists_that_are_none_are_told() -> None:
    head = CAMPAIGN[: CAMPAIGN.index("schemes:")]
    told = {
        one.column: one.message for one in problems_of(campaign=head + "schemes: []\nslots: x\n")
    }
    assert "entries are needed" in told["schemes"]
    assert "a list is needed" in told[""]
