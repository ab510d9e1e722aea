"""Bad input of faults.md, budget and script: refused with file, row and column (R39, R54)."""

import pytest
from hongbao.domain.campaign_file import Problem, read_campaign
from hongbao.domain.problem import PROBLEMS_MAX
from hongbao.domain.table_file import ROWS_MAX
from hongbao.domain.yaml_file import FILE_BYTES_MAX

from tests.funding.files import (
    CAMPAIGN,
    MAIN,
    SCRIPT_HEADER,
    SPONSORS,
    only_problem,
    problems_of,
    small_files,
    swapped,
)

DAIRY_1 = "dairy,1,image,100,400.00,0.50,20.00,lucky,image/dairy.webp"


def place(problem: Problem) -> tuple[str, int, str]:
    return problem.file, problem.row, problem.column


@pytest.mark.parametrize(
    ("old", "new", "column", "why"),
    [
        ("400.00", "４００.００", "total_yuan", "full-width"),
        ("400.00", "400.005", "total_yuan", "never rounded"),
        ("400.00", "400", "total_yuan", "exactly two decimals"),
        ("400.00", "=400.00", "total_yuan", "as a formula does"),
        ("400.00", "-400.00", "total_yuan", "as a formula does"),
        ("400.00", "4e2", "total_yuan", "exponent"),
        ("400.00", "0.00", "total_yuan", "outside"),
        ("400.00", "", "total_yuan", "empty"),
        (",100,", ",１００,", "count", "full-width"),
        (",100,", ",100.0,", "count", "whole number"),
        (",100,", ",0,", "count", "outside"),
        (",100,", ",-100,", "count", "as a formula does"),
        (",100,", ",68719476736,", "count", "outside 1 to 68719476735"),
        ("0.50", "0.00", "min_yuan", "outside"),
        ("20.00", "167772.16", "max_yuan", "a ticket's 24 bits"),
        ("dairy,1", "diary,1", "sponsor", "no sponsor of sponsors.csv"),
        ("dairy,1", "Dairy,1", "sponsor", "not an id"),
        ("dairy,1", " dairy,1", "sponsor", "spaces"),
        ("dairy,1", "+dairy,1", "sponsor", "as a formula does"),
        ("dairy,1", "@dairy,1", "sponsor", "as a formula does"),
        ("dairy,1", f"{'d' * 41},1", "sponsor", "not an id"),
        ("dairy,1", "dairy,3", "slot", "slot 3 is not in the campaign"),
        ("dairy,1", "dairy,65536", "slot", "outside"),
        ("image,", "gif,", "kind", "none of image, video, logo"),
        ("lucky", "normal", "curve", "none of uniform, lucky"),
        ("image/dairy.webp", "../dairy.webp", "resource", "resource key"),
        ("image/dairy.webp", "image/云.webp", "resource", "resource key"),
        ("image/dairy.webp", "image/d\u200bairy.webp", "resource", "U+200B"),
        ("image/dairy.webp", "image/\x00dairy", "resource", "U+0000"),
        ("image/dairy.webp", "\ufeffimage", "resource", "U+FEFF"),
        ("image/dairy.webp", "x" * 1001, "resource", "1,001 characters"),
    ],
)
def test_a_bad_cell_of_a_script_is_told_by_file_row_and_column(
    old: str, new: str, column: str, why: str
) -> None:
    bad = swapped(MAIN, DAIRY_1, swapped(DAIRY_1, old, new))
    told = [one for one in problems_of(main=bad) if place(one) == ("main.csv", 2, column)]
    assert len(told) == 1
    assert why in told[0].message


@pytest.mark.parametrize(
    ("old", "new", "column", "why"),
    [
        ("1000.00", "１０００.00", "deposit_yuan", "full-width"),
        ("1000.00", "1000.0", "deposit_yuan", "two decimals"),
        ("1000.00", '"1,000.00"', "deposit_yuan", "thousands separator"),
        ("1000.00", '"=SUM(A1:A9)"', "deposit_yuan", "as a formula does"),
        ("1000.00", "10000000000000.01", "deposit_yuan", "above the largest"),
        ("云顶乳业", '"=HYPERLINK(""x"")"', "name", "as a formula does"),
        ("云顶乳业", "\t云顶乳业", "name", "spaces"),
        ("云顶乳业", '"云顶\n乳业"', "name", "U+000A"),
        ("云顶乳业", "云顶\u202e乳业", "name", "U+202E"),
        ("云顶乳业", "", "name", "empty"),
        ("云顶乳业", "云" * 101, "name", "101 characters"),
        (",10\n", ",10001\n", "exposure_weight", "outside"),
        (",10\n", ",1.5\n", "exposure_weight", "whole number"),
    ],
)
def test_a_bad_cell_of_the_budget_is_told_by_file_row_and_column(
    old: str, new: str, column: str, why: str
) -> None:
    problem = only_problem(sponsors=swapped(SPONSORS, old, new))
    assert place(problem) == ("sponsors.csv", 2, column)
    assert why in problem.message


