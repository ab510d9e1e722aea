"""Is `hongbao fund`: sponsors' money in and back out, on the ledger of a run.

Exit codes: 0 done (or done before), 2 refused, 75 too early: try again.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hongbao.adapters.clock import SystemClock
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.cli import money, stores
from hongbao.domain import money as yuan
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected, Transient
from hongbao.domain.timeline import Timeline
from hongbao.settle.fund import Closing, FundMovement, Minted, Pool, plan_pay_in
from hongbao.settle.run import log_lag

GRACE_S = 120.0

Run = Annotated[Path, typer.Option(help="The folder of the run to talk to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

app = typer.Typer(
    name="fund",
    help="Take sponsors' pay-ins, return what nobody claimed.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command("pay-in")
def pay_in(
    sponsor: Annotated[
        str | None, typer.Argument(help="The sponsor's id, as in the campaign file.")
    ] = None,
    amount: Annotated[str | None, typer.Argument(metavar="[YUAN]", help="As 1234.50.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The payment's own number: the same again changes nothing.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every sponsor's deposit, as the campaign file says.")
    ] = False,
    run: Run = stores.DEFAULT_RUN,
    as_json: AsJson = False,
) -> None:
    """Record what a sponsor paid in. Idempotent by its reference.

    Examples:

        hongbao fund pay-in moonbake 250000.00 --reference 2026-0117-443

        hongbao fund pay-in --all
    """
    if every == bool(sponsor and amount and reference) or (every and (sponsor or reference)):
        raise typer.BadParameter("name sponsor, yuan and --reference, or say --all")
    given = None if every else (sponsor or "", _fen(amount or ""), reference or "")
    _show_movements(asyncio.run(pay_in_run(run, given)), as_json)


@app.command()
def refund(
    run: Run = stores.DEFAULT_RUN,
    grace_s: Annotated[
        float,
        typer.Option(min=0, help="Wait so long after the last slot: claim tokens live that long."),
    ] = GRACE_S,
    as_json: AsJson = False,
) -> None:
    """Close the campaign and return to each sponsor what nobody claimed. Twice is as once.

    Only after the last slot, when every claim is settled and paid. Claims that lie in
    quarantine keep their money back. A claim that comes later is quarantined, never paid.

    Examples:

        hongbao fund refund

        hongbao fund refund --grace-s 0 --json     # the redeem processes are stopped already
    """
    _show_movements([(one, True) for one in asyncio.run(refund_run(run, grace_s))], as_json)


@app.command()
def status(run: Run = stores.DEFAULT_RUN, as_json: AsJson = False) -> None:
    """Show every sponsor's pool.

    Examples:

        hongbao fund status

        hongbao fund status --json | jq '.pools[] | select(.balance_fen < 0)'
    """
    campaign, pools, minted = asyncio.run(_read_pools(run))
    names: dict[int, str] = {index: name for name, index in campaign.sponsor_indexes.items()}
    rows = [_pool_row(pool, names.get(pool.sponsor, ""), campaign, minted) for pool in pools]
    if as_json:
        typer.echo(json.dumps({"pools": rows}, indent=2))
        return
    columns = [name for name in rows[0] if name.endswith("_fen")] if rows else []
    table = Table("sponsor", *(name.removesuffix("_fen").replace("_", " ") for name in columns))
    for row in rows:
        table.add_row(row["sponsor"], *(yuan.format_yuan(row[name]) for name in columns))
    for column in table.columns[1:]:
        column.justify = "right"
    Console().print(table)


async def pay_in_run(
    run: Path, given: tuple[str, int, str] | None = None
) -> list[tuple[FundMovement, bool]]:
    """Record one pay-in, or (None) every sponsor's deposit; False: it was there already."""
    async with stores.open_stores(run) as opened:
        campaign = opened.campaign
        wanted = [given] if given else _deposits(campaign)
        at_ms = SystemClock().wall_ms()
        engine = await money.open_ledger(opened)
        try:
            fund = SqlFund(engine)
            movements = [
                plan_pay_in(reference, _index(campaign, name), fen, campaign.deposits, at_ms)
                for name, fen, reference in wanted
            ]
            return [(one, await asyncio.to_thread(fund.pay_in, one)) for one in movements]
        finally:
            engine.dispose()


