"""Good campaign files, however they were saved, give one model (R37, R38, R39, R42)."""

import re

from hongbao.domain import split
from hongbao.domain.campaign import CURVES
from hongbao.domain.campaign_file import named_files, read_campaign

from tests.funding.files import CAMPAIGN, MAIN, SPONSORS, small_campaign, small_files, swapped


def test_files_become_a_model_in_fen_and_milliseconds() -> None:
    campaign = small_campaign()
    assert campaign.budget_fen == 300_000
    assert campaign.deposits == {1: 100_000, 2: 200_000}
    assert [scheme.packets for scheme in campaign.schemes] == [950, 700]
    assert [scheme.total_fen for scheme in campaign.schemes] == [300_000, 300_000]
    assert campaign.slots[0].starts_at_ms == 1_801_828_800_000
    assert campaign.slots[1].ends_at_ms - campaign.slots[1].starts_at_ms == 600_000
    assert (campaign.key_cap_fen, campaign.per_user_packets) == (50_000, 5)


def test_the_mark_and_line_ends_of_excel_change_nothing() -> None:
    """F: budget CSV import, BOM and CRLF: both are what `Save as CSV UTF-8` writes."""
    files = {
        name: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") for name, data in small_files().items()
    }
    assert read_campaign(files) == read_campaign(small_files())


def test_columns_and_empty_lines_may_stand_anywhere() -> None:
    rows = [line.split(",") for line in SPONSORS.splitlines()]
    turned = "\n\n".join(",".join(reversed(row)) for row in rows) + "\n\n"
    assert small_campaign(sponsors=turned) == small_campaign()


def test_quoted_cells_are_cells() -> None:
    quoted = re.sub(r"([^,\n]+)", r'"\1"', MAIN)
    assert small_campaign(main=quoted) == small_campaign()


def test_a_name_may_hold_a_comma_in_quotes() -> None:
    named = swapped(SPONSORS, "绿野茶饮", '"绿野,茶饮"')
    assert small_campaign(sponsors=named).sponsors[1].name == "绿野,茶饮"


def test_a_budget_in_yaml_is_the_budget_in_csv() -> None:
    """Unquoted amounts stay text, so that YAML makes no float of them."""
    files = small_files(campaign=swapped(CAMPAIGN, "sponsors.csv", "sponsors.yaml"))
    del files["sponsors.csv"]
    files["sponsors.yaml"] = """
- {sponsor: dairy, name: 云顶乳业, deposit_yuan: 1000.00, exposure_weight: 10}
- sponsor: tea
  name: 绿野茶饮
  deposit_yuan: "2000.00"
  exposure_weight: 30
""".encode()
    assert read_campaign(files) == read_campaign(small_files())


def test_the_key_cap_is_200_000_yuan_where_none_is_written() -> None:
    """R45: 200,000 to 300,000 yuan a key."""
    without = swapped(CAMPAIGN, 'key_cap_yuan: "500.00"\n', "")
    assert small_campaign(campaign=without).key_cap_fen == 200_000_00


def test_a_withdrawn_sponsor_may_stay_with_nothing() -> None:
    """R35: the row keeps the other sponsors' indexes."""
    nothing = SPONSORS + "gone,已退出,0.00,0\n"
    assert small_campaign(sponsors=nothing).deposits[3] == 0


def test_a_campaign_file_says_which_tables_it_needs() -> None:
    entry = CAMPAIGN.encode()
    assert named_files("campaign.yaml", entry) == ["main.csv", "spare.csv", "sponsors.csv"]
    assert named_files("campaign.yaml", b"{") == []


def test_the_curves_of_the_model_are_those_that_mint_can_draw() -> None:
    assert set(CURVES) == set(split.CURVES)
