"""Serves toy shards as a real process: python toy_process.py NAME FOLDER SHARDS [deaf].

Prints `owner SHARD EPOCH` when it takes a shard over and `left SHARD EPOCH ERROR MESSAGE` when it
stops. A deaf process never learns that a lease is lost, so that only the log can stop it.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Self

import grpc
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.store_client import StoreClient
from hongbao.shards.host import HostLimits, Member, ShardHost
from hongbao.shards.owner import Owner
from hongbao.shards.peers import add_shards_service
from hongbao.shards.ports import Lease

from tests.sim.toy import ToyMachine

LEASE_TTL_S = 1.0


class ReportingOwner(Owner):
    """Tells when it begins and why it ends."""

    def _start(self) -> None:
        super()._start()
        print(f"owner {self.shard.shard} {self.epoch}", flush=True)
        self.reporting = asyncio.ensure_future(self._report())

    async def _report(self) -> None:
        error = await self.wait_stopped()
        kind = type(error).__name__
        print(f"left {self.shard.shard} {self.epoch} {kind} {error}", flush=True)


class DeafOwner(ReportingOwner):
    """Believes in its lease for ever."""

    @classmethod
    async def take_over(cls, *arguments: Any, **named: Any) -> Self:
        return await super().take_over(*arguments, **{**named, "lease_valid": lambda: True})


class DeafStore(StoreClient):
    """Hears that every renewal went well, whatever the store said."""

    async def renew(self, lease: Lease) -> bool:
        await super().renew(lease)
        return True


async def main(name: str, folder: str, shards: str, hearing: str = "good") -> None:
    address = f"unix:{folder}/{name}"
    deaf = hearing == "deaf"
    store = (DeafStore if deaf else StoreClient)(Path(folder) / "socket", Path(folder) / "db")
    host = ShardHost(
        store,
        store,
        Member(name, "zone-a", address, "toy"),
        "toy",
        lambda shard: ToyMachine(),
        range(int(shards)),
        SystemClock(),
        lambda: os.urandom(16),
        HostLimits(lease_ttl_s=LEASE_TTL_S, tick_s=0.1),
        DeafOwner if deaf else ReportingOwner,
    )
    server = grpc.aio.server()
    add_shards_service(server, lambda plane, shard: host.owner_of(shard))
    server.add_insecure_port(address)
    await server.start()
    await host.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
