"""Is `hongbao campaign`: check a budget and its scripts, plan the mint, activate a scheme.

Exit codes: 0 good, 1 problems were found, 2 wrong usage.
"""

import asyncio
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console

from hongbao.cipher.keyring import read_public_key
from hongbao.cli import campaign_show, late_edit
from hongbao.cli.activation import LEAD_MS, Activation, Deployment, activate_scheme, check_minted
from hongbao.cli.campaign_input import load_campaign, read_files
from hongbao.cli.process import read_manifests
from hongbao.cli.run_dir import RunDir, access_pods
from hongbao.cli.run_objects import minted_here, upload_scheme
from hongbao.domain.campaign import Campaign
from hongbao.domain.campaign_file import name_edit, read_campaign
from hongbao.domain.errors import Corrupt
from hongbao.domain.ids import SlotNumber
from hongbao.domain.plan_file import read_record, write_record
from hongbao.domain.problem import Problem
from hongbao.domain.script import (
    EditFiles,
    PlanRecord,
    check_replan,
    plan_campaign,
    record_plans,
    replan,
)

EXIT_PROBLEMS = 1
SHARDS = 6
RUN_DIR = Path("out/run")
_SLOT_PLAN: Final = re.compile(r"([0-9]{1,9})=([0-9]{1,9})")

app = typer.Typer(
    name="campaign",
    help="Check a budget and its scripts, plan the mint, activate a scheme.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

CampaignFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        exists=True,
        help="The campaign file, or the folder that holds campaign.yaml; its tables lie beside it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, amounts in fen.")]
TicketShards = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Files of a slot (none: 6, or as --after has them)."),
]
ClaimsShards = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Shards of claims (none: 6, or as --after has them)."),
]


@app.command()
def check(file: CampaignFile, as_json: AsJson = False) -> None:
    """Check a campaign with its budget and scripts, and show the sums.

    Tells every problem at once, with file, row and column.

    Examples:

        hongbao campaign check examples/new-year

        hongbao campaign check my/campaign.yaml --json | jq .problems
    """
    campaign = _load(file, as_json)
    if as_json:
        _print_json({"ok": True, "problems": [], **campaign_show.campaign_document(campaign)})
        return
    console = Console()
    campaign_show.show_campaign(console, campaign)
    console.print("[bold green]good[/]: every scheme spends every deposit to the fen")


