"""Is `hongbao demo`: a short New Year's Eve with everything that can go wrong, then the audit.

The last line on standard output is one JSON object; the exit status is 0 only if its money
equations hold and something was at stake. Everything else goes to standard error.
"""

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from hongbao.cli.campaign_input import require_campaign
from hongbao.cli.demo_close import close_evening, find_unproved, hongbao
from hongbao.cli.demo_faults import plan_store_events, read_store_faults
from hongbao.cli.demo_screen import Screen, build_screen
from hongbao.cli.demo_script import EventLog, plan_events, play
from hongbao.cli.documents import deploy_timeline
from hongbao.cli.rain import Rain, prepare_run, rain
from hongbao.cli.report import write_report
from hongbao.cli.run_claim import check_unclaimed
from hongbao.cli.run_dir import LOCK_NAME, RunDir, check_sockets
from hongbao.cli.run_objects import check_no_objects
from hongbao.cli.settings import UpSettings, read_settings
from hongbao.cli.stores import open_clusters
from hongbao.cli.up import progress_step, refuse_to_pay, rehearsed_timeline, tell_embedding
from hongbao.cli.write_count import WriteCount
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import Rejected, Transient
from hongbao.domain.money import format_yuan
from hongbao.transport.launch import find_embedding

EXIT_UNPROVED = 1
EXIT_BROKEN = 3
FAR_AWAY_S = 3600.0  # until all processes are up, however slow the machine
START_IN_S = 9.0
LOAD_LEAD_S = 7.0  # users get their sessions, and are told when the first slot opens
SCREEN_PAUSE_S = 0.5
LOAD_DRAIN_S_MAX = 60.0

console = Console(stderr=True)


def demo(
    settings: Annotated[
        Path, typer.Argument(help="Settings file (YAML); its run folder is emptied first.")
    ] = Path("examples/demo.yaml"),
    seconds: Annotated[float, typer.Option(min=20, help="How long the evening takes.")] = 45.0,
    rate: Annotated[float, typer.Option(min=1, help="Shakes per second.")] = 2000.0,
    users: Annotated[int, typer.Option(min=100, help="Simulated users.")] = 6000,
    seed: Annotated[int, typer.Option(help="Repeats the load's draws.")] = 2016,
    page: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("out/report.html"),
    store_faults: Annotated[
        Path | None,
        typer.Option(help="YAML list of {slot, share, text, command}: breaks stores of yours."),
    ] = None,
) -> None:
    """Play a short New Year's Eve and break things; ends with the audit and one line of JSON.

    With --store-faults the commands of that file are run at their moments of the slots, and the
    demo fails when service is not back within 5 s of one.

    Examples:

        hongbao demo

        hongbao demo --seconds 120 --rate 3000

        hongbao demo stores.yaml --store-faults faults.yaml
    """
    chosen = read_settings(settings)
    refuse_to_pay(chosen)
    with RunDir(chosen.run_dir).supervised():
        evening = _Evening(seconds=seconds, rate=rate, users=users, seed=seed, faults=store_faults)
        line, unproved = _play(chosen, evening)
        page.parent.mkdir(parents=True, exist_ok=True)
        console.print(f"report: {write_report(chosen.run_dir / 'report', page)}")
    typer.echo(json.dumps(line))
    for problem in unproved:
        console.print(f"[red]the demo proved nothing: {problem}[/]", highlight=False)
    if line["equations"] != "hold":
        raise typer.Exit(EXIT_BROKEN)
    if unproved:
        raise typer.Exit(EXIT_UNPROVED)


@dataclass(frozen=True)
class _Evening:
    """Is how the evening is to be played."""

    seconds: float
    rate: float  # shakes per second
    users: int
    seed: int
    faults: Path | None


