"""`python -m tests.bench`: measures ours beside peers, writes out/bench.json, shows a table.

Ours and a peer alternate in the same run on the same core, the generator has the other one;
figures are medians of the rounds. A miss is reported as a miss.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from tests.bench.bench_etcd import ROWS as ETCD_ROWS
from tests.bench.bench_etcd import bench_etcd
from tests.bench.bench_failover import ROW as FAILOVER_ROW
from tests.bench.bench_failover import bench_failover
from tests.bench.bench_mint import bench_mint
from tests.bench.bench_open import bench_open
from tests.bench.bench_open_tikv import ROWS as OPEN_TIKV_ROWS
from tests.bench.bench_open_tikv import bench_open_tikv
from tests.bench.bench_shake import bench_shake
from tests.bench.bench_tikv import ROWS as TIKV_ROWS
from tests.bench.bench_tikv import bench_tikv
from tests.bench.results import Result, describe_machine, show_results, write_results
from tests.bench.scale import Bench, Scale

BENCHES: dict[str, tuple[Bench, tuple[str, ...]]] = {
    "mint": (bench_mint, ("mint_packets_per_s",)),
    "shake": (
        bench_shake,
        ("shake_grpc_per_core", "shake_json_per_core", "access_private_mib", "overload_goodput"),
    ),
    "open": (bench_open, ("open_durable_per_core", "credit_p99_s")),
    "tikv": (bench_tikv, TIKV_ROWS),
    "open_tikv": (bench_open_tikv, OPEN_TIKV_ROWS),
    "failover": (bench_failover, (FAILOVER_ROW,)),
    "etcd": (bench_etcd, tuple(ETCD_ROWS)),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = [*BENCHES, *(row for _, rows in BENCHES.values() for row in rows)]
    parser.add_argument("--only", choices=names, help="one bench, or the bench of one row")
    parser.add_argument("--quick", action="store_true", help="one short round: shows it works")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    return parser.parse_args()


def chosen(only: str | None) -> list[str]:
    return [name for name, (_, rows) in BENCHES.items() if only in (None, name, *rows)]


async def measure(names: list[str], scale: Scale) -> list[Result]:
    """Run the benches one after the other; one that breaks is told as skipped, with why."""
    results: list[Result] = []
    for name in names:
        bench, rows = BENCHES[name]
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            results += await bench(scale)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            results += [Result(row, None, "", skipped=reason[:400]) for row in rows]
    return results


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="hongbao-bench-", dir=os.environ.get("TMPDIR")) as path:
        folder = Path(path)
        machine = describe_machine(folder)
        if arguments.quick:
            scale = Scale(rounds=1, seconds=2.0, packets=4_000_000, folder=folder)
        else:
            scale = Scale(rounds=3, seconds=4.0, packets=10_000_000, folder=folder)
        results = asyncio.run(measure(chosen(arguments.only), scale))
    write_results(arguments.out, machine, results)
    show_results(machine, results)
    return 1 if any(result.skipped and result.value is None for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
