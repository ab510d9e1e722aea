"""Is `hongbao up`: all roles of a campaign on this machine, from one settings file."""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hongbao.adapters.clock import SystemClock
from hongbao.cli.prepare import Prepared, Step
from hongbao.cli.rain import Rain, prepare_run, rain
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings, read_settings
from hongbao.cli.up_screen import Rates, build_screen, tell_owing
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected
from hongbao.domain.timeline import Timeline
from hongbao.transport.launch import Embedding, find_embedding

START_IN_S = 5.0
REFRESH_S = 0.5

console = Console(stderr=True)


def up(
    settings: Annotated[Path, typer.Argument(help="Settings file (YAML).", exists=True)],
    rehearsal: Annotated[
        float,
        typer.Option(
            help="Seconds: play the whole timeline now, compressed into this time. "
            "0: keep the campaign's own times."
        ),
    ] = 0.0,
    start_in: Annotated[
        float, typer.Option(help="Seconds until a rehearsal's first slot opens.")
    ] = START_IN_S,
) -> None:
    """Run all roles on this machine; Ctrl-C drains.

    Makes keys, mints and verifies what is not there yet, deploys, and serves.

    Examples:

        hongbao up examples/up.yaml

        hongbao up examples/up.yaml --rehearsal 60
    """
    chosen = read_settings(settings)
    if rehearsal:
        refuse_to_pay(chosen)
    tell_embedding(find_embedding())
    with RunDir(chosen.run_dir).supervised():
        with Progress(
            *Progress.get_default_columns()[:-1],
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        ) as bars:
            run, campaign, prepared = prepare_run(chosen, progress_step(bars))
        asyncio.run(_serve(chosen, run, campaign, prepared, rehearsal, start_in))


def tell_embedding(embedding: Embedding) -> None:
    """Say how it will serve, and what would make it faster."""
    if embedding.library:
        return
    console.print(f"[yellow]Python cannot be embedded in Envoy: {embedding.reason}.[/]")
    if embedding.debian_package:
        console.print(f"For full speed, JSON and gRPC-Web: apt install {embedding.debian_package}")
    console.print("Serving with grpcio instead: gRPC only, about a fifth of the speed.")


def progress_step(bars: Progress) -> Step:
    """Return a step callback that keeps one bar per step, with rate and time left."""
    tasks: dict[str, tuple[int, float]] = {}
    clock = SystemClock()

    def step(what: str, done: int, whole: int) -> None:
        if what not in tasks:
            tasks[what] = (bars.add_task(what, total=whole, rate=""), clock.monotonic_s())
        task, began_s = tasks[what]
        rate = done / max(clock.monotonic_s() - began_s, 1e-3)
        bars.update(task, completed=done, rate=f"{rate / 1e6:.1f}M packets/s")  # type: ignore[arg-type]

    return step


def refuse_to_pay(settings: UpSettings) -> None:
    """Raise Rejected where a rehearsal would pay real money."""
    if settings.webhook_url is not None:
        raise Rejected("a rehearsal never pays outside: leave it out", field="webhook_url")


def rehearsed_timeline(campaign: Campaign, rehearsal_s: float, start_in_s: float) -> Timeline:
    """Return the campaign's timeline, compressed to begin now when a rehearsal is wanted."""
    timeline = Timeline(campaign.slots)
    if not rehearsal_s:
        return timeline
    start_ms = SystemClock().wall_ms() + int(start_in_s * 1000)
    return timeline.rehearsed(start_ms, int(rehearsal_s * 1000))


async def _serve(
    settings: UpSettings,
    run: RunDir,
    campaign: Campaign,
    prepared: Prepared,
    rehearsal_s: float,
    start_in_s: float,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    timeline = rehearsed_timeline(campaign, rehearsal_s, start_in_s)
    async with rain(settings, run, campaign, prepared, timeline) as live:
        for gateway in live.gateways():
            console.print(f"gateway {gateway.zone}: http://{gateway.host}:{gateway.port}")
        if owing := await tell_owing(live):
            console.print(f"[yellow]{owing}[/]", highlight=False)
        console.print(f"run: {run.path} — Ctrl-C drains")
        rates = Rates()
        following = asyncio.create_task(rates.follow(live))
        with Live(console=console, refresh_per_second=2, transient=True) as screen:
            while not stop.is_set():
                screen.update(_show(live, rates.per_s))
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_S):
                        await stop.wait()
        following.cancel()
        console.print("draining …")
    console.print(f"drained; `hongbao audit --run {run.path}` proves the money")


def _show(live: Rain, rates: Mapping[str, float]) -> Table:
    slot = live.timeline.slot_at(live.clock.wall_ms())
    caption = f"slot {slot.slot} {slot.name}" if slot else "no slot is open"
    pids = {spec.process: live.supervisor.pid(spec.process) for spec in live.specs}
    return build_screen(live.specs, pids, live.supervisor.deaths, rates, caption)
