"""Is `hongbao load`: open-loop load with honest latencies."""

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hongbao.cli.target import (
    RUN_DIR,
    AsJson,
    CampaignOption,
    GatewayOption,
    IssuerOption,
    RunOption,
    find_target,
)
from hongbao.client.load import run_load
from hongbao.client.plan import LoadPlan, Phase
from hongbao.client.stats import Latency, LoadStats, Sample
from hongbao.domain.errors import Rejected
from hongbao.domain.money import format_yuan

EXIT_UNRESOLVED = 1


def load(
    rate: Annotated[float, typer.Option("--rate", min=0, help="Shakes per second.")] = 1000.0,
    duration: Annotated[float, typer.Option("--duration", min=0.1, help="Seconds.")] = 10.0,
    phase: Annotated[
        list[str] | None,
        typer.Option("--phase", help="name:seconds:rate or name:seconds:from:to; may be repeated."),
    ] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="Simulated users.")] = 2000,
    first_user: Annotated[int, typer.Option("--first-user", min=1, help="Lowest user id.")] = 1,
    rude: Annotated[
        float, typer.Option("--rude", min=0, max=1, help="Share of users that obey nothing.")
    ] = 0.0,
    only_shake: Annotated[bool, typer.Option("--only-shake", help="Open nothing.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Repeats the same draws.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for samples.jsonl and acknowledged.jsonl."),
    ] = None,
    run: RunOption = RUN_DIR,
    gateway: GatewayOption = None,
    campaign: CampaignOption = "",
    issuer: IssuerOption = None,
    as_json: AsJson = False,
) -> None:
    """Shake by the plan, whatever the servers do, and open what is won.

    Latency counts from the time a call was due, so a stall cannot hide (coordinated omission).
    Exit code 1 when opens were left without an answer.

    Examples:

        hongbao load --rate 5000 --duration 30

        hongbao load --phase up:10:0:8000 --phase peak:20:8000 --phase down:10:8000:0

        hongbao load --rate 50000 --rude 1 --only-shake --json
    """
    target = find_target(run, gateway, campaign, issuer)
    phases = [parse_phase(text) for text in phase or ()]
    plan = LoadPlan(
        campaign=target.campaign,
        gateways=target.gateways,
        phases=phases or [Phase("steady", duration, rate, rate)],
        users=users,
        first_user=first_user,
        rude_share=rude,
        open_packets=not only_shake,
        acknowledged=out / "acknowledged.jsonl" if out else None,
        seed=seed,
    )
    stats = LoadStats()
    with ExitStack() as stack:
        on_sample = _observe(stack, stats, out, quiet=as_json)
        asyncio.run(
            run_load(
                plan, on_sample, jwt_of=target.jwt_of, wall_ms=target.clock.wall_ms, stats=stats
            )
        )
    summary = summarize(stats, plan.duration_s)
    typer.echo(json.dumps(summary) if as_json else json.dumps(summary, indent=2))
    if stats.total.opens["UNRESOLVED"]:
        raise typer.Exit(EXIT_UNRESOLVED)


def parse_phase(text: str) -> Phase:
    """Read `name:seconds:rate` or `name:seconds:from:to`. Raises Rejected."""
    name, *numbers = text.split(":")
    try:
        seconds, start, end = map(float, numbers if len(numbers) == 3 else [*numbers, numbers[-1]])
    except (ValueError, IndexError) as error:
        raise Rejected(
            f"{text!r} is not name:seconds:rate or name:seconds:from:to", field="phase"
        ) from error
    if not (seconds > 0 and start >= 0 and end >= 0):
        raise Rejected(f"{text!r} needs seconds above 0 and rates from 0", field="phase")
    return Phase(name, seconds, start, end)


def summarize(stats: LoadStats, duration_s: float) -> dict[str, Any]:
    """Return the totals of a run as JSON values."""
    total = stats.total
    return {
        "duration_s": duration_s,
        "wanted": total.wanted,
        "held_back": total.held_back,
        "shakes": dict(total.shakes),
        "opens": dict(total.opens),
        "open_repeats": dict(total.open_repeats),
        "shed": total.shed,
        "opened_fen": total.opened_fen,
        "shake_ms": _percentiles(total.shake_latency.percentile_ms),
        "open_ms": _percentiles(total.open_latency.percentile_ms),
        "generator_late_ms": round(total.late_s_max * 1000, 1),
    }


def _percentiles(of: Callable[[float], float]) -> dict[str, float]:
    return {f"p{percent:g}": round(of(percent), 3) for percent in (50, 90, 99, 99.9, 100)}


def _observe(
    stack: ExitStack, stats: LoadStats, out: Path | None, *, quiet: bool
) -> Callable[[Sample], None]:
    """Return what each sample is shown and written by."""
    file: TextIO | None = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((out / "samples.jsonl").open("w"))
    live: Live | None = None
    if not quiet:
        live = stack.enter_context(Live(console=Console(stderr=True), transient=True))

    def on_sample(sample: Sample) -> None:
        if file is not None:
            file.write(json.dumps(sample.to_json()) + "\n")
            file.flush()
        if live is not None:
            live.update(build_table(sample, stats))

    return on_sample


def build_table(sample: Sample, stats: LoadStats) -> Table:
    """Build what the terminal shows while a run goes on."""
    table = Table(title=f"{sample.elapsed_s:.0f} s · {sample.phase}", title_justify="left")
    for name in ("", "per second", "p50 ms", "p99 ms", "max ms"):
        table.add_column(name, justify="left" if not name else "right")

    def row(name: str, count: int, latency: Latency | None = None) -> None:
        cells = [f"{count / sample.interval_s:,.0f}" if sample.interval_s else "–"]
        if latency is not None:
            cells += [f"{v:,.1f}" for v in (latency.p50_ms, latency.p99_ms, latency.max_ms)]
        table.add_row(name, *cells)

    row("shakes wanted", sample.wanted)
    row("held back", sample.held_back)
    row("shakes answered", sample.shake_latency.count, sample.shake_latency)
    row("packets", sample.shakes.get("PACKET", 0))
    row("opened", sample.opens.get("OPENED", 0), sample.open_latency)
    row("shed", sample.shed)
    table.caption = (
        f"{stats.sessions:,} sessions · {sample.gateways_up} gateways up · "
        f"{sample.opens_waiting:,} opens wait · {format_yuan(stats.total.opened_fen)} yuan opened"
    )
    return table
