"""Owns what the terminal shows while the demo plays; refuses to change anything."""

import asyncio
from collections import Counter
from typing import Any

import sqlalchemy as sa
from rich.console import Group
from rich.panel import Panel
from rich.table import Table

from hongbao.adapters import sql
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.cli.rain import Rain
from hongbao.domain.errors import Transient
from hongbao.domain.money import format_yuan
from hongbao.settle.run import log_lag

LINES_SHOWN = 12
RATE_SAMPLES = 4
LEDGER_EVERY_S = 1.0


class Screen:
    """Gathers what is shown: the load's samples, the ledger, the queue's lag."""

    def __init__(self, up: Rain) -> None:
        self.up = up
        self.samples: list[dict[str, Any]] = []
        self.totals: Counter[str] = Counter()
        self.credited = (0, 0)  # claims, fen
        self.lag_blocks = 0
        self._counted = 0
        self._told = 0
        self._last_line_s = 0.0
        self._ledger_at_s = 0.0
        self._engine = sql.open_engine(up.run.ledger_url(up.settings))

    async def observe(self, samples: list[dict[str, Any]]) -> None:
        """Take new samples; look at the ledger once a second."""
        self.samples = samples
        for sample in samples[self._counted :]:
            self.totals["issued"] += sample["shakes"].get("PACKET", 0)
            self.totals["opened"] += sample["opens"].get("OPENED", 0)
            self.totals["opened_fen"] += sample["opened_fen"]
            self.totals["shed"] += sample["shed"]
            self.totals["shakes"] += sum(sample["shakes"].values())
        self._counted = len(samples)
        now_s = self.up.clock.monotonic_s()
        if now_s - self._ledger_at_s >= LEDGER_EVERY_S:
            self._ledger_at_s = now_s
            try:
                self.credited = await asyncio.to_thread(self._read_credited)
                self.lag_blocks = await self._read_lag()
            except (Transient, sa.exc.SQLAlchemyError):
                return  # the ledger is not there yet, or busy: the last figures stand

    def rate(self, name: str, field: str) -> float:
        """Return a count per second over the last samples."""
        recent = self.samples[-RATE_SAMPLES:]
        seconds = sum(sample["interval_s"] for sample in recent) or 1.0
        if field == "shakes" and not name:
            return float(sum(sum(sample["shakes"].values()) for sample in recent) / seconds)
        return float(sum(sample[field].get(name, 0) for sample in recent) / seconds)

    def new_lines(self, told: list[str]) -> list[str]:
        """Return what a log without a terminal should get: events, and figures now and then."""
        lines = [f"· {text}" for text in told[self._told :]]
        self._told = len(told)
        now_s = self.up.clock.monotonic_s()
        if now_s - self._last_line_s >= 5.0 and self.samples:
            self._last_line_s = now_s
            lines.append(self.summary())
        return lines

    def summary(self) -> str:
        """Return one line of figures."""
        totals = self.totals
        return (
            f"{_slot_text(self.up)}: {self.rate('', 'shakes'):,.0f} shakes/s, "
            f"{totals['issued']:,} issued, {totals['opened']:,} opened "
            f"({format_yuan(totals['opened_fen'])} yuan), "
            f"{format_yuan(self.credited[1])} credited, lag {self.lag_blocks} blocks, "
            f"shed {totals['shed']:,}"
        )

    def _read_credited(self) -> tuple[int, int]:
        query = sa.text(
            "SELECT count(*), coalesce(sum(amount_fen), 0) FROM transfers WHERE state = 1"
        )
        with sql.reading(self._engine) as connection:
            count, fen = connection.execute(query).one()
            return int(count), int(fen)

    async def _read_lag(self) -> int:
        ledger, lag = SqlLedger(self._engine), 0
        for shard in range(self.up.settings.claims_shards):
            position = await asyncio.to_thread(ledger.position, shard)
            lag += await log_lag(self.up.stores.log_store, shard, position)
        return lag


def build_screen(screen: Screen, told: list[str]) -> Panel:
    """Build the whole screen."""
    latest = screen.samples[-1] if screen.samples else None
    rates = Table("", "per second", "so far", "p50 ms", "p99 ms", box=None, padding=(0, 2))
    for column in rates.columns[1:]:
        column.justify = "right"
    totals = screen.totals
    shake, opened = (latest["shake_latency"], latest["open_latency"]) if latest else ({}, {})
    rates.add_row(
        "shakes", f"{screen.rate('', 'shakes'):,.0f}", f"{totals['shakes']:,}", *_ms(shake)
    )
    rates.add_row("issued", f"{screen.rate('PACKET', 'shakes'):,.0f}", f"{totals['issued']:,}")
    rates.add_row(
        "opened", f"{screen.rate('OPENED', 'opens'):,.0f}", f"{totals['opened']:,}", *_ms(opened)
    )
    rates.add_row("credited", "", f"{screen.credited[0]:,}")
    rates.add_row("shed", "", f"{totals['shed']:,}")
    money = Table("yuan", "", box=None, padding=(0, 2))
    money.columns[1].justify = "right"
    money.add_row("opened", format_yuan(totals["opened_fen"]))
    money.add_row("credited", format_yuan(screen.credited[1]))
    money.add_row("queue lag, blocks", str(screen.lag_blocks))
    events = "\n".join(f"· {text}" for text in told[-LINES_SHOWN:])
    return Panel(Group(rates, "", money, "", events), title=_slot_text(screen.up))


def _slot_text(up: Rain) -> str:
    now_ms = up.clock.wall_ms()
    if slot := up.timeline.slot_at(now_ms):
        left_s = (slot.ends_at_ms - now_ms) / 1000
        return f"slot {slot.slot} {slot.name}, {left_s:.0f} s left"
    if slot := up.timeline.next_slot(now_ms):
        return f"slot {slot.slot} {slot.name} in {(slot.starts_at_ms - now_ms) / 1000:.0f} s"
    return "the evening is over"


def _ms(latency: dict[str, Any]) -> tuple[str, str]:
    if not latency:
        return "", ""
    return f"{latency['p50_ms']:.1f}", f"{latency['p99_ms']:.1f}"
