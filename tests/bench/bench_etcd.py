"""etcd_watch_to_effect_ms: a switch is written → the last of 50 watchers has it (R19)."""

import asyncio
import statistics
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from time import perf_counter

from hongbao.adapters.etcd_members import EtcdSettings
from hongbao.shards.ports import Coordination

from tests.bench.results import Result, compare
from tests.bench.scale import Scale
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stores.etcd_load import connected

TARGET_MS = 1000.0
WATCHERS = 50
PAUSE_S = 0.05
SETTLED_S_MAX = 30.0
SWITCH = "switches/shake_rate"
ROWS = {"etcd_watch_to_effect_ms": 3, "etcd_watch_to_effect_one_member_ms": 1}


async def bench_etcd(scale: Scale) -> list[Result]:
    """Watch to effect, on three members and on one."""
    if reason := binaries.why_not():
        return [Result(row, None, "ms", skipped=reason) for row in ROWS]
    return [await _row(scale, row, members) for row, members in ROWS.items()]


async def _row(scale: Scale, row: str, members: int) -> Result:
    p99, p50, writes = [], [], 0
    with EtcdCluster(scale.folder / f"etcd-{members}", members) as cluster:
        for number in range(scale.rounds):
            times_ms = await _measure(cluster.settings(f"round-{number}/"), scale.seconds)
            writes += len(times_ms) // WATCHERS
            cuts = statistics.quantiles(times_ms, n=100)
            p50.append(cuts[49])
            p99.append(cuts[98])
    return compare(
        row,
        "ms",
        p99,
        target=TARGET_MS,
        lower_is_better=True,
        note=f"p99 over {writes} writes to {WATCHERS} watchers with a connection each, in one "
        f"process of its own clock; p50 {statistics.median(p50):.1f} ms",
    )


async def _measure(settings: EtcdSettings, seconds: float) -> list[float]:
    """Return how long each watcher waited for each write, counted from before the write."""
    times_ms: list[float] = []
    written_at_s: dict[bytes, float] = {}
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(connected(settings))
        begin = await writer.put(SWITCH, b"begin")
        watching = []
        for number in range(WATCHERS):
            first = number % len(settings.endpoints)
            way = replace(
                settings, endpoints=settings.endpoints[first:] + settings.endpoints[:first]
            )
            store = await stack.enter_async_context(connected(way))
            watch = _watch(store, begin.revision, written_at_s, times_ms)
            watching.append(asyncio.create_task(watch))
        await asyncio.sleep(1.0)  # all have begun: it is not their start that is measured
        ends_s = perf_counter() + seconds
        while perf_counter() < ends_s:
            value = b"%d" % len(written_at_s)
            written_at_s[value] = perf_counter()
            await writer.put(SWITCH, value)
            await asyncio.sleep(PAUSE_S)
        await writer.put(SWITCH, b"end")
        async with asyncio.timeout(SETTLED_S_MAX):
            await asyncio.gather(*watching)
    assert len(times_ms) == WATCHERS * len(written_at_s), "a watcher missed a write"
    return times_ms


async def _watch(
    store: Coordination, after: int, written_at_s: dict[bytes, float], times_ms: list[float]
) -> None:
    async with aclosing(store.watch("switches/", after_revision=after)) as changes:
        async for change in changes:
            if change.value == b"end":
                return
            times_ms.append((perf_counter() - written_at_s[change.value]) * 1000)