def _play(settings: UpSettings, evening: _Evening) -> tuple[dict[str, Any], list[str]]:
    """Play the whole evening on an emptied folder; return the audit's line and what it lacks."""
    campaign = require_campaign(settings.campaign)
    broken = read_store_faults(evening.faults, len(campaign.slots)) if evening.faults else []
    check_sockets(settings)
    asyncio.run(_check_new(settings, campaign))
    _empty(settings.run_dir)  # from here on nothing is refused that could be known before
    tell_embedding(find_embedding())
    with Progress(
        *Progress.get_default_columns()[:-1],
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        run, campaign, prepared = prepare_run(settings, progress_step(bars))
    packets = sum(plan.packets for plan in prepared.plans)
    console.print(
        f"{campaign.title}: {len(campaign.sponsors)} sponsors, {packets:,} packets in "
        f"{len(prepared.plans)} schemes, {format_yuan(campaign.budget_fen)} yuan. "
        f"Seed {evening.seed}."
    )
    folder = run.path / "report"
    folder.mkdir()

    async def play_all() -> tuple[dict[str, Any], list[str]]:
        timeline = rehearsed_timeline(campaign, evening.seconds, FAR_AWAY_S)
        async with rain(settings, run, campaign, prepared, timeline) as up:
            status, output = await hongbao("fund", "pay-in", "--all", "--run", str(run.path))
            if status:
                raise Transient(f"the sponsors could not pay in: {output}")
            await _begin(up, evening)
            told = EventLog(folder / "faults.jsonl")
            load = _Load(up, folder, evening)
            writes = WriteCount(up.stores.coordination)
            async with _shown(up, told, load), _in_background(writes.run()):
                events = [*plan_events(up, prepared), *plan_store_events(broken)]
                script = asyncio.create_task(play(up, events, told))
                load_status = await load.run()
                await script
            figures = {"coordination writes": _tell_writes(writes, load)}
            line, promises = await close_evening(
                up, prepared, folder, told, seed=evening.seed, figures=figures
            )
            return line, find_unproved(line, load_status, promises, told.failed)

    return asyncio.run(play_all())


async def _begin(up: Rain, evening: _Evening) -> None:
    """Let the first slot open soon: everything is up now."""
    up.timeline = rehearsed_timeline(up.campaign, evening.seconds, START_IN_S)
    await deploy_timeline(
        up.stores.coordination,
        up.campaign.campaign,
        up.timeline,
        rehearsal=True,
        now_ms=up.clock.wall_ms(),
    )


async def _check_new(settings: UpSettings, campaign: Campaign) -> None:
    """Raise Rejected where a store outside the folder holds a run, which a new one cannot go on."""
    async with open_clusters(settings, campaign.campaign) as (log_store, coordination):
        await check_unclaimed(settings, log_store, coordination)
    await check_no_objects(settings, campaign.campaign)


def _empty(run_dir: Path) -> None:
    """Remove what an earlier demo left, but the lock; refuse a folder that is something else."""
    found = [path for path in run_dir.iterdir() if path.name != LOCK_NAME]
    if found and run_dir / "run.json" not in found:
        raise Rejected(f"{run_dir} is not empty and holds no run", field="run_dir")
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class _Load:
    """Is the load generator, a process of its own, seen through the files that it writes."""

    def __init__(self, up: Rain, folder: Path, evening: _Evening) -> None:
        self._up = up
        self._folder = folder
        first, last = up.timeline.slots[0], up.timeline.slots[-1]
        self._wait_until_ms = first.starts_at_ms - int(LOAD_LEAD_S * 1000)
        seconds = LOAD_LEAD_S + (last.ends_at_ms - first.starts_at_ms) / 1000
        self._arguments = [
            *("--phase", f"rain:{seconds}:{evening.rate}"),
            *("--users", str(evening.users), "--seed", str(evening.seed), "--json"),
            *("--out", str(folder), "--run", str(up.run.path)),
        ]
        self._read_to = 0
        self.samples: list[dict[str, Any]] = []

    async def run(self) -> int | None:
        """Wait for the evening, shake, open all that was won; return the exit status.

        None: it did not end in time and was killed.
        """
        wait_s = (self._wait_until_ms - self._up.clock.wall_ms()) / 1000
        await asyncio.sleep(max(0.0, wait_s))
        command = [sys.executable, "-m", "hongbao.cli.main", "load", *self._arguments]
        log_path = self._up.run.logs / "load.log"
        with log_path.open("wb") as output:
            child = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        try:
            ends_ms = self._up.timeline.slots[-1].ends_at_ms
            limit_s = (ends_ms - self._up.clock.wall_ms()) / 1000 + LOAD_DRAIN_S_MAX
            async with asyncio.timeout(limit_s):
                return await child.wait()
        except TimeoutError:
            return None
        finally:
            if child.returncode is None:
                child.kill()

    def look(self) -> list[dict[str, Any]]:
        """Return all samples so far."""
        path = self._folder / "samples.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read_to)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read_to += len(line)
                    self.samples.append(json.loads(line))
        return self.samples


@contextlib.asynccontextmanager
async def _shown(up: Rain, told: EventLog, load: _Load) -> AsyncIterator[None]:
    """Keep the screen true while the evening goes on."""
    screen = Screen(up)

    async def refresh(live: Live) -> None:
        while True:
            await screen.observe(load.look())
            live.update(build_screen(screen, told.lines))
            if not console.is_terminal:
                for line in screen.new_lines(told.lines):
                    console.print(line)
            await asyncio.sleep(SCREEN_PAUSE_S)

    with Live(console=console, refresh_per_second=4, transient=console.is_terminal) as live:
        async with _in_background(refresh(live)):
            yield


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do endless work until the block ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _tell_writes(writes: WriteCount, load: _Load) -> str:
    """Say what was written to Coordination, which no shake and no open does."""
    shakes = sum(sum(sample["shakes"].values()) for sample in load.look())
    opens = sum(sample["opens"].get("OPENED", 0) for sample in load.look())
    return f"{writes.total} in {shakes:,} shakes and {opens:,} opens: {writes.describe()}"
