"""open_durable_tikv_per_core, and what opens cost etcd."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from typing import Any

from hongbao.cli.write_count import WriteCount

from tests.bench import peers
from tests.bench.bench_open import OPENS_PER_S_MOST, PATH
from tests.bench.drive import Drive, drive
from tests.bench.pinned import SERVER_CORE
from tests.bench.results import Result, compare
from tests.bench.scale import Run, Scale, describe, describe_cost, rates
from tests.bench.servers import REDEEM, servers
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import TikvCluster

ROWS = (
    "open_durable_tikv_per_core",
    "open_durable_tikv_service",
    "etcd_writes_per_million_opens",
)
TARGET_PER_S = 8e3
IN_FLIGHT, CONNECTIONS = 512, 16
"""Twice as many callers as of the embedded store: an append takes longer here."""
MILLION = 1e6


async def bench_open_tikv(scale: Scale) -> list[Result]:
    """Open by distinct tokens: redeem on the server core, the stores beside the generator."""
    if reason := binaries.why_not():
        return [Result(row, None, "", skipped=reason) for row in ROWS]
    opens = int((scale.seconds + 1) * OPENS_PER_S_MOST)
    packets = max(1_000_000, opens * (scale.rounds + 1))
    folder = scale.folder / "opens-tikv"
    with TikvCluster(folder / "tikv") as tikv, EtcdCluster(folder / "etcd") as etcd:
        stores = {"tikv": {"pd": tikv.pd_endpoints}, "etcd": {"endpoints": etcd.endpoints}}
        pd = tikv.pd_endpoints[0]
        async with servers(folder, packets, stores=stores) as ours:
            ours.put_on_server_core(REDEEM)
            await ours.open_only()
            writes = WriteCount(ours.live.stores.coordination)
            counting = asyncio.create_task(writes.run())
            mine: list[Run] = []
            swaps: list[float] = []
            services: list[Run] = []
            cost_s = Counter[str]()
            with peers.cas_service(folder, pd) as port:
                for _ in range(scale.rounds):
                    file = str(await ours.open_file(opens))
                    with ours.costing(cost_s, REDEEM):
                        mine.append(await _drive(ours.port(REDEEM), file, scale))
                    swaps.append(await asyncio.to_thread(_swap, pd, scale.seconds))
                    services.append(await _drive(port, file, scale))
            opened = await asyncio.to_thread(ours.opened)
            counting.cancel()
    return [
        compare(
            ROWS[0],
            "opens/s",
            rates(mine),
            "one compare-and-swap a claim, bare client",
            swaps,
            target=TARGET_PER_S,
            note=f"one TiKV store with fsync, beside the generator; {describe(mine)}; "
            f"{describe_cost(mine, cost_s)}",
        ),
        compare(
            ROWS[1],
            "opens/s",
            rates(mine),
            "one compare-and-swap a claim, behind grpcio aio",
            rates(services),
            note=f"the same rounds as {ROWS[0]}; the peer: {describe(services)}",
        ),
        _writes_row(writes, opened),
    ]


def _writes_row(writes: WriteCount, opened: int) -> Result:
    """Tell what was written to etcd meanwhile: it follows the clock, not the opens."""
    per_million = writes.total / max(opened, 1) * MILLION
    note = f"by redeem; {opened:,} opens, {writes.total} writes: {writes.describe()}"
    return compare(ROWS[2], "writes", [per_million], lower_is_better=True, note=note)


async def _drive(port: int, file: str, scale: Scale) -> Run:
    plan = Drive(
        port,
        PATH,
        file,
        scale.seconds,
        in_flight=IN_FLIGHT,
        repeat=False,
        connections=CONNECTIONS,
    )
    return await asyncio.to_thread(drive, plan)


def _swap(pd: str, seconds: float) -> float:
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "tests.bench.peer_cas"]
    command += ["loop", pd, str(seconds), str(IN_FLIGHT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(ended.stdout)
    return float(answer["per_s"])
