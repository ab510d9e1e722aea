"""`hongbao campaign`: exit codes, JSON for scripts, problems as editors want them."""

import json
from pathlib import Path

import pytest
from hongbao.cli.campaign import app
from hongbao.cli.campaign_input import load_campaign, require_campaign
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.settings import UpSettings
from hongbao.domain.errors import Rejected
from hongbao.domain.script import plan_campaign
from hongbao.domain.yaml_file import FILE_BYTES_MAX
from typer.testing import CliRunner

from tests.funding.files import CAMPAIGN, MAIN, SPONSORS, small_files, swapped
from tests.funding.minted_run import minted_run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "new-year"
run = CliRunner().invoke


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the small campaign, far in the future."""
    later = CAMPAIGN.replace("2027-", "2199-")
    for name, data in small_files(campaign=later).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_check_shows_sums_per_sponsor_slot_and_kind_and_exits_0() -> None:
    result = run(app, ["check", str(EXAMPLE)])
    assert result.exit_code == 0
    for text in ("yunding-dairy", "5 跨年钟声", "video", "7,316,855.37", "1,165,150"):
        assert text in result.stdout


def test_check_as_json_tells_sums_in_fen() -> None:
    result = run(app, ["check", str(EXAMPLE / "campaign.yaml"), "--json"])
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ok"], document["budget_fen"]) == (0, True, 731_685_537)
    for scheme in document["schemes"]:
        for group in ("sponsors", "slots", "kinds"):
            sums = scheme[group].values()
            assert sum(one["total_fen"] for one in sums) == scheme["total_fen"] == 731_685_537
            assert sum(one["packets"] for one in sums) == scheme["packets"]


def test_check_tells_every_problem_and_exits_1(folder: Path) -> None:
    bad = swapped(swapped(MAIN, "uniform", "curved"), "1200.00", "1200.005")
    (folder / "main.csv").write_text(bad)
    result = run(app, ["check", str(folder)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("main.csv:3: curve: ")
    assert lines[1].startswith("main.csv:5: total_yuan: ")
    assert lines[2] == "2 problems"
    document = json.loads(run(app, ["check", str(folder), "--json"]).stdout)
    assert document["ok"] is False
    assert [(one["file"], one["row"]) for one in document["problems"]] == [
        ("main.csv", 3),
        ("main.csv", 5),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "no-such-file.yaml"],
        ["check"],
        ["plan", str(EXAMPLE), "--issued", "1=1"],
        ["plan", str(EXAMPLE), "--ticket-shards", "0"],
        ["plan", str(EXAMPLE), "--after", str(EXAMPLE / "sponsors.csv")],
        ["activate", str(EXAMPLE), "no-such-scheme"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert run(app, arguments).exit_code == 2


@pytest.mark.parametrize("command", ["check", "plan", "activate"])
def test_help_has_examples(command: str) -> None:
    result = run(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"hongbao campaign {command} examples/new-year" in result.stdout


def test_a_huge_table_is_not_read_whole(folder: Path) -> None:
    with (folder / "main.csv").open("wb") as file:
        file.truncate(FILE_BYTES_MAX * 1000)
    _, problems = load_campaign(folder)
    assert [str(one) for one in problems] == ["main.csv: the file is larger than 8,388,608 bytes"]


def test_other_commands_get_the_campaign_or_every_problem(folder: Path) -> None:
    assert require_campaign(folder).campaign == "small-eve"
    (folder / "sponsors.csv").unlink()
    with pytest.raises(Rejected, match=r"sponsors: the file sponsors\.csv is missing"):
        require_campaign(folder)


def test_plan_writes_a_record_from_which_an_edit_is_planned(tmp_path: Path) -> None:
    first, second = tmp_path / "plans.json", tmp_path / "plans-2.json"
    result = run(app, ["plan", str(EXAMPLE), "--out", str(first), "--json"])
    assert [plan["scheme_number"] for plan in json.loads(result.stdout)["plans"]] == [1, 2]
    edit = str(EXAMPLE / "edits" / "late-sponsor")
    edited = ["plan", edit, "--after", str(first), "--issued", "1=1", "--issued", "2=2"]
    result = run(app, [*edited, "--out", str(second), "--json"])
    (plan,) = json.loads(result.stdout)["plans"]
    assert (plan["scheme"], plan["scheme_number"]) == ("main", 3)
    assert [slot["slot"] for slot in plan["slots"]] == [3, 4, 5]
    assert len(json.loads(second.read_text())["plans"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plans-2.json", "plans.json"]


def test_an_edit_against_issued_money_exits_1(tmp_path: Path) -> None:
    record = tmp_path / "plans.json"
    run(app, ["plan", str(EXAMPLE), "--out", str(record)])
    edit = str(EXAMPLE / "edits" / "withdrawn-sponsor")
    issued = ["--issued", "1=1", "--issued", "2=1"]
    result = run(app, ["plan", edit, "--after", str(record), *issued])
    assert result.exit_code == 1
    told = "script-main.csv: sponsor qingfeng-travel: slot 2 has issued 82,530.00 yuan"
    assert told in result.stdout
    assert run(app, ["plan", edit, "--after", str(record), "--issued", "1"]).exit_code == 2


SHIFTED = MAIN.replace(",400.00,", ",500.00,").replace(",600.00,", ",500.00,")
TURNED = "".join(SPONSORS.splitlines(keepends=True)[row] for row in (0, 2, 1))


@pytest.mark.parametrize(
    ("file", "text", "scheme", "says"),
    [
        ("main.csv", SHIFTED, "main", "slot 1 has issued 400.00 yuan, the script says 500.00"),
        ("sponsors.csv", TURNED, "main", "keep the row, append new ones"),
        ("campaign.yaml", CAMPAIGN.replace("small", "big"), "main", "the plans are of small-eve"),
        ("campaign.yaml", CAMPAIGN, "no-such", "not in the campaign"),
    ],
)
def test_a_problem_of_an_edit_names_the_file_to_correct(
    folder: Path, file: str, text: str, scheme: str, says: str
) -> None:
    record = folder / "plans.json"
    assert run(app, ["plan", str(folder), "--out", str(record)]).exit_code == 0
    (folder / file).write_text(text)
    options = ["--after", str(record), "--issued", "1=1", "--scheme", scheme, "--json"]
    result = run(app, ["plan", str(folder), *options])
    problem = json.loads(result.stdout)["problems"][0]
    assert (result.exit_code, problem["file"]) == (1, file)
    assert says in problem["message"]


@pytest.mark.parametrize(
    ("issued", "says"),
    [
        (["1"], "'1' is not SLOT=PLAN"),
        (["1=" + "9" * 5000], "is not SLOT=PLAN"),
        (["9" * 5000 + "=1"], "is not SLOT=PLAN"),
        (["1=1\n"], "is not SLOT=PLAN"),
        (["1=1", "01=2"], "slot 1 is named twice"),
    ],
)
def test_an_issued_slot_that_cannot_be_is_wrong_usage(
    tmp_path: Path, issued: list[str], says: str
) -> None:
    record = tmp_path / "plans.json"
    run(app, ["plan", str(EXAMPLE), "--out", str(record)])
    options = [part for one in issued for part in ("--issued", one)]
    result = run(app, ["plan", str(EXAMPLE), "--after", str(record), *options])
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert "--issued" in told
    assert says in told


@pytest.fixture
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose processes are down: commands open its embedded store themselves."""
    run = RunDir(tmp_path_factory.mktemp("run"))
    pods = [
        ProcessSpec(f"access-{zone}-0", "access", zone, pod) for pod, zone in ((1, "a"), (2, "b"))
    ]
    settings = UpSettings(campaign=folder / "campaign.yaml", claims_shards=2, ticket_shards=2)
    run.write_specs(settings, pods)
    minted_run(run, plan_campaign(require_campaign(folder), ticket_shards=2, claims_shards=2))
    return run.path


def test_activate_switches_slots_in_the_store_of_the_run(folder: Path, run_dir: Path) -> None:
    at_run = ["--run", str(run_dir)]
    result = run(app, ["activate", str(folder), "main", "--json", *at_run])
    assert (result.exit_code, json.loads(result.stdout)["active"]) == (0, {"1": 1, "2": 1})
    result = run(app, ["activate", str(folder), "spare", "--slot", "2", *at_run])
    assert result.stdout.splitlines() == ["slot 1: plan 1 (unchanged)", "slot 2: plan 2 (was 1)"]
    result = run(app, ["activate", str(folder), "2", "--slot", "1", "--json", *at_run])
    assert json.loads(result.stdout)["active"] == {"1": 2, "2": 2}


def test_activate_exits_1_when_a_slot_has_opened(folder: Path, run_dir: Path) -> None:
    past = CAMPAIGN.replace("2027-", "2016-")
    (folder / "campaign.yaml").write_text(past)
    slot_1 = ["--slot", "1", "--json", "--run", str(run_dir)]
    result = run(app, ["activate", str(folder), "spare", *slot_1])
    assert result.exit_code == 1
    assert "it has opened" in json.loads(result.stdout)["problems"][0]["message"]
