"""Facts about what a person at the terminal reads when something is not there."""

import json
import sys
from pathlib import Path

import pytest
import typer
from hongbao.adapters.memory import MemoryStore
from hongbao.cli import keys, main, shake, target
from hongbao.cli.acks import wait_acked
from hongbao.cli.campaign_input import require_campaign
from hongbao.cli.prepare import prepare
from hongbao.cli.run_dir import RunDir, plan_processes
from hongbao.cli.settings import UpSettings
from hongbao.client.identity import TestIdentity
from hongbao.domain.errors import Transient
from typer.testing import CliRunner

from tests.processes.rainy import Plot, write_campaign


def call_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hongbao", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "up.yaml"
    (tmp_path / "file").touch()
    settings.write_text(f"campaign: a.yaml\nrun_dir: {tmp_path}/file/run\n")
    assert call_main(monkeypatch, "up", str(settings)) == main.EXIT_FAILED
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said == [f"error: {tmp_path}/file/run: Not a directory"]


def test_a_process_of_a_run_keeps_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["hongbao", "role", "store", "--run", "/dev/null", "--process", "x"]
    )
    with pytest.raises(NotADirectoryError):
        main.main()


def test_no_gateway_is_told_once_and_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "GIVE_UP_S", 1.0)
    issuer = tmp_path / "issuer.pem"
    issuer.write_bytes(TestIdentity.generate().pem())
    app = typer.Typer()
    app.command()(shake.shake)
    options = ["--gateway", "a=127.0.0.1:9", "--campaign", "c", "--issuer", str(issuer)]
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, Transient)
    assert result.stderr == "no answer from 127.0.0.1:9 yet, trying for 1 s …\n"


async def test_an_ack_is_not_there_while_no_process_lives_that_should() -> None:
    store = MemoryStore(monotonic_s=lambda: 0.0)
    with pytest.raises(Transient, match="any redeem process, none lives"):
        await wait_acked(store, "d", "redeem", 1, 0.2, expected=True)
    assert await wait_acked(store, "d", "redeem", 1, 0.2) == []
    value = json.dumps({"role": "redeem"}).encode()
    await store.acquire("member/redeem-a-0", "redeem-a-0", ttl_s=60, value=value)
    await store.put("acks/d/redeem-a-0", b'{"revision": 1}')
    assert await wait_acked(store, "d", "redeem", 1, 5.0, expected=True) == ["redeem-a-0"]


def test_denying_a_key_that_guards_nothing_is_told(tmp_path: Path) -> None:
    campaign = write_campaign(tmp_path / "campaign", Plot(seed=1, slots=1, packets_a_slot=40))
    settings = UpSettings(
        campaign=campaign, run_dir=tmp_path / "run", claims_shards=2, ticket_shards=2
    )
    run = RunDir(settings.run_dir)
    prepare(run, settings, require_campaign(campaign), lambda *_: None)
    run.write_specs(settings, plan_processes(settings))
    result = CliRunner().invoke(keys.app, ["deny", "1", "4095", "--run", str(run.path)])
    assert result.exit_code == 0, result.output
    assert result.stderr == "warning: no packet of this run is under key 4095\n"
    assert result.stdout == "denied: 1 4095; allowed: all others\n"
