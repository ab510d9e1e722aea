"""lease_failover_s: an owner is killed (SIGKILL); how long until its shard serves again.

Two real processes on one TiKV store and one etcd member; a caller asks the shard all the while,
as the router of any process does. The killed process is started again before the next kill.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

from hongbao.adapters.clock import SystemClock
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import SharedState, connect_stores
from hongbao.domain.errors import Transient
from hongbao.shards.peers import GrpcPeers
from hongbao.shards.router import ShardRouter

from tests.bench.results import Result, compare
from tests.bench.scale import Scale
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import TikvCluster
from tests.shards.worker import Worker
from tests.sim.toy import add
from tests.waiting import until

ROW = "lease_failover_s"
KILLS, LEASE_TTL_S, TARGET_S = 20, 2.0, 3.0
SHARDS = 2
CALL_S_MAX = 0.25
PAUSE_S = 0.005
SERVES_S_MAX = 20.0


async def bench_failover(scale: Scale) -> list[Result]:
    """Kill the owner of shard 0 again and again."""
    if reason := binaries.why_not():
        return [Result(ROW, None, "s", skipped=reason)]
    folder = scale.folder / "failover"
    with (
        TikvCluster(folder / "tikv") as tikv,
        EtcdCluster(folder / "etcd") as etcd,
    ):
        settings = UpSettings.model_validate(
            {
                "campaign": "none.yaml",
                "lease_ttl_s": LEASE_TTL_S,
                "tikv": {"pd": tikv.pd_endpoints},
                "etcd": {"endpoints": etcd.endpoints},
            }
        )
        (folder / "settings.json").write_text(settings.model_dump_json())
        stores = await connect_stores(RunDir(folder), settings, "toy")
        try:
            times_s = await _kill_owners(stores, folder, KILLS if scale.rounds > 1 else 3)
        finally:
            await stores.close()
    times_s.sort()
    note = (
        f"worst of {len(times_s)} kills at a lease of {LEASE_TTL_S:g} s, "
        f"median {times_s[len(times_s) // 2]:.2f}; one TiKV store, one etcd member"
    )
    return [
        compare(ROW, "s", [times_s[-1]], target=TARGET_S, lower_is_better=True, note=note),
    ]


async def _kill_owners(stores: SharedState, folder: Path, kills: int) -> list[float]:
    workers = {name: Worker(name, folder, SHARDS) for name in ("toy-a-0", "toy-b-0")}
    peers = GrpcPeers(call_s_max=CALL_S_MAX)
    router = ShardRouter(stores.coordination, lambda plane, shard: None, peers)
    following = asyncio.create_task(router.follow("toy"))
    clock, times_s = SystemClock(), []
    try:
        for kill in range(kills):
            await until(lambda: [len(worker.tenures()) for worker in workers.values()] == [1, 1])
            await _serve(router, kill << 32)
            victim = next(name for name, worker in workers.items() if worker.tenures()[0][0] == "0")
            began_s = clock.monotonic_s()
            workers[victim].kill()
            await _serve(router, (kill << 32) + 1)
            times_s.append(clock.monotonic_s() - began_s)
            workers[victim] = Worker(victim, folder, SHARDS)
    finally:
        following.cancel()
        await peers.close()
        for worker in workers.values():
            worker.kill()
    return times_s


async def _serve(router: ShardRouter, number: int) -> None:
    """Ask shard 0 until it has answered."""
    async with asyncio.timeout(SERVES_S_MAX):
        while True:
            with suppress(Transient):
                await router.submit("toy", 0, add(number, 1))
                return
            await asyncio.sleep(PAUSE_S)
