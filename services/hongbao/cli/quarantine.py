"""Is `hongbao quarantine`: claims that were not paid because a check failed, and their way out.

Exit codes: 0 done (or done before), 2 refused: the claim still fails, or is paid to another.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hongbao.adapters.clock import SystemClock
from hongbao.adapters.sql_quarantine import SqlQuarantine
from hongbao.cli import money, stores
from hongbao.domain.errors import NotFound
from hongbao.domain.money import format_yuan
from hongbao.settle.book import Book
from hongbao.settle.ports import TransferState
from hongbao.settle.release import QuarantinedRow, Release, plan_release
from hongbao.settle.rules import parse_keys

Run = Annotated[Path, typer.Option(help="The folder of the run to talk to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

app = typer.Typer(
    name="quarantine",
    help="Show claims that settlement did not pay; pay them once they are right.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command("list")
def list_claims(
    every: Annotated[
        bool, typer.Option("--all", help="Also those that were released and are paid.")
    ] = False,
    run: Run = stores.DEFAULT_RUN,
    as_json: AsJson = False,
) -> None:
    """List quarantined claims; --json also shows the evidence.

    Examples:

        hongbao quarantine list

        hongbao quarantine list --json | jq '.claims[] | select(.reason == "key_denied")'
    """
    rows = [row for row in asyncio.run(_read(run)) if every or row.status != "posted"]
    if as_json:
        typer.echo(json.dumps({"claims": [_document(row) for row in rows]}, indent=2))
        return
    table = Table("serial", "user", "sponsor", "yuan", "reason", "status", "released because")
    for row in rows:
        claim = row.claim
        cells = (str(claim.serial), str(claim.user), str(claim.sponsor))
        yuan = format_yuan(claim.claimed_fen)
        table.add_row(*cells, yuan, claim.reason, row.status, row.why)
    Console().print(table)


@app.command()
def release(
    serial: Annotated[int, typer.Argument(min=1, help="The packet, as `list` shows it.")],
    why: Annotated[str, typer.Option(help="Why it is right to pay, kept with it.")],
    run: Run = stores.DEFAULT_RUN,
    as_json: AsJson = False,
) -> None:
    """Pay a quarantined claim that passes every check now. Idempotent by the packet.

    A payment that the sink refused is asked for again, with the same idempotency key.

    Examples:

        hongbao keys allow 7 && hongbao quarantine release 1000042 --why 'key 7 did not leak'
    """
    released, new = asyncio.run(_release(run, serial, why))
    transfer = released.transfer
    if as_json:
        document = transfer._asdict() | {"state": released.state.name.lower(), "new": new}
        typer.echo(json.dumps(document, indent=2))
        return
    note = "" if new else " (was released before)"
    amount = format_yuan(transfer.amount_fen)
    typer.echo(f"packet {serial}: {amount} yuan to user {transfer.user}{note}")


async def _read(run: Path) -> list[QuarantinedRow]:
    async with stores.open_stores(run) as opened:
        engine = await money.open_ledger(opened)
        try:
            return await asyncio.to_thread(SqlQuarantine(engine).rows)
        finally:
            engine.dispose()


async def _release(run: Path, serial: int, why: str) -> tuple[Release, bool]:
    async with stores.open_stores(run) as opened:
        minted = await money.read_minted(opened)
        keys_key = f"campaigns/{opened.campaign.campaign}/keys"
        keys = parse_keys(await opened.coordination.read(keys_key))
        outside = opened.settings.webhook_url is not None
        engine = await money.open_ledger(opened)
        try:
            quarantine = SqlQuarantine(engine)
            rows = [row.claim for row in await asyncio.to_thread(quarantine.rows, serial)]
            if not rows:
                raise NotFound(f"packet {serial} has no claim in quarantine", field="serial")
            planned = plan_release(
                rows,
                Book(minted.schemes, active=minted.active, keys=keys),
                state=TransferState.PENDING if outside else TransferState.CREDITED,
                why=why,
                at_ms=SystemClock().wall_ms(),
            )
            return planned, await asyncio.to_thread(quarantine.release, planned)
        finally:
            engine.dispose()


def _document(row: QuarantinedRow) -> dict[str, Any]:
    claim = row.claim._asdict()
    more = {"at_ms": row.at_ms, "status": row.status, "released_because": row.why}
    return claim | {"evidence": json.loads(row.claim.evidence)} | more
