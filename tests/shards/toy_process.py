"""Serves toy shards as a real process: python toy_process.py NAME FOLDER SHARDS.

FOLDER holds settings.json, which says what stores these are (cli/settings.py).

Prints `owner SHARD EPOCH` when it takes a shard over and `left SHARD EPOCH ERROR MESSAGE` when it
stops. On SIGUSR1 it goes deaf, and says so: from then on it never learns that a lease is lost, so
that only the log can stop it.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, Self, cast

import grpc
from hongbao.adapters.clock import SystemClock
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import connect_stores
from hongbao.shards.host import HostLimits, ShardHost
from hongbao.shards.member import Member
from hongbao.shards.owner import Owner
from hongbao.shards.peers import add_shards_service
from hongbao.shards.ports import Coordination, Lease
from hongbao.shards.tenure import Owners

from tests.sim.toy import ToyMachine


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


class Hearing:
    """Is whether this process learns that a lease is lost."""

    def __init__(self) -> None:
        self.deaf = False

    def lose(self) -> None:
        self.deaf = True
        print("deaf", flush=True)

    def owner_type(self) -> type[Owner]:
        """Return owners that, once deaf, believe in their leases for ever."""
        hearing = self

        class HearingOwner(ReportingOwner):
            @classmethod
            async def take_over(cls, *arguments: Any, **named: Any) -> Self:
                valid = named.pop("lease_valid")
                named["lease_valid"] = lambda: hearing.deaf or valid()
                return await super().take_over(*arguments, **named)

        return HearingOwner


class HearingCoordination:
    """Once deaf, says at once that a renewal went well, and never hears what became of it.

    To wait for it would be hearing: one that is under way at a pause has timed out behind it.
    """

    def __init__(self, inner: Coordination, hearing: Hearing) -> None:
        self._hearing = hearing
        self._inner = inner
        self._renewals: set[asyncio.Future[bool]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def renew(self, lease: Lease) -> bool:
        if not self._hearing.deaf:
            return await self._inner.renew(lease)
        renewal = asyncio.ensure_future(self._inner.renew(lease))
        self._renewals.add(renewal)
        renewal.add_done_callback(self._forget)
        return True

    def _forget(self, renewal: "asyncio.Future[bool]") -> None:
        self._renewals.discard(renewal)
        if not renewal.cancelled():
            renewal.exception()  # taken note of, so that asyncio does not complain


async def main(name: str, folder: str, shards: str) -> None:
    address = f"unix:{folder}/{name}"
    hearing = Hearing()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, hearing.lose)
    settings = UpSettings.model_validate_json((Path(folder) / "settings.json").read_text())
    stores = await connect_stores(RunDir(Path(folder)), settings, "toy")
    owners = Owners(
        stores.log_store,
        "toy",
        lambda shard: ToyMachine(),
        lambda: os.urandom(16),
        owner_type=hearing.owner_type(),
    )
    host = ShardHost(
        cast(Coordination, HearingCoordination(stores.coordination, hearing)),
        Member(name, "zone-a", address, "toy"),
        "toy",
        range(int(shards)),
        owners.serve,
        SystemClock().monotonic_s,
        HostLimits(lease_ttl_s=settings.lease_ttl_s, tick_s=0.1),
    )
    server = grpc.aio.server()
    add_shards_service(server, owners.find)
    server.add_insecure_port(address)
    await server.start()
    await host.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
