"""mint_packets_per_s and mint_peak_rss: a whole scheme on both cores (R41)."""

import asyncio
from shutil import rmtree
from time import perf_counter

from hongbao.mint.scheme import mint_scheme

from tests.bench.mint_memory import peak_memory, plan_and_keys
from tests.bench.results import Result, compare
from tests.bench.scale import Scale

TARGET_PER_S = 5e6
SMALL, LARGE = 1_000_000, 50_000_000
QUICK_ROUNDS = 1


async def bench_mint(scale: Scale) -> list[Result]:
    """Mint: split, encipher, MAC, hash, sign, all synced to disk; then weigh it."""
    plan, keyring = plan_and_keys(scale.folder / "mint", scale.packets)
    found = []
    for number in range(scale.rounds):
        root = scale.folder / f"minted-{number}"
        root.mkdir()
        began = perf_counter()
        await asyncio.to_thread(mint_scheme, plan, keyring, root, workers=2)
        found.append(plan.packets / (perf_counter() - began))
        rmtree(root)
    note = f"{plan.packets:,} packets; start of the workers and sync of all files included"
    rate = compare("mint_packets_per_s", "packets/s", found, target=TARGET_PER_S, note=note)
    sizes = (SMALL, scale.packets if scale.rounds == QUICK_ROUNDS else LARGE)
    return [rate, *[await asyncio.to_thread(_memory_row, scale, size) for size in sizes]]


def _memory_row(scale: Scale, packets: int) -> Result:
    folder = scale.folder / f"mint-{packets}"
    found = peak_memory(packets, folder)
    rmtree(folder, ignore_errors=True)
    return compare(
        f"mint_peak_rss_{packets // 1_000_000}m",
        "MiB",
        [max(found["parent_mib"], found["worker_mib"])],
        lower_is_better=True,
        note=f"the largest process; parent {found['parent_mib']:.0f} MiB, worst of 2 workers "
        f"{found['worker_mib']:.0f} MiB, {packets / found['seconds']:,.0f} packets/s",
    )
