"""mint_packets_per_s: a whole scheme on both cores (R41)."""

import asyncio
from shutil import rmtree
from time import perf_counter

from hongbao.cipher.keyring import new_keyring
from hongbao.cli.campaign_input import require_campaign
from hongbao.domain.script import plan_campaign
from hongbao.mint.scheme import mint_scheme

from tests.bench import budget
from tests.bench.results import Result, compare
from tests.bench.scale import Scale

TARGET_PER_S = 5e6


async def bench_mint(scale: Scale) -> list[Result]:
    """Mint: split, encipher, MAC, hash, sign, all synced to disk."""
    path = budget.write_campaign(scale.folder / "mint", scale.packets)
    (plan,) = plan_campaign(require_campaign(path), ticket_shards=4, claims_shards=4)
    key_ids = sorted({key for batch in plan.batches for key in batch.key_ids})
    numbers = iter(range(1, 1 << 30))
    keyring = new_keyring(plan.campaign, key_ids, lambda size: next(numbers).to_bytes(size, "big"))
    found = []
    for number in range(scale.rounds):
        root = scale.folder / f"minted-{number}"
        root.mkdir()
        began = perf_counter()
        await asyncio.to_thread(mint_scheme, plan, keyring, root, workers=2)
        found.append(plan.packets / (perf_counter() - began))
        rmtree(root)
    note = f"{plan.packets:,} packets; start of the workers and sync of all files included"
    return [compare("mint_packets_per_s", "packets/s", found, target=TARGET_PER_S, note=note)]
