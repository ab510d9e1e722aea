"""Plays short evenings on real processes and tells what happened, for the fault tests.

A story breaks things beside the load; every choice that it makes is drawn from the seed. What is
left afterwards (promises to clients, log, ledger, audit) is read by nobody but the checkers.
"""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from hongbao.api.switches import Setting, find_switch
from hongbao.cli.audit import audit_run
from hongbao.cli.documents import plan_timeline
from hongbao.cli.prepare import Prepared, issuer_key
from hongbao.cli.rain import Rain, prepare_run, rain
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import open_stores
from hongbao.cli.switch_state import write_setting
from hongbao.client.acknowledged import AcknowledgedOpen, read_acknowledged
from hongbao.client.draws import Draw, seeded_draw
from hongbao.client.identity import TestIdentity
from hongbao.client.load import LoadRun
from hongbao.client.plan import LoadPlan, Phase
from hongbao.client.stats import Totals
from hongbao.domain.claim import Claim, logged_claims, parse_claim
from hongbao.domain.timeline import Timeline
from hongbao.shards.block import decode_block, position_of

CAMPAIGN = "stormy"
ROOT = Path(__file__).parents[2]
START_IN_S = 1.0
CATCH_UP_S_MAX = 60.0
TRANSFER_FEN = 250  # mean amount of a packet

_CLOCK_IN_S = 4  # of a slot, on the campaign's own day: only the proportions matter


@dataclass(frozen=True)
class Plot:
    """Is an evening before anything breaks."""

    seed: int
    seconds: float = 12.0
    slots: int = 2
    packets_a_slot: int = 24_000
    rate: float = 500.0
    users: int = 900
    claims_shards: int = 4
    ticket_shards: int = 4
    lease_ttl_s: float = 1.0
    webhook_url: str | None = None
    refund: bool = False
    """Closes the evening and returns what nobody claimed, before the audit."""
    drain_s: float = 60.0
    """At most: what is answered sooner is not waited for."""
    environ: Callable[[ProcessSpec], Mapping[str, str]] | None = None
    stores: Mapping[str, Any] = field(default_factory=dict)
    """Settings of stores other than the embedded ones: tikv, etcd, objects_url, ledger_url."""
    spoil: Callable[[RunDir, Prepared], None] | None = None
    """Breaks files after they were minted and verified."""


