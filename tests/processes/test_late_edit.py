"""R35, R37 on a whole run: a sponsor comes while slot 1 is open, and pays in slot 2.

The operator's commands alone: plan behind the record, mint and verify into the run's objects,
activate, pay in. Nothing is started again.
"""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hongbao.cli.late_edit import read_late_edit
from hongbao.cli.rain import prepare_run

from tests.processes import checkers
from tests.processes.rainy import (
    Evening,
    Plot,
    Stage,
    hongbao,
    play_evening,
    short_folder,
    write_campaign,
)
from tests.stalls import Stalls, undisturbed

LATE = 3  # index of the late sponsor
PACKETS, FEN = 600, 1_500_00

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]


def write_edit(folder: Path, plot: Plot) -> Path:
    """Write the evening's campaign with one more sponsor, in slot 2 alone."""
    file = write_campaign(folder, plot)
    text, yuan = file.read_text(), f"{FEN // 100}.00"
    budget = text.split('budget_yuan: "')[1].split('"')[0]
    whole = f"{int(budget.removesuffix('.00')) + FEN // 100}.00"
    file.write_text(text.replace(budget, whole))
    append(folder / "sponsors.csv", "cherry", "Cherry", yuan, "50")
    row = ("cherry", "2", "image", str(PACKETS), yuan, "0.01", "20.00", "lucky", "image/cherry.bin")
    append(folder / "script.csv", *row)
    return file


def append(table: Path, *cells: str) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    table.write_text(table.read_text() + line.getvalue())


async def edit(stage: Stage) -> None:
    """Do what an operator does; every command must succeed."""
    run, facts = stage.up.run, stage.notes.facts
    folder = run.path.parent
    before, plans = folder / "plans.json", folder / "plans-2.json"
    played, edited = folder / "campaign/campaign.yaml", folder / "edited/campaign.yaml"
    shards = [f"--{kind}-shards={stage.plot.claims_shards}" for kind in ("ticket", "claims")]
    await hongbao("campaign", "plan", str(played), "--out", str(before), *shards)
    await stage.at(0, 0.05)
    numbers = ["--issued", "1=1", "--out", str(plans)]
    await hongbao("campaign", "plan", str(edited), "--after", str(before), *numbers)
    activate = ["campaign", "activate", str(edited), "main", "--plans", str(plans), "--lead-s", "1"]
    activate += ["--slot", "2", "--json", "--run", str(run.path)]
    facts["too_early"] = json.loads(await hongbao(*activate, expect=1))["problems"]
    common = ["--plans", str(plans), "--scheme", "2", "--out", str(run.objects)]
    secret = ["--passphrase", (run.keys / "passphrase").read_text().strip()]
    await hongbao("mint", str(edited), *common, "--keys", str(run.keys / "mint.keys"), *secret)
    await hongbao("verify", str(edited), *common, "--keys", str(run.keys / "redeem.keys"), *secret)
    facts["active"] = json.loads(await hongbao(*activate))["active"]
    facts["done_at_ms"] = stage.up.clock.wall_ms()
    amount = f"{FEN // 100}.00"
    pay_in = ["fund", "pay-in", "cherry", amount, "--reference", "late-1"]
    await hongbao(*pay_in, "--run", str(run.path))


@pytest.fixture(scope="module")
def evening(seed: int, stalls: Stalls) -> Iterator[Evening]:
    with undisturbed(stalls, partial(played, seed)) as evening:
        yield evening


@contextmanager
def played(seed: int) -> Iterator[Evening]:
    plot = Plot(seed, seconds=60.0, packets_a_slot=2400, rate=200.0, users=300)
    with short_folder() as folder:
        write_edit(folder / "edited", plot)
        yield play_evening(folder, plot, edit)


def test_an_edit_is_refused_until_it_is_minted_and_then_in_force_before_its_slot(
    evening: Evening,
) -> None:
    facts = evening.notes.facts
    assert "not minted" in facts["too_early"][0]["message"]
    assert facts["active"] == {"1": 1, "2": 2}
    first, second = evening.timeline.slots
    assert first.starts_at_ms < facts["done_at_ms"] < second.starts_at_ms


def test_packets_of_a_late_sponsor_are_opened_and_credited(evening: Evening) -> None:
    late = [claim for claim in evening.claims if claim.sponsor == LATE]
    assert len(late) > 20
    assert {claim.slot for claim in late} == {2}
    credited = {one.serial for one in evening.transfers if one.credited}
    assert credited >= {claim.serial for claim in late}
    checkers.check_settled_once(evening.claims, evening.transfers)


def test_no_open_is_refused_while_processes_learn_of_the_scheme(evening: Evening) -> None:
    checkers.check_promises_kept(evening.acknowledged, evening.claims)
    assert set(evening.load.opens) == {"OPENED"}


def test_the_money_of_an_edited_evening_adds_up(evening: Evening) -> None:
    audit = evening.audit
    assert audit["equations"] == "hold"
    (row,) = [one for one in audit["sponsors"] if one["index"] == LATE]
    assert (row["sponsor"], row["deposit_fen"], row["minted_fen"]) == ("cherry", FEN, FEN)


def test_a_run_that_is_started_again_plays_the_edited_campaign(evening: Evening) -> None:
    """`up` mints nothing anew and asks for no other plan."""
    settings, _ = evening.run.read_specs()
    _, campaign, prepared = prepare_run(settings, lambda what, done, whole: None)
    assert [one.sponsor for one in campaign.sponsors] == ["apple", "berry", "cherry"]
    assert [one.scheme_number for one in prepared.manifests] == [1, 2]
    edit = read_late_edit(evening.run)
    assert edit is not None
    assert prepared.plans == edit.record.plans
