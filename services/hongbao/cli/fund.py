"""Is `hongbao fund`: sponsors' money in and back out, on the ledger of a run.

Exit codes: 0 done (or done before), 2 refused, 75 too early: try again.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
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
from hongbao.cli.acks import wait_acked
from hongbao.domain import money as yuan
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected, Transient
from hongbao.domain.ids import CampaignId
from hongbao.domain.timeline import OPEN_GRACE_MS, Closed, Timeline
from hongbao.redeem.closing import close_logs, open_logs
from hongbao.settle.fund import Backlog, FundMovement, Minted, Pool, check_over, plan_pay_in
from hongbao.settle.run import log_lag
from hongbao.shards.block import NONCE_BYTES
from hongbao.shards.ports import Coordination

WAIT_S = 10.0
LOOK_AGAIN_S = 0.1
SHOWN = ("deposit", "missing", "credited", "held", "refunded", "balance")
CLOSER = "hongbao fund refund"

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
    """Record what a sponsor paid in. Idempotent by its reference, never above the deposit.

    Packets are paid from what sponsors paid in: until every deposit is recorded, `fund status`
    shows what is missing and the audit says that pools do not cover the payments.

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
        typer.Option(
            min=0, help="The users' time to open, after the last slot: no refunds before."
        ),
    ] = OPEN_GRACE_MS / 1000,
    wait_s: Annotated[
        float, typer.Option(min=1, help="Wait so long for redeem processes, then for settlement.")
    ] = WAIT_S,
    by: Annotated[str, typer.Option(help="Who closes the campaign, kept with it.")] = CLOSER,
    as_json: AsJson = False,
) -> None:
    """Close the campaign and return to each sponsor all that is left. Twice is as once.

    Only after the last slot and its grace. Closing is for good: it waits until every living
    redeem process refuses to open, then until every claim is settled and paid. Claims that lie
    in quarantine keep their money back.

    Examples:

        hongbao fund refund

        hongbao fund refund --grace-s 0 --json     # users get no time after the last slot
    """
    movements = asyncio.run(refund_run(run, grace_s, wait_s, by))
    _show_movements([(one, True) for one in movements], as_json)


@app.command()
def status(run: Run = stores.DEFAULT_RUN, as_json: AsJson = False) -> None:
    """Show every sponsor's pool in yuan, and what is missing of its deposit; more with --json.

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
    table = Table("sponsor", *SHOWN)
    for row in rows:
        table.add_row(row["sponsor"], *(yuan.format_yuan(row[f"{name}_fen"]) for name in SHOWN))
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
            return [
                (one, await asyncio.to_thread(fund.pay_in, one, campaign.deposits[one.sponsor]))
                for one in movements
            ]
        finally:
            engine.dispose()


async def refund_run(
    run: Path, grace_s: float, wait_s: float = WAIT_S, by: str = CLOSER
) -> list[FundMovement]:
    """Close the campaign and return what nobody claimed. Raises Transient while it must wait.

    The order is what keeps money that goes back from being claimed: closed, obeyed by every
    redeem process, every log closed, settled to the end of the logs, then refunded.
    """
    async with stores.open_stores(run) as opened:
        minted = await money.read_minted(opened)
        engine = await money.open_ledger(opened)
        try:
            ledger, fund = SqlLedger(engine), SqlFund(engine)
            key = f"campaigns/{opened.campaign.campaign}/timeline"
            timeline = Timeline.from_json((await opened.coordination.read(key)).value)
            now_ms = SystemClock().wall_ms()
            check_over(now_ms, timeline.slots[-1].ends_at_ms, int(grace_s * 1000))
            await close_campaign(
                opened.coordination, opened.campaign.campaign, Closed(now_ms, by), wait_s
            )
            await _close_logs(opened, minted.claims_shards, wait_s)

            async def observe() -> Backlog:
                lag_blocks = {
                    shard: await log_lag(opened.log_store, shard, ledger.position(shard))
                    for shard in minted.claims_shards
                }
                return Backlog(lag_blocks, fund.pending_transfers())

            await _wait_settled(observe, wait_s)
            return await asyncio.to_thread(fund.refund, Minted(minted.fen_by_sponsor()), now_ms)
        finally:
            engine.dispose()


async def close_campaign(
    coordination: Coordination, campaign: CampaignId, closed: Closed, wait_s: float
) -> None:
    """Write `campaigns/<c>/closed` once and wait until every living redeem process refuses opens.

    Safe to repeat: the first document stays. Raises Transient when processes do not acknowledge.
    """
    key = f"campaigns/{campaign}/closed"
    written = await coordination.compare_and_put(key, closed.to_json(), revision=0)
    document = written or await coordination.read(key)
    await wait_acked(coordination, key, "redeem", document.revision, wait_s)


async def _close_logs(opened: stores.Stores, shards: list[int], wait_s: float) -> None:
    """Close every claims log. Raises Transient naming the shards that are held and stay open."""
    try:
        async with asyncio.timeout(wait_s):
            await close_logs(
                opened.coordination,
                opened.log_store,
                shards,
                process=f"fund-refund-{os.urandom(4).hex()}",
                nonces=lambda: os.urandom(NONCE_BYTES),
                monotonic_s=SystemClock().monotonic_s,
            )
    except TimeoutError:
        still_open = await open_logs(opened.log_store, shards)
        if not still_open:  # all were closed, and time passed while the leases were given up
            return
        names = ", ".join(f"claims/{shard}" for shard in still_open)
        raise Transient(f"closed, but somebody holds open the logs of {names}") from None


async def _wait_settled(observe: Callable[[], Awaitable[Backlog]], wait_s: float) -> None:
    """Wait until settlement has caught up. Raises Transient saying what is missing."""
    monotonic_s = SystemClock().monotonic_s
    give_up_s = monotonic_s() + wait_s
    while problems := (await observe()).problems():
        if monotonic_s() > give_up_s:
            raise Transient("closed, but too early for refunds: " + "; ".join(problems))
        await asyncio.sleep(LOOK_AGAIN_S)


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
    deposit_fen = campaign.deposits.get(pool.sponsor, 0)
    return {
        "sponsor": name or str(pool.sponsor),
        "deposit_fen": deposit_fen,
        "missing_fen": max(0, deposit_fen - pool.paid_in_fen),
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
