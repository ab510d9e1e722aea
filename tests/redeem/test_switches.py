"""The switch catalogue and `hongbao switch` (R30, R31)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from click.testing import Result
from hongbao.adapters.memory import MemoryStore
from hongbao.api import switches
from hongbao.api.switches import CATALOGUE, Setting, SwitchBoard, SwitchSpec
from hongbao.cli import switch
from hongbao.domain.errors import Corrupt, NotFound, Rejected, Transient
from hypothesis import given
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
WHO = ["--by", "wang", "--why", "redeem is at 90 %"]
specs = st.sampled_from(CATALOGUE)


def run(store: MemoryStore, *arguments: str) -> Result:
    """Run `hongbao switch …` over a store in memory."""

    @asynccontextmanager
    async def opener(_: Path) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(coordination=store)

    return CliRunner().invoke(switch.app, arguments, obj=opener)


def good(store: MemoryStore, *arguments: str) -> Any:
    """Run a command that must succeed, with --json; return what it printed."""
    result = run(store, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def refusal(*arguments: str) -> Exception:
    """Run a command that must be refused before any store is opened."""
    result = CliRunner().invoke(switch.app, arguments, obj=None)
    assert isinstance(result.exception, Rejected), result.output
    return result.exception


@given(specs, st.booleans() | st.integers(-5, 400_000) | st.floats(-1, 20, allow_nan=False))
def test_every_allowed_value_survives_its_document_and_its_text(
    spec: SwitchSpec, value: bool | int | float
) -> None:
    try:
        checked = switches.check_value(spec, value)
    except Rejected:
        return
    assert checked == value
    assert type(checked) is spec.kind
    setting = Setting(checked, "王", "忙", 5, 9)
    assert switches.setting_from_json(spec, switches.setting_to_json(setting)) == setting
    text = repr(checked) if spec.kind is not bool else ("on" if checked else "off")
    assert switches.parse_value(spec, text) == checked


@given(specs, st.text(max_size=10))
def test_any_text_is_a_value_or_refused_with_what_is_allowed(spec: SwitchSpec, text: str) -> None:
    message = f"switch {spec.name}: {text!r} is not {spec.allowed}"
    try:
        value = switches.parse_value(spec, text)
    except Rejected as error:
        said = str(error)
    else:
        said = message if switches.check_value(spec, value) == value else ""
    assert said == message


@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)
def test_every_default_is_allowed(spec: SwitchSpec) -> None:
    assert switches.check_value(spec, spec.default) == spec.default
    assert spec.effect.endswith(".")
    assert spec.role in ("access", "redeem", "settle")


def test_switch_names_are_unique_and_the_core_is_paused_last() -> None:
    """R31: core experience first, so opening packets stops after all else."""
    names = [spec.name for spec in CATALOGUE]
    assert len(set(names)) == len(names)
    assert names[-1] == "open_pause"


def test_the_page_of_the_catalogue_is_fresh() -> None:
    """Make it anew: `hongbao switch docs > docs/switches.md`."""
    page = (ROOT / "docs/switches.md").read_text("utf-8")
    assert page == switches.catalogue_page() == CliRunner().invoke(switch.app, ["docs"]).output


def test_a_board_falls_back_to_the_default_when_a_setting_expires_or_goes() -> None:
    board = SwitchBoard()
    document = switches.setting_to_json(Setting(0.5, "a", "b", 0, 1000))
    assert board.apply("switches/issue_speed", document)
    assert board.value("issue_speed", 999) == 0.5
    assert board.value("issue_speed", 1000) == 1.0
    assert board.apply("switches/issue_speed", b"")
    assert board.value("issue_speed", 0) == 1.0


@pytest.mark.parametrize(
    "document",
    [b"{", b"[]", b"{}", switches.setting_to_json(Setting(11.0, "a", "b", 0))],
)
def test_a_board_keeps_the_last_good_setting(document: bytes) -> None:
    board = SwitchBoard()
    board.apply("switches/issue_speed", switches.setting_to_json(Setting(0.5, "a", "b", 0)))
    with pytest.raises(Corrupt, match="issue_speed"):
        board.apply("switches/issue_speed", document)
    assert board.value("issue_speed", 0) == 0.5
    assert not board.apply("switches/of_a_later_version", b"x")


def test_list_shows_the_catalogue_in_order() -> None:
    rows = good(MemoryStore(), "list")
    assert [row["switch"] for row in rows] == [spec.name for spec in CATALOGUE]
    text = run(MemoryStore(), "list").output
    assert all(spec.name in text for spec in CATALOGUE)


def test_a_switch_that_was_set_is_stored_with_who_when_why_and_until() -> None:
    """R30: who, when and why."""
    store = MemoryStore()
    printed = good(store, "set", "issue_speed", "0.5", *WHO, "--ttl-s", "60")
    stored = asyncio.run(store.read("switches/issue_speed"))
    document = json.loads(stored.value)
    assert (document["value"], document["by"], document["why"]) == (0.5, "wang", WHO[3])
    assert document["expires_at_ms"] - document["set_at_ms"] == 60_000
    assert printed["revision"] == stored.revision
    assert printed["effective_on"] is None


def test_a_cleared_switch_is_at_its_default_and_says_who_cleared_it() -> None:
    store = MemoryStore()
    good(store, "set", "shake_pause", "on", *WHO)
    good(store, "clear", "shake_pause", "--by", "li", "--why", "over")
    (state,) = [row for row in good(store, "status") if row["switch"] == "shake_pause"]
    assert (state["value"], state["by"], state["why"]) == (False, "li", "over")


def members(store: MemoryStore, **roles: str) -> None:
    for process, role in roles.items():
        value = json.dumps({"process": process, "role": role, "zone": "a", "address": ""}).encode()
        asyncio.run(store.acquire(f"member/{process}", process, ttl_s=60, value=value))


def test_status_shows_which_living_processes_of_the_role_obey() -> None:
    """R30: acks per process; an ack of an older revision does not count."""
    store = MemoryStore()
    members(store, a0="access", a1="access", r0="redeem")
    good(store, "set", "issue_speed", "0.5", *WHO)
    first = asyncio.run(store.read("switches/issue_speed")).revision
    good(store, "set", "issue_speed", "0.25", *WHO)
    second = asyncio.run(store.read("switches/issue_speed")).revision
    for process, revision in (("a0", second), ("a1", first), ("gone", second)):
        ack = json.dumps({"revision": revision}).encode()
        asyncio.run(store.put(f"acks/switches/issue_speed/{process}", ack))
    (state,) = [row for row in good(store, "status") if row["switch"] == "issue_speed"]
    assert (state["acked"], state["waiting"]) == (["a0"], ["a1"])
    text = run(store, "status").output
    assert "issue" in text
    assert "wang" in text


def test_set_can_wait_until_the_switch_is_effective_everywhere() -> None:
    store = MemoryStore()
    members(store, r0="redeem")
    result = run(store, "set", "open_pause", "on", *WHO, "--wait-s", "0.2")
    assert isinstance(result.exception, Transient)
    assert "not yet effective on: r0" in str(result.exception)
    ack = json.dumps({"revision": 1 << 40}).encode()
    asyncio.run(store.put("acks/switches/open_pause/r0", ack))
    printed = good(store, "set", "open_pause", "on", *WHO, "--wait-s", "5")
    assert printed["effective_on"] == ["r0"]


def test_an_unknown_switch_is_refused_with_all_names() -> None:
    for arguments in (["set", "issue_sped", "1", *WHO], ["clear", "issue_sped", *WHO]):
        error = refusal(*arguments)
        assert isinstance(error, NotFound)
        assert error.field == "switch"
        assert "'issue_sped'" in str(error)
        assert all(spec.name in str(error) for spec in CATALOGUE)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("issue_speed", "fast", "a number from 0 to 10"),
        ("issue_speed", "11", "a number from 0 to 10"),
        ("issue_speed", "nan", "a number from 0 to 10"),
        ("issue_speed", "１", "a number from 0 to 10"),
        ("shake_interval_ms", "1.5", "a whole number from 0 to 60000"),
        ("shake_pause", "maybe", "on or off"),
    ],
)
def test_a_bad_value_is_refused_with_the_switch_the_value_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    error = refusal("set", name, value, *WHO)
    assert str(error) == f"switch {name}: {value!r} is not {allowed}"


@pytest.mark.parametrize("why", ["", "  ", "x" * 201, "a\nb"])
def test_a_reason_must_be_given(why: str) -> None:
    assert "why" in str(refusal("set", "shake_pause", "on", "--by", "wang", "--why", why))


def test_wrong_usage_exits_with_2() -> None:
    for arguments in (
        ["set", "shake_pause", "on"],
        ["set", "shake_pause", "on", *WHO, "--ttl-s", "0"],
    ):
        assert run(MemoryStore(), *arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["set", "nonsense", "1"], ["set", "issue_speed", "fast"]])
def test_the_command_refuses_with_exit_2_and_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hongbao.cli.main import main

    monkeypatch.setattr("sys.argv", ["hongbao", "switch", *arguments, *WHO])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
