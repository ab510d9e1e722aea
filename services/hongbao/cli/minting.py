"""Owns what `hongbao mint`, `verify` and `keys` share: which plans are meant, secrets, progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hongbao.cli.campaign_input import require_campaign
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Corrupt, NotFound, Rejected
from hongbao.domain.plan import MintPlan
from hongbao.domain.plan_file import read_record
from hongbao.domain.script import PlanRecord, plan_campaign

CampaignFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        exists=True,
        help="The campaign file, or the folder that holds campaign.yaml; its tables lie beside it.",
    ),
]
Objects = Annotated[
    Path, typer.Option("--out", help="The folder of the object store, where the files lie.")
]
Plans = Annotated[
    Path | None,
    typer.Option(
        "--plans",
        exists=True,
        dir_okay=False,
        help="The record that `campaign plan --out` wrote, instead of planning anew.",
    ),
]
Schemes = Annotated[
    list[str] | None,
    typer.Option("--scheme", help="A scheme's id or its plan's number; repeatable (none: all)."),
]
TicketShards = Annotated[int, typer.Option(min=1, max=1024, help="Files of a slot.")]
ClaimsShards = Annotated[int, typer.Option(min=1, max=1024, help="Shards of claims.")]
Workers = Annotated[int | None, typer.Option(min=1, max=256, help="Processes (none: one a core).")]
Passphrase = Annotated[
    str,
    typer.Option(
        envvar="HONGBAO_KEYS_PASSPHRASE",
        prompt="The operator's passphrase of the key files",
        hide_input=True,
        help="Better given by the environment or the prompt than on the command line.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, amounts in fen.")]


def choose_plans(
    file: Path,
    plans: Path | None,
    schemes: list[str] | None,
    ticket_shards: int,
    claims_shards: int,
) -> tuple[Campaign, tuple[MintPlan, ...]]:
    """Return the campaign and the plans that the options mean. Raises NotFound or Rejected."""
    campaign = require_campaign(file)
    if plans is None:
        known = plan_campaign(campaign, ticket_shards=ticket_shards, claims_shards=claims_shards)
    else:
        record = _read_record(plans)
        if record.campaign != campaign.campaign:
            raise Rejected(f"{plans}: holds plans of {record.campaign}, not {campaign.campaign}")
        known = record.plans
    if not schemes:
        return campaign, known
    chosen = [plan for plan in known if {plan.scheme, str(plan.scheme_number)} & set(schemes)]
    found = {name for plan in chosen for name in (plan.scheme, str(plan.scheme_number))}
    for scheme in schemes:
        if scheme not in found:
            there = ", ".join(f"{plan.scheme} ({plan.scheme_number})" for plan in known)
            raise NotFound(f"no scheme {scheme!r}; there are {there}")
    return campaign, tuple(chosen)


def is_budgeted(plan: MintPlan, plans: Path | None) -> bool:
    """Return whether a plan follows from the campaign file: of a record, only the newest does."""
    return plans is None or plan == _read_record(plans).plans[-1]


def _read_record(path: Path) -> PlanRecord:
    try:
        return read_record(path.read_bytes())
    except Corrupt as error:
        raise Rejected(f"{path}: {error}") from error


@contextmanager
def packet_progress(title: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on the error stream; yield what moves it."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        disable=quiet,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)


class _RateColumn(ProgressColumn):
    """Shows millions of packets a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed / 1e6:5.2f} M packets/s")
