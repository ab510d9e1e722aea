"""Is `hongbao audit`: prove the money of a run, live or closed.

Exit codes: 0 all equations hold, 3 at least one is broken, 2 there is nothing to audit.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hongbao.audit.campaign import AuditInput, AuditReport, audit_campaign
from hongbao.cli import money, stores
from hongbao.domain.money import format_yuan

EXIT_BROKEN = 3


def audit(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="The folder of the run.")
    ] = None,
    run: Annotated[Path, typer.Option(help="The same, as other commands take it.")] = (
        stores.DEFAULT_RUN
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object on one line.")
    ] = False,
    tables: Annotated[
        Path | None, typer.Option(help="Write all tables to this file, as one JSON object.")
    ] = None,
    acknowledged: Annotated[
        Path | None,
        typer.Option(help="Packets that clients saw opened, one serial a line: none may be lost."),
    ] = None,
) -> None:
    """Recompute all money from logs, amount tables and ledger, and check every equation.

    Reads only; a run may go on meanwhile. Shares no code with settlement.

    Examples:

        hongbao audit out/run

        hongbao audit out/run --json | jq .equations

        hongbao audit out/run --tables out/audit.json
    """
    serials = list(money.read_serials(acknowledged)) if acknowledged else []
    report = asyncio.run(audit_run(folder or run, serials))
    if tables is not None:
        tables.write_text(json.dumps(report.document(), ensure_ascii=False, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(report.line))
    else:
        _show(report)
    if not report.holds:
        raise typer.Exit(EXIT_BROKEN)


async def audit_run(run: Path, acknowledged: list[int] | None = None) -> AuditReport:
    """Audit the run in a folder. Raises NotFound when it holds none."""
    async with stores.open_stores(run) as opened:
        return await audit_opened(opened, acknowledged or [])


async def audit_opened(opened: stores.Stores, acknowledged: list[int]) -> AuditReport:
    """Audit a run whose stores are open."""
    minted = await money.read_minted(opened)
    engine = await money.open_ledger(opened)
    try:
        given = AuditInput(
            campaign=opened.campaign,
            schemes=minted.schemes,
            active=minted.active,
            log_store=opened.log_store,
            ledger=engine,
            alive=await money.read_alive(opened),
            acknowledged=acknowledged,
        )
        return await audit_campaign(given)
    finally:
        engine.dispose()


def _show(report: AuditReport) -> None:
    console = Console()
    console.print(_sponsor_table(report.tables.sponsors))
    console.print(_slot_table(report.tables.slots))
    sums = Table("figure", "value", title="All together", title_justify="left")
    for name, value in report.line.items():
        if name != "equations":
            shown = format_yuan(value) if name.endswith("_fen") else f"{value}"
            sums.add_row(name.removesuffix("_fen").replace("_", " "), shown)
    sums.columns[1].justify = "right"
    console.print(sums)
    verdicts = Table("", "equation", "what must hold", title="Equations", title_justify="left")
    for one in report.tables.verdicts:
        mark = "[green]✓[/]" if one.holds else f"[bold red]{one.violations:,} ✗[/]"
        verdicts.add_row(mark, one.equation, one.says)
    console.print(verdicts)
    for one in report.tables.verdicts:
        for example in one.examples[:5]:
            facts = " ".join(f"{name}={value}" for name, value in example.items())
            console.print(f"{one.equation}: {facts}", style="red", markup=False)


def _sponsor_table(rows: list[dict[str, Any]]) -> Table:
    names = ("minted", "opened", "credited", "pending", "quarantined", "unclaimed", "refunded")
    table = Table("sponsor", *names, title="Money by sponsor, yuan", title_justify="left")
    for row in rows:
        label = row["sponsor"] or str(row["index"])
        table.add_row(label, *(format_yuan(row[f"{name}_fen"]) for name in names))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _slot_table(rows: list[dict[str, Any]]) -> Table:
    names = ("slot", "scheme", "minted", "reserved", "opened", "residue", "yuan opened")
    table = Table(*names, title="Packets by slot", title_justify="left")
    for row in rows:
        counts = ("packets_minted", "packets_reserved", "packets_opened", "residue_packets")
        cells = [f"{row[name]:,}" for name in counts]
        label = f"{row['slot']} {row['name']}".strip()
        table.add_row(label, row["scheme"], *cells, format_yuan(row["opened_fen"]))
    for column in table.columns[2:]:
        column.justify = "right"
    return table
