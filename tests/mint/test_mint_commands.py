"""Facts about `hongbao keys`, `mint` and `verify` (R40, R46, R54, F20)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from hongbao.cli import keys, mint, verify
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.domain.errors import HongbaoError, NotFound, Rejected
from typer.testing import CliRunner

EXAMPLE = Path(__file__).parents[2] / "examples" / "new-year"
SECRET = {"HONGBAO_KEYS_PASSPHRASE": "four words are better"}

app = typer.Typer()
app.add_typer(mint.app)
app.add_typer(verify.app)
app.add_typer(keys.app)


def run(*args: str | Path, ok: bool = True, env: dict[str, str] = SECRET) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], env=env)
    if result.exception is not None and isinstance(result.exception, HongbaoError):
        raise result.exception
    if ok:
        assert result.exit_code == 0, result.output
    return result


def run_json(*args: str | Path, ok: bool = True) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(*args, "--json", ok=ok).stdout)
    return document


@pytest.fixture(scope="module")
def minted_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run's folder with keys and one minted scheme of the example, nothing running."""
    place = RunDir(tmp_path_factory.mktemp("run"))
    place.write_specs(UpSettings(campaign=EXAMPLE / "campaign.yaml"), [])
    run("keys", "new", EXAMPLE, place.keys)
    options = ("--keys", place.keys / "mint.keys", "--out", place.objects, "--workers", "1")
    document = run_json("mint", EXAMPLE, *options, "--scheme", "steady")
    assert [one["scheme"] for one in document["schemes"]] == ["steady"]
    return place


def verify_options(place: RunDir) -> Sequence[str | Path]:
    return (
        *("verify", EXAMPLE, "--keys", place.keys / "redeem.keys", "--out", place.objects),
        *("--scheme", "steady", "--workers", "1"),
    )


def test_what_was_minted_verifies(minted_run: RunDir) -> None:
    document = run_json(*verify_options(minted_run))
    assert document["ok"]
    assert document["problems"] == []
    assert document["schemes"][0]["packets"] > 1_000_000


def test_verify_tells_a_fault_and_exits_with_one(minted_run: RunDir) -> None:
    path = next(minted_run.objects.rglob("*.hbt"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        result = run(*verify_options(minted_run), "--json", ok=False)
    finally:
        path.write_bytes(data)
    assert result.exit_code == 1
    kinds = {problem["kind"] for problem in json.loads(result.stdout)["problems"]}
    assert {"hash", "ticket", "absent"} <= kinds


def test_verify_with_other_shards_than_minted_says_so(minted_run: RunDir) -> None:
    result = run(*verify_options(minted_run), "--claims-shards", "3", ok=False)
    assert result.exit_code == 1
    assert "is not the plan's" in result.stdout


def test_minting_again_returns_at_once_and_shows_the_sums(minted_run: RunDir) -> None:
    options = ("--keys", minted_run.keys / "mint.keys", "--out", minted_run.objects)
    assert "steady" in run("mint", EXAMPLE, *options, "--scheme", "2").stdout


def test_an_unknown_scheme_is_refused_with_those_there_are(minted_run: RunDir) -> None:
    options = ("--keys", minted_run.keys / "mint.keys", "--out", minted_run.objects)
    with pytest.raises(NotFound, match=r"no scheme 'x'; there are main \(1\), steady \(2\)"):
        run("mint", EXAMPLE, *options, "--scheme", "x")


def test_a_wrong_passphrase_is_refused(minted_run: RunDir) -> None:
    options = ("--keys", minted_run.keys / "mint.keys", "--out", minted_run.objects)
    with pytest.raises(Rejected, match="wrong passphrase"):
        run("mint", EXAMPLE, *options, env={"HONGBAO_KEYS_PASSPHRASE": "something else"})


def test_new_keys_never_replace_old_ones(minted_run: RunDir) -> None:
    before = (minted_run.keys / "mint.keys").read_bytes()
    with pytest.raises(Rejected, match="never overwritten"):
        run("keys", "new", EXAMPLE, minted_run.keys)
    assert (minted_run.keys / "mint.keys").read_bytes() == before


def test_denied_keys_show_as_such_until_they_are_allowed_again(minted_run: RunDir) -> None:
    """F20, R46."""
    at = ("--run", minted_run.path)
    rows = run_json("keys", "list", *at)["keys"]
    first, second = rows[0]["key_id"], rows[1]["key_id"]
    assert all(row["permitted"] for row in rows)
    run("keys", "deny", f"{first}-{second}", *at)
    denied = run_json("keys", "list", "--denied", *at)
    assert [row["key_id"] for row in denied["keys"]] == [first, second] == denied["deny"]
    assert "denied: " in run("keys", "allow", first, *at).stdout
    assert run_json("keys", "list", "--denied", *at)["deny"] == [second]
    assert run("keys", "list", "--slot", "1", *at).stdout.count("\n") > 3
    run("keys", "allow", "--only", first, *at)
    assert len(run_json("keys", "list", "--denied", *at)["keys"]) == len(rows) - 1
    run("keys", "allow", "--all", *at)
    assert run_json("keys", "list", *at)["allow"] is None


def test_a_script_gets_the_lists_that_its_change_left(minted_run: RunDir) -> None:
    at = ("--run", minted_run.path)
    before = run_json("keys", "list", *at)["deny"]
    denied = run_json("keys", "deny", "1-2", *at)
    assert denied == {"deny": sorted({1, 2, *before}), "allow": None}
    only = run_json("keys", "allow", "--only", "1", *at)
    assert only == {"deny": sorted({2, *before} - {1}), "allow": [1]}
    assert run_json("keys", "allow", "--all", *at) == {"deny": only["deny"], "allow": None}


def test_a_script_is_told_which_keys_are_new_and_no_secret(tmp_path: Path) -> None:
    document = run_json("keys", "new", EXAMPLE, tmp_path, "--count", "9")
    assert document == {
        "campaign": "new-year-2027",
        "folder": str(tmp_path),
        "ticket_keys": 9,
        "verify_key": (tmp_path / "verify.pub").read_text().strip(),
    }


@pytest.mark.parametrize("args", [(), ("--all", "7"), ("--all", "--only")])
def test_allow_wants_keys_or_all_of_them(args: tuple[str, ...]) -> None:
    assert run("keys", "allow", *args, ok=False).exit_code == 2


@pytest.mark.parametrize("command", ["mint", "verify", "keys new", "keys list", "keys deny"])
def test_help_shows_an_example(command: str) -> None:
    assert "hongbao " + command.split()[0] in run(*command.split(), "--help").stdout
