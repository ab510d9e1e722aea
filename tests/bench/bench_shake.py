"""shake_grpc_per_core, shake_json_per_core, access_private_mib, overload_goodput (and rude)."""

import asyncio
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

from hongbao.cli.write_count import WriteCount

from tests.bench import peers
from tests.bench.drive import Drive, drive
from tests.bench.phones import Crowd, crowd
from tests.bench.pinned import private_mib
from tests.bench.results import Result, compare
from tests.bench.scale import Run, Scale, describe, describe_cost, rates, try_peer
from tests.bench.servers import ACCESS, Servers, servers

PATH = "/hongbao.v1.Access/Shake"
TARGET_PER_S, TARGET_RATIO = 20e3, 5.0
PRIVATE_MIB, GOODPUT = 200.0, 0.9
PEER_PACE_PER_S = 10_000
OVERLOAD = 5
OVERLOAD_CONNECTIONS = 64
GRPCIO = "same handler on grpcio aio"


async def bench_shake(scale: Scale) -> list[Result]:
    """Shake by gRPC and JSON, beside the same handler on grpcio and a fixed answer of nginx."""
    async with (
        servers(scale.folder / "ours", scale.packets) as ours,
        servers(
            scale.folder / "peer",
            scale.packets // 5,
            campaign="bench-peer",
            pace_per_s=PEER_PACE_PER_S,
        ) as other,
        other.grpcio_instead() as (peer_port, _),
    ):
        for each in (ours, other):
            await each.shake_only()
        ours.put_on_server_core(ACCESS)
        other.put_on_server_core()
        writes = WriteCount(ours.live.stores.coordination)
        counting = asyncio.create_task(writes.run())
        rows = await asyncio.to_thread(_measure, scale, ours, other, peer_port)
        counting.cancel()
        return [
            *_rows(*rows),
            _writes_row(writes, [*rows[0], *rows[2]]),
            _memory_row(ours, scale),
            *await asyncio.to_thread(_overload_rows, scale, ours),
        ]


Rounds = tuple[list[Run], list[Run], list[Run], list[Run], str, str]


def _measure(scale: Scale, ours: Servers, other: Servers, peer_port: int) -> Rounds:
    """Measure all sides in turn, round by round."""
    shakes, others, bodies = ours.shake_file(), other.shake_file(), ours.json_shake_file()
    url, port = f"/v1/campaigns/{ours.campaign}:shake", ours.port(ACCESS)
    grpc: list[Run] = []
    json: list[Run] = []
    peer: list[Run] = []
    limit: list[Run] = []
    cost_s = Counter[str]()
    with ExitStack() as stack:
        nginx_port, skipped = try_peer(stack, lambda: peers.nginx(scale.folder))
        for _ in range(scale.rounds):
            with ours.costing(cost_s, ACCESS):
                grpc.append(drive(Drive(port, PATH, str(shakes), scale.seconds)))
            peer.append(drive(Drive(peer_port, PATH, str(others), scale.seconds)))
            json.append(drive(Drive(port, url, str(bodies), scale.seconds, as_json=True)))
            if nginx_port is not None:
                plan = Drive(nginx_port, PATH, str(shakes), scale.seconds, as_json=True)
                limit.append(drive(plan))
    return grpc, json, peer, limit, describe_cost(grpc, cost_s), skipped


def _rows(
    grpc: list[Run],
    json: list[Run],
    peer: list[Run],
    limit: list[Run],
    cost: str,
    skipped: str,
) -> list[Result]:
    peer_note = f" | peer: {describe(peer)}"
    return [
        compare(
            "shake_grpc_per_core",
            "shakes/s",
            rates(grpc),
            GRPCIO,
            rates(peer),
            target=TARGET_PER_S,
            target_ratio=TARGET_RATIO,
            note=f"{describe(grpc)}; {cost}{peer_note}",
        ),
        compare(
            "shake_json_per_core",
            "shakes/s",
            rates(json),
            f"{GRPCIO}, by gRPC",
            rates(peer),
            note=describe(json),
        ),
        compare(
            "shake_grpc_of_limit",
            "shakes/s",
            rates(grpc),
            "nginx, HTTP/2, fixed answer",
            rates(limit),
            note=skipped,
        ),
    ]


def _writes_row(writes: WriteCount, runs: list[Run]) -> Result:
    """Tell what was written to Coordination meanwhile: it follows the clock, not the shakes."""
    shakes = sum(sum(run["outcomes"].values()) for run in runs)
    per_million = writes.total / max(shakes, 1) * 1e6
    note = f"{shakes:,} shakes, {writes.total} writes: {writes.describe()}"
    name = "coordination_writes_per_million_shakes"
    return compare(name, "writes", [per_million], lower_is_better=True, note=note)


def _memory_row(ours: Servers, scale: Scale) -> Result:
    """Measure behind the shakes: the ticket files are mapped and were read from."""
    private, mapped = private_mib(ours.pid(ACCESS))
    return compare(
        "access_private_mib",
        "MiB",
        [private],
        target=PRIVATE_MIB,
        lower_is_better=True,
        note=f"{scale.packets:,} tickets mapped; {mapped:.0f} MiB of clean file pages beside it",
    )


def _overload_rows(scale: Scale, ours: Servers) -> list[Result]:
    """Five times the capacity: wanted by phones that obey (R14), and sent by ones that do not.

    Over as many connections as the capacity is measured with, and over many. The machine's speed
    drifts, so the capacity is measured before and behind each of them.
    """
    shakes, port = str(ours.shake_file()), ours.port(ACCESS)
    calm = Drive(port, PATH, shakes, scale.seconds)
    before_per_s = drive(calm)["per_s"]
    rows = []
    for name, connections, target in (
        ("overload_goodput", Drive.connections, GOODPUT),
        ("overload_goodput_64_connections", OVERLOAD_CONNECTIONS, None),
    ):
        plan = Crowd(
            port,
            PATH,
            shakes,
            phones=int(OVERLOAD * before_per_s),
            warm_s=scale.settle_s,
            seconds=scale.seconds,
            connections=connections,
        )
        run, after_per_s = crowd(plan), drive(calm)["per_s"]
        capacity_per_s = (before_per_s + after_per_s) / 2
        note = (
            f"capacity {before_per_s:,.0f}/s before and {after_per_s:,.0f}/s behind; phones that "
            f"want 5× over {connections} connections and wait when told: {run['outcomes']}"
        )
        share = run["good_per_s"] / capacity_per_s
        rows.append(compare(name, "of capacity", [share], target=target, note=note))
        before_per_s = after_per_s
    return [*rows, _rude_row(scale, calm, before_per_s)]


def _rude_row(scale: Scale, calm: Drive, before_per_s: float) -> Result:
    """Offer five times the capacity as calls, whatever the answers say."""
    runs, shares = [], []
    for _ in range(scale.rounds):
        plan = replace(calm, connections=OVERLOAD_CONNECTIONS, per_s=OVERLOAD * before_per_s)
        run, after_per_s = drive(plan), drive(calm)["per_s"]
        shares.append(run["good_per_s"] / ((before_per_s + after_per_s) / 2))
        runs.append(run)
        before_per_s = after_per_s
    sent = sum(run["sent_per_s"] for run in runs) / len(runs)
    note = f"sent {sent:,.0f}/s by callers that obey only HTTP/2's stream limit; {describe(runs)}"
    return compare("overload_goodput_rude", "of capacity", shares, note=note)