@app.command()
def plan(
    file: CampaignFile,
    ticket_shards: TicketShards = None,
    claims_shards: ClaimsShards = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the record of plans here: an edit starts from it.")
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Re-plan an edited FILE after this record."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="With --after: the scheme to re-plan (default: the active).")
    ] = None,
    issued: Annotated[
        list[str] | None,
        typer.Option(metavar="SLOT=PLAN", help="With --after: a slot served from a plan's number."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan what each scheme mints: serials, batches, keys and files. Nothing is drawn yet.

    With --after, plans an edit: a late sponsor, a withdrawn sponsor, a changed allocation.
    Slots that were issued stay as they are, and the rest gets a plan with a new number.

    Examples:

        hongbao campaign plan examples/new-year --out out/plans.json

        hongbao campaign plan examples/new-year/edits/late-sponsor --after out/plans.json
        --issued 1=1 --issued 2=1 --out out/plans-2.json
    """
    campaign = _load(file, as_json)
    if after is None:
        if issued or scheme:
            raise typer.BadParameter("--issued and --scheme need --after")
        plans = plan_campaign(
            campaign,
            ticket_shards=ticket_shards or SHARDS,
            claims_shards=claims_shards or SHARDS,
        )
        record = record_plans(campaign, plans)
    else:
        before = _read_record(after)
        wanted, served = scheme or campaign.active_scheme, _parse_issued(issued or [])
        named = _name_edit(file, wanted)
        if problems := check_replan(campaign, before, scheme=wanted, issued=served, files=named):
            _fail(problems, as_json)
        new = replan(
            campaign,
            before,
            scheme=wanted,
            issued=served,
            ticket_shards=ticket_shards or _most(before, "ticket_shard"),
            claims_shards=claims_shards or _most(before, "claims_shard"),
        )
        plans = (new,)
        record = record_plans(campaign, (*before.plans, new))
    if out is not None:
        _write_whole(out, write_record(record))
    if as_json:
        documents = [campaign_show.plan_document(one) for one in plans]
        _print_json({"ok": True, "campaign": campaign.campaign, "plans": documents})
    else:
        campaign_show.show_plans(Console(), plans)


@app.command()
def activate(
    file: CampaignFile,
    scheme: Annotated[
        str, typer.Argument(metavar="SCHEME", help="The scheme's id, or its plan's number.")
    ],
    slot: Annotated[
        list[int] | None, typer.Option(min=1, help="A slot to switch (none: all not yet open).")
    ] = None,
    run: Annotated[Path, typer.Option(help="The folder of the run to talk to.")] = RUN_DIR,
    plans: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The record of plans, after a re-plan."),
    ] = None,
    lead_s: Annotated[
        float,
        typer.Option(min=0, max=3600, help="Refuse slots that open sooner: pods must hear of it."),
    ] = LEAD_MS / 1000,
    as_json: AsJson = False,
) -> None:
    """Switch slots that have not opened to another scheme, all at once or not at all.

    Refused when the scheme is not minted into the run's objects, when a slot has opened, or when
    the active slots together would spend more than a sponsor's deposit.

    Where the run's objects are remote (settings: objects_url), a scheme that `hongbao mint --out`
    and `hongbao verify` left in RUN/objects is uploaded first: what is there stays as it is.

    With --plans, FILE is a late edit: its budget and slot times replace those that the run plays,
    from now on and after a restart. Safe to repeat.

    Examples:

        hongbao campaign activate examples/new-year steady --slot 4 --slot 5

        hongbao campaign activate edited/campaign.yaml 3 --plans out/plans-2.json --run out/run
    """
    entry, files = read_files(file)
    campaign, problems = read_campaign(files, entry=entry)
    if campaign is None:
        _fail(problems, as_json)
    record = _read_record(plans) if plans else late_edit.played_record(RunDir(run), campaign)
    number = _find_number(record, scheme)
    slots = [SlotNumber(one) for one in slot or []]
    done = asyncio.run(_activate(run, campaign, record, number, slots, lead_s, entry))
    if plans and not done.problems:
        late_edit.write_late_edit(RunDir(run), entry, files, record)
    if done.problems:
        _fail(done.problems, as_json)
    if as_json:
        active = {str(one): done.after[one] for one in sorted(done.after)}
        _print_json({"ok": True, "active": active, "revision": done.revision})
        return
    for one in sorted(done.after):
        was, now = done.before.get(one), done.after[one]
        change = "unchanged" if was == now else f"was {was or 'not set'}"
        typer.echo(f"slot {one}: plan {now} ({change})")


async def _activate(
    run: Path,
    campaign: Campaign,
    record: PlanRecord,
    number: int,
    slots: list[SlotNumber],
    lead_s: float,
    entry: str,
) -> Activation:
    from hongbao.adapters.clock import SystemClock
    from hongbao.cli import stores

    async with stores.open_stores(run) as opened:
        late_edit.check_record(opened.run, opened.campaign, campaign, record)
        verify_key = read_public_key(opened.run.keys / "access.keys")
        try:
            manifests = await read_manifests(opened.objects, campaign.campaign, verify_key)
            here = await minted_here(opened.run, campaign.campaign, number, verify_key)
        except Corrupt as error:
            return Activation({}, {}, 0, (Problem("", 0, "objects", str(error)),))
        if here is not None and number not in {one.scheme_number for one in manifests}:
            manifests.append(here)
        shards = opened.settings.claims_shards
        if problems := check_minted(manifests, record.plans, number, shards):
            return Activation({}, {}, 0, tuple(problems))
        if here is not None:  # checked before: what is in a remote store stays as it is
            await upload_scheme(opened.run, opened.settings, here)
        manifest = next(one for one in manifests if one.scheme_number == number)
        pods = access_pods(opened.run.read_specs()[1])
        return await activate_scheme(
            opened.coordination,
            campaign,
            record.plans,
            number,
            slots,
            wall_ms=SystemClock().wall_ms,
            lead_ms=int(lead_s * 1000),
            deployment=Deployment(manifest, pods, opened.campaign.slots, entry),
        )


def _load(file: Path, as_json: bool) -> Campaign:
    """Return the campaign, or tell its problems and leave."""
    campaign, problems = load_campaign(file)
    if campaign is None:
        _fail(problems, as_json)
    return campaign


def _fail(problems: Sequence[Problem], as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"ok": False, "problems": campaign_show.problem_documents(problems)})
    else:
        campaign_show.show_problems(Console(), problems)
    raise typer.Exit(EXIT_PROBLEMS)


def _name_edit(file: Path, scheme: str) -> EditFiles:
    entry, files = read_files(file)
    return name_edit(entry, files[entry], scheme)


def _find_number(record: PlanRecord, scheme: str) -> int:
    """Return the newest plan of a scheme's id, or the plan of this number."""
    numbers = [one.scheme_number for one in record.plans if one.scheme == scheme]
    if not numbers and scheme.isascii() and scheme.isdigit():
        numbers = [one.scheme_number for one in record.plans if str(one.scheme_number) == scheme]
    if not numbers:
        known = ", ".join(f"{one.scheme} ({one.scheme_number})" for one in record.plans)
        raise typer.BadParameter(f"no scheme {scheme!r}; there are {known}", param_hint="SCHEME")
    return max(numbers)


def _most(record: PlanRecord, kind: str) -> int:
    """Return how many shards of a kind these plans have."""
    return 1 + max(int(getattr(file, kind)) for plan in record.plans for file in plan.files)


def _parse_issued(issued: list[str]) -> dict[SlotNumber, int]:
    """Parse `SLOT=PLAN` options."""
    served: dict[SlotNumber, int] = {}
    for text in issued:
        match = _SLOT_PLAN.fullmatch(text)
        if match is None:
            message = f"{text[:40]!r} is not SLOT=PLAN, such as 1=1"
            raise typer.BadParameter(message, param_hint="--issued")
        slot, number = SlotNumber(int(match[1])), int(match[2])
        if slot in served:
            raise typer.BadParameter(f"slot {slot} is named twice", param_hint="--issued")
        served[slot] = number
    return served


def _read_record(path: Path) -> PlanRecord:
    try:
        return read_record(path.read_bytes())
    except Corrupt as error:
        raise typer.BadParameter(f"{path}: {error}") from error


def _write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
