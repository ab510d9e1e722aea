"""`hongbao shake`, `open`, `load` and `report` against a toy gateway."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hongbao.cli import load, report, shake
from hongbao.cli import open as open_command
from hongbao.client.acknowledged import read_acknowledged
from hongbao.client.gateways import Gateway
from hongbao.client.identity import TestIdentity
from hongbao.domain.errors import NotFound, Rejected
from typer.testing import CliRunner

from tests.client import server as toy_server
from tests.report.samples import write_sample_run
from tests.waiting import LIMIT_S

app = typer.Typer()
app.command("shake")(shake.shake)
app.command("open")(open_command.open_packets)
app.command("load")(load.load)
app.command("report")(report.report)


class PlainToy(toy_server.ToyCampaign):
    """Is a toy that takes any JWT: every caller is user 7."""

    async def open_session(self, request: object, context: object) -> object:
        self.jwts.append("")
        return toy_server.access_pb2.OpenSessionReply(session=b"session-7", tuning=self.tuning)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Serve in another thread: the commands run event loops of their own."""
    ready, over = threading.Event(), threading.Event()
    found: list[Gateway] = []

    async def serve() -> None:
        async with toy_server.serving(PlainToy()) as gateway:
            found.append(gateway)
            ready.set()
            while not over.is_set():  # noqa: ASYNC110 - a thread's event
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(LIMIT_S)
    yield found[0]
    over.set()
    thread.join()


@pytest.fixture
def target(gateway: Gateway, tmp_path: Path) -> list[str]:
    issuer = tmp_path / "issuer.pem"
    issuer.write_bytes(TestIdentity.generate().pem())
    address = f"b={gateway.host}:{gateway.port}"
    return ["--gateway", address, "--campaign", "new-year", "--issuer", str(issuer)]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_shaken_can_be_opened_from_the_token_file(
    target: list[str], tmp_path: Path
) -> None:
    tokens = ["--tokens", str(tmp_path / "tokens")]
    won = json.loads(run("shake", "--json", *tokens, *target))
    assert won["outcome"] == "PACKET"
    assert run("open", *tokens, *target) == "opened packet 1: 1.01 yuan\n"
    with pytest.raises(Rejected, match="none waits"):
        run("open", *tokens, *target)


def test_shake_with_open_tells_both_answers(target: list[str]) -> None:
    assert run("shake", "--open", *target).splitlines()[1] == "opened packet 1: 1.01 yuan"


def test_load_prints_totals_and_writes_what_the_report_reads(
    target: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = run(
        "load", "--phase", "up:0.3:0:400", "--users", "50", "--out", str(out), "--json", *target
    )
    totals = json.loads(text)
    assert totals["wanted"] == 60
    assert totals["opens"]["OPENED"] == totals["shakes"]["PACKET"] > 0
    assert len(list(read_acknowledged(out / "acknowledged.jsonl"))) == totals["opens"]["OPENED"]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert sum(sample["wanted"] for sample in samples) == 60


@pytest.mark.parametrize(
    "text", ["", "up", "up:x:1", "up:0:1", "up:1:-1", "up:1:2:3:4", "up:nan:1"]
)
def test_a_bad_phase_is_rejected(text: str) -> None:
    with pytest.raises(Rejected, match=r"name:seconds|needs"):
        load.parse_phase(text)


def test_a_target_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="hongbao up"):
        run("shake", "--run", str(tmp_path))


def test_report_writes_one_page(tmp_path: Path) -> None:
    write_sample_run(tmp_path)
    assert run("report", str(tmp_path)).strip() == str(tmp_path / "report.html")
    assert "<svg" in (tmp_path / "report.html").read_text()