async def refund_run(run: Path, grace_s: float = GRACE_S) -> list[FundMovement]:
    """Return what nobody claimed. Raises Transient saying why it is too early."""
    async with stores.open_stores(run) as opened:
        minted = await money.read_minted(opened)
        engine = await money.open_ledger(opened)
        try:
            ledger, fund = SqlLedger(engine), SqlFund(engine)
            key = f"campaigns/{opened.campaign.campaign}/timeline"
            timeline = Timeline.from_json((await opened.coordination.read(key)).value)
            now_ms = SystemClock().wall_ms()
            closing = Closing(
                now_ms=now_ms,
                ends_at_ms=timeline.slots[-1].ends_at_ms,
                grace_ms=int(grace_s * 1000),
                lag_blocks={
                    shard: await log_lag(opened.log_store, shard, ledger.position(shard))
                    for shard in minted.claims_shards
                },
                pending_transfers=fund.pending_transfers(),
            )
            if problems := closing.problems():
                raise Transient("too early for refunds: " + "; ".join(problems))
            return await asyncio.to_thread(fund.refund, Minted(minted.fen_by_sponsor()), now_ms)
        finally:
            engine.dispose()


async def _read_pools(run: Path) -> tuple[Campaign, Sequence[Pool], Minted]:
    async with stores.open_stores(run) as opened:
        minted = await money.read_minted(opened)
        engine = await money.open_ledger(opened)
        try:
            pools = {pool.sponsor: pool for pool in SqlFund(engine).pools()}
        finally:
            engine.dispose()
        every = sorted(set(pools) | set(opened.campaign.deposits))
        found = [pools.get(sponsor, Pool(sponsor)) for sponsor in every]
        return opened.campaign, found, Minted(minted.fen_by_sponsor())


def _pool_row(pool: Pool, name: str, campaign: Campaign, minted: Minted) -> dict[str, Any]:
    return {
        "sponsor": name or str(pool.sponsor),
        "deposit_fen": campaign.deposits.get(pool.sponsor, 0),
        **{field: value for field, value in asdict(pool).items() if field != "sponsor"},
        "balance_fen": pool.balance_fen,
        "unclaimed_fen": minted.unclaimed_fen(pool),
    }


def _deposits(campaign: Campaign) -> list[tuple[str, int, str]]:
    return [
        (one.sponsor, one.deposit_fen, f"deposit/{one.sponsor}")
        for one in campaign.sponsors
        if one.deposit_fen
    ]


def _index(campaign: Campaign, sponsor: str) -> int:
    found = campaign.sponsor_indexes.get(sponsor)
    if found is None:
        known = ", ".join(campaign.sponsor_indexes)
        raise Rejected(f"no sponsor {sponsor!r}; there are: {known}", field="sponsor")
    return int(found)


def _fen(amount: str) -> int:
    try:
        return yuan.parse_yuan(amount)
    except ValueError as error:
        raise Rejected(str(error), field="amount") from error


def _show_movements(movements: Sequence[tuple[FundMovement, bool]], as_json: bool) -> None:
    if as_json:
        rows = [asdict(one) | {"new": new} for one, new in movements]
        typer.echo(json.dumps({"movements": rows}, indent=2))
        return
    for one, new in movements:
        note = "" if new else " (was recorded before)"
        amount = yuan.format_yuan(one.amount_fen)
        typer.echo(f"{one.kind} {one.reference}: sponsor {one.sponsor}, {amount} yuan{note}")
    if not movements:
        typer.echo("nothing to return")
