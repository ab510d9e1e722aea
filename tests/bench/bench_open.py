"""open_durable_per_core and credit_p99_s."""

import asyncio
from collections import Counter
from contextlib import ExitStack
from functools import partial
from time import monotonic

from tests.bench import peers
from tests.bench.drive import Drive, drive
from tests.bench.results import Result, compare
from tests.bench.scale import Run, Scale, describe, describe_cost, rates, try_peer
from tests.bench.servers import ACCESS, REDEEM, SETTLE, STORE, Servers, servers

PATH = "/hongbao.v1.Redeem/Open"
TARGET_PER_S, TARGET_RATIO = 10e3, 4.0
CREDIT_P99_S = 5.0
OPENS_PER_S_MOST = 25_000
IN_FLIGHT = 256
CONNECTIONS = 8  # of 32 calls at most
CREDIT_WAIT_S_MAX = 60.0


async def bench_open(scale: Scale) -> list[Result]:
    """Open by distinct tokens: redeem and store on the server core, fsync on."""
    opens = int((scale.seconds + 1) * OPENS_PER_S_MOST)
    packets = max(1_000_000, opens * (2 * scale.rounds + 1))
    async with servers(scale.folder / "opens", packets) as ours:
        ours.put_on_server_core(REDEEM, STORE)
        with ExitStack() as stack:
            grab = partial(peers.redis_grab, scale.folder, opens * scale.rounds)
            peer, skipped = await asyncio.to_thread(try_peer, stack, grab)
            mine: list[Run] = []
            theirs: list[Run] = []
            cost_s = Counter[str]()
            for _ in range(scale.rounds):
                file = str(await ours.open_file(opens))
                with ours.costing(cost_s, REDEEM, STORE):
                    mine.append(await _drive(ours.port(REDEEM), file, scale))
                if peer is not None:
                    theirs.append(await _drive(peer[0], file, scale))
        row = compare(
            "open_durable_per_core",
            "opens/s",
            rates(mine),
            "Redis AOF always, Lua grab, grpcio aio",
            rates(theirs),
            target=TARGET_PER_S,
            target_ratio=TARGET_RATIO,
            note="; ".join(filter(None, [describe(mine), describe_cost(mine, cost_s), skipped])),
        )
        return [row, await _through_gateway(scale, ours, opens), await _credit_row(ours)]


async def _drive(port: int, file: str, scale: Scale) -> Run:
    plan = Drive(
        port, PATH, file, scale.seconds, in_flight=IN_FLIGHT, repeat=False, connections=CONNECTIONS
    )
    return await asyncio.to_thread(drive, plan)


async def _through_gateway(scale: Scale, ours: Servers, opens: int) -> Result:
    """Show what is left when the gateway shares the core too."""
    ours.put_on_server_core(ACCESS, REDEEM, STORE)
    runs = []
    for _ in range(scale.rounds):
        file = str(await ours.open_file(opens))
        runs.append(await _drive(ours.port(ACCESS), file, scale))
    note = f"gateway, redeem and store on one core; {describe(runs)}"
    return compare("open_through_gateway_per_core", "opens/s", rates(runs), note=note)


async def _credit_row(ours: Servers) -> Result:
    """Wait until all that was opened is credited; settle shared the core of the generator."""
    give_up, before = monotonic() + CREDIT_WAIT_S_MAX, -1
    while monotonic() < give_up:
        credited, p99_s = await asyncio.to_thread(ours.credited)
        if credited == before and credited:
            break
        before = credited
        await asyncio.sleep(1.0)
    opened = await asyncio.to_thread(ours.opened)
    note = f"{credited:,} of {opened:,} opened claims credited; {SETTLE} on the generator's core"
    value = [p99_s] if p99_s is not None else [float("inf")]
    return compare("credit_p99_s", "s", value, target=CREDIT_P99_S, lower_is_better=True, note=note)