def test_a_merchant_that_stands_twice_is_told_with_both_rows() -> None:
    twice = SPONSORS + "tea,绿叶茶饮,1.00,1\n"
    problem = only_problem(sponsors=twice)
    assert place(problem) == ("sponsors.csv", 4, "sponsor")
    assert "row 3" in problem.message


def test_a_merchant_under_two_ids_is_found_by_its_name_in_any_width() -> None:
    twice = swapped(SPONSORS, "云顶乳业", "ABC Tea") + "abc,ＡＢＣ ｔｅａ,0.00,1\n"
    problem = only_problem(sponsors=twice)
    assert place(problem) == ("sponsors.csv", 4, "name")


def test_an_allocation_that_stands_twice_is_told() -> None:
    twice = swapped(MAIN, DAIRY_1, f"{DAIRY_1}\n{DAIRY_1}")
    told = [str(one) for one in problems_of(main=twice)]
    assert "main.csv:3: dairy, slot 1, image: allocated in row 2 already" in told


def test_a_script_that_spends_too_little_or_too_much_names_sponsor_and_difference() -> None:
    """Sums ≠ budget, first check: allocations against deposits."""
    less = only_problem(main=swapped(MAIN, "400.00", "399.99"))
    assert place(less) == ("main.csv", 0, "total_yuan")
    assert less.message == (
        "dairy: allocations of 999.99 yuan, deposit of 1,000.00 (sponsors.csv:2): 0.01 missing"
    )
    more = only_problem(main=swapped(MAIN, "1200.00", "1200.01"))
    assert more.message.endswith("0.01 too much")


def test_deposits_that_do_not_make_the_stated_budget_are_told() -> None:
    """Sums ≠ budget, second check: deposits against the control total."""
    problem = only_problem(campaign=swapped(CAMPAIGN, "3000.00", "3000.01"))
    assert place(problem) == ("campaign.yaml", 3, "budget_yuan")
    assert "3,000.01 yuan, but the deposits in sponsors.csv are 3,000.00" in problem.message


def test_a_sponsor_without_allocations_is_told() -> None:
    more = SPONSORS + "phone,海棠手机,10.00,1\n"
    campaign = swapped(CAMPAIGN, "3000.00", "3010.00")
    told = problems_of(sponsors=more, campaign=campaign)
    assert [(one.file, one.column) for one in told] == [
        ("main.csv", "total_yuan"),
        ("spare.csv", "total_yuan"),
    ]


@pytest.mark.parametrize(
    ("bounds", "column", "why"),
    [
        ("4.01,20.00", "total_yuan", "cannot fill 100 packets of at least 4.01"),
        ("0.50,3.99", "total_yuan", "do not fit into 100 packets of at most 3.99"),
        ("20.00,0.50", "min_yuan", "above the maximum"),
        ("0.50,500.01", "max_yuan", "more than one key may guard"),
    ],
)
def test_bounds_that_cannot_hold_are_told(bounds: str, column: str, why: str) -> None:
    bad = swapped(MAIN, DAIRY_1, swapped(DAIRY_1, "0.50,20.00", bounds))
    told = [one for one in problems_of(main=bad) if place(one) == ("main.csv", 2, column)]
    assert [why in one.message for one in told] == [True]


@pytest.mark.parametrize("bounds", ["4.00,20.00", "0.50,4.00", "4.00,4.00"])
def test_bounds_that_hold_exactly_are_good(bounds: str) -> None:
    assert problems_of(main=swapped(MAIN, DAIRY_1, swapped(DAIRY_1, "0.50,20.00", bounds))) == []


def test_more_than_4095_keys_are_told() -> None:
    """R45, R49: a key id has 12 bits; 15,000 packets, two to a key, need 7,500."""
    rows = (
        f"{sponsor},{slot},image,{count},{count // 5}.00,0.20,0.20,uniform,x\n"
        for sponsor, slot, count in (("dairy", 1, 2000), ("dairy", 2, 3000), ("tea", 1, 4000))
    )
    many = SCRIPT_HEADER + "".join(rows) + "tea,2,image,6000,1200.00,0.20,0.20,uniform,x\n"
    limited = swapped(CAMPAIGN, '"500.00"', '"0.40"')
    (problem,) = (one for one in problems_of(main=many, campaign=limited) if one.column == "keys")
    assert problem.message.startswith("7,500 are needed with all schemes, at most 4,095 exist")


