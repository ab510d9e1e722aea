"""Owns what `hongbao up` shows: processes, their deaths, calls a second, sponsors who owe."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping

import httpx
from rich.table import Table

from hongbao.adapters import sql
from hongbao.adapters.sql_fund import SqlFund
from hongbao.cli.rain import Rain
from hongbao.cli.run_dir import ProcessSpec
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import HongbaoError
from hongbao.settle.fund import Pool

CALLS = {"access": "/hongbao.v1.Access/Shake", "redeem": "/hongbao.v1.Redeem/Open"}
SCRAPE_EVERY_S = 1.0
SCRAPE_TIMEOUT_S = 0.5


class Rates:
    """Turns the counters that processes show into calls per second."""

    def __init__(self) -> None:
        self.per_s: dict[str, float] = {}
        self._last: dict[str, tuple[float, float]] = {}  # process → moment, calls

    def observe(self, process: str, calls: float | None, now_s: float) -> None:
        """Take a counter's value; None, or one that fell, begins anew: the process is another."""
        before = self._last.pop(process, None)
        self.per_s.pop(process, None)
        if calls is None:
            return
        self._last[process] = (now_s, calls)
        if before is not None and calls >= before[1] and now_s > before[0]:
            self.per_s[process] = (calls - before[1]) / (now_s - before[0])

    async def follow(self, up: Rain) -> None:
        """Look at every process's own metrics once a second, for ever."""
        served = [spec for spec in up.specs if spec.role in CALLS]
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as client:
            while True:
                for spec in served:
                    self.observe(spec.process, await _scrape(client, spec), up.clock.monotonic_s())
                await asyncio.sleep(SCRAPE_EVERY_S)


async def _scrape(client: httpx.AsyncClient, spec: ProcessSpec) -> float | None:
    try:
        answer = await client.get(f"http://127.0.0.1:{spec.ports['metrics']}/metrics")
    except httpx.HTTPError:
        return None
    return count_calls(answer.text, CALLS[spec.role])


def count_calls(metrics: str, method: str) -> float:
    """Return how often a method was called, whatever came of it, from Prometheus text."""
    found = (
        line.rpartition(" ")[2]
        for line in metrics.splitlines()
        if line.startswith("hongbao_calls_total{") and f'method="{method}"' in line
    )
    return sum(map(float, found))


def build_screen(
    specs: Iterable[ProcessSpec],
    pids: Mapping[str, int | None],
    deaths: Iterable[tuple[str, int]],
    rates: Mapping[str, float],
    caption: str,
) -> Table:
    """Build the table of processes."""
    died = Counter(process for process, _ in deaths)
    table = Table("process", "zone", "pid", "port", "deaths", "calls/s", caption=caption)
    for column in table.columns[2:]:
        column.justify = "right"
    for spec in specs:
        rate = rates.get(spec.process)
        table.add_row(
            spec.process,
            spec.zone,
            str(pids[spec.process] or "down"),
            str(spec.ports.get("public", "")),
            str(died[spec.process] or ""),
            "" if rate is None else f"{rate:,.0f}",
        )
    return table


def find_owing(campaign: Campaign, pools: Iterable[Pool]) -> list[str]:
    """Return the sponsors whose deposit is not paid in."""
    paid = {pool.sponsor: pool.paid_in_fen for pool in pools}
    return [one.sponsor for one in campaign.sponsors if paid.get(one.index, 0) < one.deposit_fen]


async def tell_owing(up: Rain) -> str:
    """Return a line about sponsors who owe, empty when none does or the ledger is away."""
    engine = sql.open_engine(up.run.ledger_url(up.settings))
    try:
        pools = await asyncio.to_thread(SqlFund(engine).pools)
    except HongbaoError:
        return ""
    finally:
        engine.dispose()
    owing = find_owing(up.campaign, pools)
    return f"not paid in yet: {', '.join(owing)} (hongbao fund pay-in)" if owing else ""
