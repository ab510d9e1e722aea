"""Is a process that holds a lease on etcd and tells, line by line, how that goes (F9).

usage: python -m tests.stores.etcd_holder NAMESPACE TTL_S ENDPOINT…
Lines: `held EPOCH WALL_S` each time it relied on the lease and wrote, with what its wall clock
showed; `lost EPOCH`; `failed ERROR`.
"""

import asyncio
import sys
import time

from hongbao.adapters.clock import SystemClock
from hongbao.adapters.etcd import EtcdCoordination
from hongbao.adapters.etcd_members import EtcdSettings
from hongbao.domain.errors import HongbaoError
from hongbao.shards.lease import HeldLease

STEP_S = 0.1


async def main(namespace: str, ttl_s: str, *endpoints: str) -> None:
    store = EtcdCoordination(EtcdSettings(endpoints, namespace))
    while True:
        held = await HeldLease.acquire(
            store, "clock", "holder", ttl_s=float(ttl_s), value=b"{}", monotonic_s=time.monotonic
        )
        if held is not None:
            await hold(store, held)
            print("lost", held.lease.epoch, flush=True)
        await asyncio.sleep(STEP_S)


async def hold(store: EtcdCoordination, held: HeldLease) -> None:
    """Write for as long as the lease is good."""
    keeping = asyncio.create_task(held.keep())
    clock = SystemClock()
    while held.valid():
        try:
            await store.put("work", b"%d" % held.lease.epoch)
            print("held", held.lease.epoch, clock.wall_ms() // 1000, flush=True)
        except HongbaoError as error:
            print("failed", error, flush=True)
        await asyncio.sleep(STEP_S)
    keeping.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