@dataclass
class Notes:
    """Is what a story writes down while it goes on; wall times in ms."""

    kills: list[tuple[int, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Transfer:
    """Is a row of the ledger."""

    serial: int
    user: int
    amount_fen: int
    credited: bool


@dataclass(frozen=True)
class Evening:
    """Is what an evening left behind."""

    plot: Plot
    run: RunDir
    prepared: Prepared
    timeline: Timeline
    notes: Notes
    load: Totals
    acknowledged: list[AcknowledgedOpen]
    claims: list[Claim]
    transfers: list[Transfer]
    audit: dict[str, Any]
    deaths: list[tuple[str, int]]

    def log_of(self, process: str) -> list[dict[str, Any]]:
        """Return the JSON lines that a process logged."""
        lines = (self.run.logs / f"{process}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


Story = Callable[["Stage"], Awaitable[None]]


@dataclass
class Stage:
    """Is what a story acts on."""

    up: Rain
    prepared: Prepared
    plot: Plot
    draw: Draw
    notes: Notes
    until_drained: contextlib.AsyncExitStack
    """What a story enters here lasts until no process takes calls or writes claims any more."""

    async def at(self, slot: int, share: float) -> None:
        """Wait until a share of a slot (from 0) has passed."""
        timed = self.up.timeline.slots[slot]
        at_ms = timed.starts_at_ms + int((timed.ends_at_ms - timed.starts_at_ms) * share)
        await asyncio.sleep(max(0.0, (at_ms - self.up.clock.wall_ms()) / 1000))

    def kill(self, process: str) -> None:
        self.notes.kills.append((self.up.clock.wall_ms(), process))
        self.up.supervisor.kill(process)

    async def owners(self) -> dict[int, tuple[str, int]]:
        """Return the owner of each claims shard, and the revision that made it so."""
        leases = await self.up.stores.coordination.read_prefix("lease/claims/")
        return {
            int(one.key.rpartition("/")[2]): (json.loads(one.value)["process"], one.revision)
            for one in leases
            if one.value
        }


@contextmanager
def short_folder() -> Iterator[Path]:
    """Give a folder whose name leaves room for Unix sockets (108 bytes); kept after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="hbrain-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def play_evening(folder: Path, plot: Plot, story: Story) -> Evening:
    """Play an evening from preparation to audit; blocks until it is over."""
    settings = UpSettings.model_validate(
        {
            "campaign": write_campaign(folder / "campaign", plot),
            "run_dir": folder / "run",
            "zones": ("a", "b"),
            "claims_shards": plot.claims_shards,
            "ticket_shards": plot.ticket_shards,
            "lease_ttl_s": plot.lease_ttl_s,
            "webhook_url": plot.webhook_url,
            **plot.stores,
        }
    )
    run, campaign, prepared = prepare_run(settings, lambda what, done, whole: None)
    if plot.spoil:
        plot.spoil(run, prepared)
    return asyncio.run(_play(settings, run, campaign, prepared, plot, story))


async def _play(
    settings: UpSettings, run: RunDir, campaign: Any, prepared: Prepared, plot: Plot, story: Story
) -> Evening:
    promises = run.path / "acknowledged.jsonl"
    far_away = Timeline(campaign.slots).rehearsed(1 << 42, int(plot.seconds * 1000))
    async with rain(settings, run, campaign, prepared, far_away, plot.environ) as up:
        await hongbao("fund", "pay-in", "--all", "--run", str(run.path))
        await _begin(up, plot)
        async with contextlib.AsyncExitStack() as until_drained:
            stage = Stage(up, prepared, plot, seeded_draw(plot.seed), Notes(), until_drained)
            load = _load(up, plot, promises)
            async with asyncio.TaskGroup() as group:
                group.create_task(story(stage))
                running = group.create_task(load.run())
            for role in ("access", "redeem"):
                await up.supervisor.drain(up.of(role=role))
        await _catch_up(up)
        if plot.refund:
            await hongbao("fund", "refund", "--grace-s", "0", "--run", str(run.path))
    acknowledged = list(read_acknowledged(promises))
    report = await audit_run(run.path, [one.packet for one in acknowledged])
    return Evening(
        plot=plot,
        run=run,
        prepared=prepared,
        timeline=up.timeline,
        notes=stage.notes,
        load=running.result().total,
        acknowledged=acknowledged,
        claims=await read_claims(run),
        transfers=read_transfers(run),
        audit=report.document(),
        deaths=list(up.supervisor.deaths),
    )


async def _begin(up: Rain, plot: Plot) -> None:
    """Let the first slot open in a moment: only now, so that a slow start costs no packets."""
    start_ms = up.clock.wall_ms() + int(START_IN_S * 1000)
    up.timeline = up.timeline.rehearsed(start_ms, int(plot.seconds * 1000))
    for name, value in (("open_delay_ms_max", 200), ("backoff_ms_max", 500)):
        setting = Setting(value, by="test", why="short evening", set_at_ms=start_ms)
        await write_setting(up.stores.coordination, find_switch(name), setting)
    document = plan_timeline(b"", up.timeline, rehearsal=True, now_ms=start_ms)
    assert document is not None
    await up.stores.coordination.put(f"campaigns/{CAMPAIGN}/timeline", document)


def _load(up: Rain, plot: Plot, promises: Path) -> LoadRun:
    identity = TestIdentity.from_pem(issuer_key(up.run).read_bytes())
    now_s = up.clock.wall_ms() // 1000
    plan = LoadPlan(
        campaign=up.campaign.campaign,
        gateways=up.gateways(),
        phases=[Phase("rain", START_IN_S + plot.seconds, plot.rate, plot.rate)],
        users=plot.users,
        rude_share=0.7,
        connections=2,
        open_timeout_s=3.0,
        drain_s=plot.drain_s,
        acknowledged=promises,
        seed=plot.seed,
    )
    return LoadRun(
        plan,
        lambda sample: None,
        jwt_of=lambda user: identity.jwt_of(user, CAMPAIGN, now_s),
        wall_ms=up.clock.wall_ms,
    )


async def _catch_up(up: Rain) -> None:
    """Wait until every claim of the log is in the ledger, for good or in quarantine."""
    give_up_s = up.clock.monotonic_s() + CATCH_UP_S_MAX
    while True:
        pairs = await up.stores.log_store.scan(b"log/claims/", b"log/claims0", 1 << 20)
        claims = sum(
            len(decode_block(data, position=position_of(key)).entries) for key, data in pairs
        )
        settled = len([one for one in read_transfers(up.run) if one.credited])
        if settled + count_quarantined(up.run) >= claims:
            return
        if up.clock.monotonic_s() > give_up_s:
            raise AssertionError(f"{settled} of {claims} claims credited: see {up.run.logs}")
        await asyncio.sleep(0.1)


async def read_claims(run: RunDir) -> list[Claim]:
    """Return every claim of a run that has stopped, from the log itself."""
    async with open_stores(run.path) as opened:
        pairs = await opened.log_store.scan(b"log/claims/", b"log/claims0", 1 << 20)
    return [
        parse_claim(entry)
        for key, data in pairs
        for entry in logged_claims(decode_block(data, position=position_of(key)).entries)
    ]


def read_transfers(run: RunDir) -> list[Transfer]:
    """Return the transfers of the ledger, by SQL of our own."""
    rows = query(run, "SELECT serial, user_id, amount_fen, state FROM transfers")
    return [Transfer(serial, user, fen, state == 1) for serial, user, fen, state in rows]


def count_quarantined(run: RunDir) -> int:
    return int(query(run, "SELECT count(*) FROM quarantine")[0][0])


def query(run: RunDir, sql: str) -> list[tuple[Any, ...]]:
    """Ask the run's ledger, by a driver alone."""
    url = run.ledger_url(run.read_specs()[0])
    if url.startswith("postgresql"):
        with psycopg.connect(url) as connection:
            return connection.execute(sql).fetchall()
    with contextlib.closing(sqlite3.connect(run.path / "ledger.db", timeout=30)) as file:
        return file.execute(sql).fetchall()


async def hongbao(*arguments: str, expect: int | None = 0) -> str:
    """Run a `hongbao` command as an operator would; return what it printed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hongbao.cli.main",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
    assert expect in (None, child.returncode), f"hongbao {arguments}: {output.decode()}"
    return output.decode()


def write_campaign(folder: Path, plot: Plot) -> Path:
    """Write the files of a campaign of two sponsors; return its YAML."""
    folder.mkdir(parents=True)
    count = plot.packets_a_slot // 4
    rows = ["sponsor,slot,kind,count,total_yuan,min_yuan,max_yuan,curve,resource"]
    yuan = count * TRANSFER_FEN // 100
    for sponsor in ("apple", "berry"):
        for slot in range(1, plot.slots + 1):
            for kind, curve in (("image", "lucky"), ("video", "uniform")):
                resource = f"{kind}/{sponsor}.bin"
                cells = (sponsor, slot, kind, count, f"{yuan}.00", "0.01", "20.00", curve, resource)
                rows.append(",".join(map(str, cells)))
    deposit = yuan * 2 * plot.slots
    sponsors = ["sponsor,name,deposit_yuan,exposure_weight"]
    sponsors += [f"{one},{one.title()},{deposit}.00,50" for one in ("apple", "berry")]
    slots = [
        f"  - {{slot: {slot}, name: Slot {slot}, "
        f'starts_at: "2027-02-05T20:{slot * 10:02}:00+08:00", '
        f'ends_at: "2027-02-05T20:{slot * 10 + 9:02}:00+08:00"}}'
        for slot in range(1, plot.slots + 1)
    ]
    lines = [
        f"campaign: {CAMPAIGN}",
        "title: Stormy evening",
        f'budget_yuan: "{deposit * 2}.00"',
        'key_cap_yuan: "20000.00"',
        "per_user_packets: 200",
        "sponsors: sponsors.csv",
        "active_scheme: main",
        "schemes:",
        "  - {scheme: main, title: Main, script: script.csv}",
        "slots:",
        *slots,
    ]
    (folder / "script.csv").write_text("\n".join(rows) + "\n")
    (folder / "sponsors.csv").write_text("\n".join(sponsors) + "\n")
    (folder / "campaign.yaml").write_text("\n".join(lines) + "\n")
    return folder / "campaign.yaml"
