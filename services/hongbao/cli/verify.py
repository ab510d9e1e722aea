"""Is `hongbao verify`: open every ticket of minted schemes and derive every total again.

Exit codes: 0 all is as it must be, 1 faults were found, 2 refused.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hongbao.cipher.keyring import read_role_keyring
from hongbao.cli import minting
from hongbao.domain.errors import Corrupt
from hongbao.domain.manifest import PacketIndex, manifest_name, parse_manifest, signature_name
from hongbao.domain.money import format_yuan
from hongbao.domain.plan import MintPlan
from hongbao.verify.report import Finding, VerifyReport
from hongbao.verify.scheme import verify_scheme

EXIT_FAULTS = 1

app = typer.Typer(rich_markup_mode="markdown")


@app.command()
def verify(
    file: minting.CampaignFile,
    keys: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="A key file with ticket keys: redeem.keys."),
    ],
    passphrase: minting.Passphrase,
    out: minting.Objects = Path("out/objects"),
    scheme: minting.Schemes = None,
    plans: minting.Plans = None,
    ticket_shards: minting.TicketShards = 6,
    claims_shards: minting.ClaimsShards = 6,
    workers: minting.Workers = None,
    as_json: minting.AsJson = False,
) -> None:
    """Check budget against plan, plan against manifest, every byte, every ticket, every sum.

    Shares no code with the mint that draws or enciphers. All faults are told, not the first.

    Examples:

        hongbao verify examples/new-year --keys keys/redeem.keys --out out/objects

        hongbao verify examples/new-year --keys keys/redeem.keys --json | jq .problems
    """
    campaign, chosen = minting.choose_plans(file, plans, scheme, ticket_shards, claims_shards)
    keyring = read_role_keyring(keys, passphrase)
    cores = workers or os.cpu_count() or 1
    reports: list[tuple[MintPlan, VerifyReport]] = []
    for plan in chosen:
        budget = campaign if minting.is_budgeted(plan, plans) else None
        with minting.packet_progress(f"verify {plan.scheme}", quiet=as_json) as progress:
            report = verify_scheme(
                plan, out, keyring, campaign=budget, workers=cores, progress=progress
            )
        reports.append((plan, report))
    problems = [problem for _, report in reports for problem in report.problems]
    if not problems:
        problems += _doubled_serials(chosen, out, keyring.verify_key)
    if as_json:
        typer.echo(json.dumps(_document(reports, problems), indent=2))
    else:
        _show(reports, problems)
    if problems:
        raise typer.Exit(EXIT_FAULTS)


def _doubled_serials(plans: tuple[MintPlan, ...], out: Path, verify_key: bytes) -> list[Finding]:
    """Check that the schemes share no packet id (R54: global dedup)."""
    manifests = [
        parse_manifest(
            (out / manifest_name(plan.campaign, plan.scheme_number)).read_bytes(),
            (out / signature_name(plan.campaign, plan.scheme_number)).read_bytes(),
            verify_key,
        )
        for plan in plans
    ]
    try:
        PacketIndex(manifests)
    except Corrupt as error:
        return [Finding("all schemes", "duplicate", str(error))]
    return []


def _document(
    reports: list[tuple[MintPlan, VerifyReport]], problems: list[Finding]
) -> dict[str, object]:
    return {
        "ok": not problems,
        "schemes": [
            {
                "scheme": plan.scheme,
                "scheme_number": plan.scheme_number,
                "packets": report.packets,
                "total_fen": report.total_fen,
                "files": report.files,
                "ok": report.passed,
            }
            for plan, report in reports
        ],
        "problems": [asdict(problem) for problem in problems],
    }


def _show(reports: list[tuple[MintPlan, VerifyReport]], problems: list[Finding]) -> None:
    console = Console()
    for plan, report in reports:
        verdict = "[bold green]good[/]" if report.passed else "[bold red]faulty[/]"
        console.print(
            f"{plan.scheme} ({plan.scheme_number}): {report.packets:,} packets, "
            f"{format_yuan(report.total_fen)} yuan in {report.files} files: {verdict}"
        )
    for problem in problems:
        console.print(str(problem), style="red", markup=False)
