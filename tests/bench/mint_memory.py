"""Mints once in a process of its own and prints what memory that took (R41: constant).

usage: python -m tests.bench.mint_memory PACKETS FOLDER      (prints one JSON object)
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any

from hongbao.cipher.keyring import Keyring, new_keyring
from hongbao.cli.campaign_input import require_campaign
from hongbao.domain.plan import MintPlan
from hongbao.domain.script import plan_campaign
from hongbao.mint.scheme import mint_scheme

from tests.bench import budget

KIB = 1024


def peak_memory(packets: int, folder: Path) -> dict[str, Any]:
    """Mint so many packets elsewhere; return seconds and peak RSS, of parent and worst worker."""
    command = [sys.executable, "-m", "tests.bench.mint_memory", str(packets), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"minting {packets:,} packets failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


def plan_and_keys(folder: Path, packets: int) -> tuple[MintPlan, Keyring]:
    """Plan a campaign of so many packets, with keys that anybody can guess."""
    path = budget.write_campaign(folder, packets)
    (plan,) = plan_campaign(require_campaign(path), ticket_shards=4, claims_shards=4)
    key_ids = sorted({key for batch in plan.batches for key in batch.key_ids})
    numbers = iter(range(1, 1 << 30))
    keyring = new_keyring(plan.campaign, key_ids, lambda size: next(numbers).to_bytes(size, "big"))
    return plan, keyring


def main() -> None:
    packets, folder = int(sys.argv[1]), Path(sys.argv[2])
    plan, keyring = plan_and_keys(folder, packets)
    root = folder / "minted"
    root.mkdir(parents=True)
    began = perf_counter()
    mint_scheme(plan, keyring, root, workers=2)
    took_s = perf_counter() - began
    rmtree(root)
    parent, worker = (
        resource.getrusage(who).ru_maxrss / KIB
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({"seconds": took_s, "parent_mib": parent, "worker_mib": worker}))


if __name__ == "__main__":
    main()
