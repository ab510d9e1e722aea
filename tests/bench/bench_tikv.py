"""log_append_blocks_per_s and derived_puts_per_s: what one process writes to one TiKV store."""

import asyncio
import json
import subprocess
import sys

from tests.bench import tikv_writer
from tests.bench.pinned import SERVER_CORE
from tests.bench.results import Result, compare
from tests.bench.scale import Scale
from tests.servers import binaries
from tests.servers.tikv import TikvCluster

ROWS = ("log_append_blocks_per_s", "derived_puts_per_s")


async def bench_tikv(scale: Scale) -> list[Result]:
    """Write in turn by ours and by the client alone; the writer has a core, the store is free."""
    if reason := binaries.why_not():
        return [Result(row, None, "", skipped=reason) for row in ROWS]
    with TikvCluster(scale.folder / "tikv") as cluster:
        return await asyncio.to_thread(_measure, scale, cluster.pd_endpoints[0])


def _measure(scale: Scale, pd: str) -> list[Result]:
    rates: dict[str, list[float]] = {what: [] for what in ("appends", "swaps", "puts", "batches")}
    for _ in range(scale.rounds):
        for what, measured in rates.items():
            measured.append(_per_s(what, pd, scale.seconds))
    owners = f"{tikv_writer.OWNERS} owners, one TiKV store with fsync"
    size = len(tikv_writer.block_at(0, 0)[1])
    return [
        compare(
            ROWS[0],
            "blocks/s",
            rates["appends"],
            "the same client, one compare-and-swap a block",
            rates["swaps"],
            note=f"blocks of {size:,} bytes ({tikv_writer.ENTRIES} entries) by {owners}",
        ),
        compare(
            ROWS[1],
            "keys/s",
            rates["puts"],
            "the same client's own batches, in any order",
            rates["batches"],
            note=f"{tikv_writer.PUTS} keys and their marker a call, in order, by {owners}",
        ),
    ]


def _per_s(what: str, pd: str, seconds: float) -> float:
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "tests.bench.tikv_writer"]
    command += [what, pd, str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(ended.stdout)["per_s"])