def test_a_ragged_row_is_told_once_and_sums_are_not_guessed() -> None:
    for ragged in (DAIRY_1 + ",extra", DAIRY_1.replace(",lucky", "")):
        problem = only_problem(main=swapped(MAIN, DAIRY_1, ragged))
        assert place(problem) == ("main.csv", 2, "")
        assert "the header 9" in problem.message


def test_unknown_missing_and_repeated_columns_are_told_at_the_header() -> None:
    header = swapped(SPONSORS, "exposure_weight", "weight")
    assert [place(one) for one in problems_of(sponsors=header)] == [
        ("sponsors.csv", 1, "exposure_weight"),
        ("sponsors.csv", 1, "weight"),
    ]
    twice = swapped(SPONSORS, "exposure_weight", "name")
    assert [one.message for one in problems_of(sponsors=twice)] == [
        "the column is missing",
        "the column is there twice",
    ]


def test_a_semicolon_or_full_width_comma_is_no_separator() -> None:
    for separator in (";", "，", "\t"):
        told = problems_of(sponsors=SPONSORS.replace(",", separator))
        assert {one.row for one in told if one.file == "sponsors.csv"} == {1}


def test_files_in_other_encodings_are_refused_at_the_first_bad_byte() -> None:
    for encoding, why in (("gbk", "not UTF-8"), ("utf-16", "UTF-16"), ("utf-16-be", "UTF-8")):
        data = SPONSORS.encode(encoding)
        _, problems = read_campaign({**small_files(), "sponsors.csv": data})
        assert any(one.file == "sponsors.csv" for one in problems), why
    _, problems = read_campaign({**small_files(), "sponsors.csv": SPONSORS.encode("gbk")})
    assert [place(one) for one in problems] == [("sponsors.csv", 2, "")]


def test_an_open_quote_cannot_swallow_the_rest() -> None:
    problem = only_problem(main=swapped(MAIN, "image/tea.webp", '"image/tea.webp'))
    assert place(problem) == ("main.csv", 4, "")
    assert "not CSV" in problem.message


def test_a_lone_carriage_return_inside_a_cell_is_told() -> None:
    told = problems_of(sponsors=swapped(SPONSORS, "云顶乳业", '"云顶\r乳业"'))
    assert [place(one) for one in told] == [("sponsors.csv", 2, "name")]


@pytest.mark.parametrize("text", ["", "\n\n", "sponsor,name,deposit_yuan,exposure_weight\n"])
def test_an_empty_table_is_told(text: str) -> None:
    problem = only_problem(sponsors=text)
    assert problem.file == "sponsors.csv"


def test_a_slot_without_packets_is_told() -> None:
    only_first = "".join(
        line for line in MAIN.splitlines(keepends=True) if not line.startswith(("tea,2", "dairy,2"))
    )
    assert "slot 2 has no packets in this script" in [
        one.message for one in problems_of(main=only_first)
    ]


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    for name in ("campaign.yaml", "main.csv"):
        _, problems = read_campaign({**small_files(), name: b"x" * (FILE_BYTES_MAX + 1)})
        assert [place(one) for one in problems] == [(name, 0, "")]
        assert "larger than" in problems[0].message


def test_a_header_of_millions_of_columns_is_refused_at_once() -> None:
    problem = only_problem(sponsors="," * 1_000_000 + "\n")
    assert problem.message == "the header has 1,000,001 columns"


def test_too_many_rows_are_refused() -> None:
    rows = "".join(f"s{index},n{index},0.00,1\n" for index in range(ROWS_MAX + 1))
    told = problems_of(sponsors=SPONSORS.splitlines()[0] + "\n" + rows)
    assert any("more than 65,535 rows" in one.message for one in told)


def test_all_problems_of_all_files_are_told_at_once_by_place() -> None:
    told = problems_of(
        campaign=swapped(CAMPAIGN, "per_user_packets: 5", "per_user_packets: 0"),
        sponsors=swapped(SPONSORS, ",30", ",-30"),
        main=swapped(MAIN, "uniform", "unifrom").replace("logo/tea.svg", "/tea.svg"),
        spare=MAIN.replace("tea,2,logo", "tea,2,gif"),
    )
    assert [place(one) for one in told] == [
        ("campaign.yaml", 5, "per_user_packets"),
        ("main.csv", 3, "curve"),
        ("main.csv", 5, "resource"),
        ("spare.csv", 5, "kind"),
        ("sponsors.csv", 3, "exposure_weight"),
    ]


def test_a_flood_of_problems_is_counted_but_not_kept() -> None:
    bad = SCRIPT_HEADER + "nobody,9,gif,x,y,z,z,normal,//\n" * 3000
    told = problems_of(main=bad)
    assert len(told) == PROBLEMS_MAX + 1
    assert str(told[-1]).startswith("and ")
