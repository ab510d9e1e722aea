"""Owns which shards of a plane this process serves; refuses to know what they hold.

Every host of a role wants the same shards. Each takes its quota and no more while the others
live, gives up what is above it, and takes all when it is alone.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from hongbao.domain.errors import Corrupt, Transient
from hongbao.shards.lease import HeldLease
from hongbao.shards.machine import Machine
from hongbao.shards.owner import Owner, OwnerLimits
from hongbao.shards.ports import Clock, Coordination, LogStore
from hongbao.shards.tenure import Tenure

log = structlog.get_logger()


@dataclass(frozen=True)
class Member:
    """Is what a process tells the others in its leases."""

    process: str
    zone: str
    address: str
    role: str

    def to_json(self) -> bytes:
        return json.dumps(self.__dict__, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Member":
        return cls(**json.loads(data))


@dataclass(frozen=True)
class HostLimits:
    """Bounds the tenures of a host."""

    lease_ttl_s: float = 3.0
    """A killed process's shards are free after this; a store that stalls longer moves them."""
    tick_s: float = 0.3
    """A host looks this often for shards that are free; well below the TTL, it renews its
    membership by it."""
    drain_s: float = 5.0
    """A hand-over that takes longer becomes a stop."""
    corrupt_pause_s: float = 30.0
    """A shard whose log contradicts itself is left alone for so long; a person must look."""
    owner: OwnerLimits = field(default_factory=OwnerLimits)


@dataclass(frozen=True)
class Moves:
    """Is what a host should do now."""

    take: tuple[int, ...]
    give: tuple[int, ...]


def plan_moves(
    process: str, live: Sequence[str], shards: Sequence[int], holders: Mapping[int, str]
) -> Moves:
    """Return which free shards to take and which own ones to give up.

    Quotas are equal but for one, and sum to all shards, so the moves of all hosts converge.
    """
    hosts = sorted({*live, process})
    index = hosts.index(process)
    quota = len(shards) // len(hosts) + (index < len(shards) % len(hosts))
    own = [shard for shard in shards if holders.get(shard) == process]
    free = [shard for shard in shards if shard not in holders]
    first = index * len(free) // len(hosts)  # hosts that start together rarely collide
    turned = free[first:] + free[:first]
    return Moves(take=tuple(turned[: max(0, quota - len(own))]), give=tuple(own[quota:]))


class ShardHost:
    """Competes for the leases of its wanted shards and runs an owner for each that it holds."""

    def __init__(
        self,
        coordination: Coordination,
        store: LogStore,
        member: Member,
        plane: str,
        machines: Callable[[int], Machine],
        shards: Sequence[int],
        clock: Clock,
        nonces: Callable[[], bytes],
        limits: HostLimits | None = None,
        owner_type: type[Owner] = Owner,
    ) -> None:
        self.plane = plane
        self._coordination = coordination
        self._store = store
        self._member = member
        self._machines = machines
        self._shards = tuple(shards)
        self._clock = clock
        self._nonces = nonces
        self._limits = limits or HostLimits()
        self._owner_type = owner_type
        self._membership: HeldLease | None = None
        self._tenures: dict[int, tuple[Tenure, asyncio.Task[None]]] = {}
        self._not_before_s: dict[int, float] = {}
        self._stopping = False

    def owner_of(self, shard: int) -> Owner | None:
        """Return the owner of a shard if it is served here now."""
        entry = self._tenures.get(shard)
        owner = entry[0].owner if entry else None
        return owner if owner is not None and owner.stopped_by is None else None

    @property
    def owned_shards(self) -> tuple[int, ...]:
        return tuple(shard for shard in self._shards if self.owner_of(shard) is not None)

    async def run(self) -> None:
        """Take, keep and give up shards until `stop`."""
        while not self._stopping:
            try:
                await self._tick()
            except Transient as error:
                log.info("shard_host_waits", process=self._member.process, reason=str(error))
            except Exception:  # one odd document must not leave the other shards to nobody
                log.exception("shard_host_failed", process=self._member.process)
            await asyncio.sleep(self._limits.tick_s)

    async def stop(self) -> None:
        """Drain all owners, hand their leases back, leave."""
        self._stopping = True
        entries = list(self._tenures.values())
        for tenure, _ in entries:
            tenure.give_up()
        await asyncio.gather(*(task for _, task in entries), return_exceptions=True)
        if self._membership is not None:
            await self._membership.release()

    async def _tick(self) -> None:
        self._reap()
        await self._keep_membership()
        live = await self._live_hosts()
        holders = await self._holders()
        moves = plan_moves(self._member.process, live, self._shards, holders)
        now_s = self._clock.monotonic_s()
        for shard in moves.take:
            if shard not in self._tenures and self._not_before_s.get(shard, now_s) <= now_s:
                self._begin(shard)
        for shard in moves.give:
            if shard in self._tenures:
                self._tenures[shard][0].give_up()

    def _reap(self) -> None:
        for shard, (tenure, task) in list(self._tenures.items()):
            if task.done():
                del self._tenures[shard]
                if not task.cancelled() and task.exception() is not None:
                    log.error("shard_failed", shard=shard, error=repr(task.exception()))
                if isinstance(tenure.ended_by, Corrupt):
                    pause_s = self._limits.corrupt_pause_s
                    self._not_before_s[shard] = self._clock.monotonic_s() + pause_s

    def _begin(self, shard: int) -> None:
        tenure = Tenure(
            f"{self.plane}/{shard}",
            partial(self._acquire, f"{self.plane}/{shard}"),
            partial(self._take_over, shard),
            self._limits.drain_s,
        )
        self._tenures[shard] = (tenure, asyncio.ensure_future(tenure.run()))

    async def _take_over(self, shard: int, held: HeldLease) -> Owner:
        return await self._owner_type.take_over(
            self._store,
            self.plane,
            shard,
            epoch=held.lease.epoch,
            nonce=self._nonces(),
            lease_valid=held.valid,
            machine=self._machines(shard),
            limits=self._limits.owner,
        )

    async def _acquire(self, name: str) -> HeldLease | None:
        return await HeldLease.acquire(
            self._coordination,
            name,
            self._member.process,
            ttl_s=self._limits.lease_ttl_s,
            value=self._member.to_json(),
            monotonic_s=self._clock.monotonic_s,
        )

    async def _keep_membership(self) -> None:
        """Be seen by the other hosts: each tick renews, a lost membership is taken anew."""
        if self._membership is None or not await self._membership.renew():
            self._membership = await self._acquire(f"member/{self._member.process}")

    async def _live_hosts(self) -> list[str]:
        facts = await self._coordination.read_prefix("lease/member/")
        members = [Member.from_json(fact.value) for fact in facts]
        return [member.process for member in members if member.role == self._member.role]

    async def _holders(self) -> dict[int, str]:
        """Return who holds which shard; what our last incarnation held is free for us."""
        prefix = f"lease/{self.plane}/"
        holders = {}
        for fact in await self._coordination.read_prefix(prefix):
            shard = int(fact.key.removeprefix(prefix))
            process = Member.from_json(fact.value).process
            if process != self._member.process or shard in self._tenures:
                holders[shard] = process
        return holders
