"""Owns which shards this process holds; refuses to know what it does with them.

Every host of a role wants the same shards. Each takes its quota and no more while the others
live, gives up what is above it, and takes all when it is alone. Each lease renews by itself, so
a store that is slow to answer one question costs no shard.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from hongbao.domain.errors import Corrupt, HongbaoError, Transient
from hongbao.shards.lease import HeldLease
from hongbao.shards.member import Member, keep_member
from hongbao.shards.ports import Coordination

UNKNOWN: Final = Member(process="", zone="", address="", role="")
"""Holds a lease whose document cannot be read: somebody lives there, of no role that counts."""

log = structlog.get_logger()

Serve = Callable[[int, HeldLease, asyncio.Event], Awaitable[None]]
"""Does a shard's work while its lease is held. Returns soon after the event says to leave, because
the lease is lost or the shard too much. Raises Corrupt when a person must look."""


@dataclass(frozen=True)
class HostLimits:
    """Bounds the stays of a host."""

    lease_ttl_s: float = 3.0
    """A killed process's shards are free after this; a store that stalls longer moves them."""
    tick_s: float = 0.3
    """A host looks this often for shards that are free."""
    corrupt_pause_s: float = 30.0
    """A shard whose log contradicts itself is left alone for so long; a person must look."""


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
    """Competes for the leases of its wanted shards and serves each that it holds."""

    def __init__(
        self,
        coordination: Coordination,
        member: Member,
        plane: str,
        shards: Sequence[int],
        serve: Serve,
        monotonic_s: Callable[[], float],
        limits: HostLimits | None = None,
    ) -> None:
        """`plane` names the leases: `<plane>/<shard>`."""
        self._coordination = coordination
        self._member = member
        self._plane = plane
        self._shards = tuple(shards)
        self._serve = serve
        self._monotonic_s = monotonic_s
        self._limits = limits or HostLimits()
        self._membership: asyncio.Future[None] | None = None
        self._stays: dict[int, tuple[asyncio.Event, asyncio.Future[None]]] = {}
        self._not_before_s: dict[int, float] = {}
        self._unreadable: dict[str, dict[str, int]] = {}  # by prefix: the revision of each document
        self._stopping = False

    async def run(self) -> None:
        """Take, keep and give up shards until `stop`."""
        self._membership = asyncio.ensure_future(
            keep_member(
                self._coordination,
                self._member,
                ttl_s=self._limits.lease_ttl_s,
                monotonic_s=self._monotonic_s,
            )
        )
        try:
            while not self._stopping:
                try:
                    await self._tick()
                except Transient as error:
                    log.info("shard_host_waits", process=self._member.process, reason=str(error))
                except Exception:  # one odd document must not leave the other shards to nobody
                    log.exception("shard_host_failed", process=self._member.process)
                await asyncio.sleep(self._limits.tick_s)
        finally:
            self._membership.cancel()

    async def stop(self) -> None:
        """Leave all shards, hand their leases back, then leave the others."""
        self._stopping = True
        for leave, _ in self._stays.values():
            leave.set()
        stays = [stay for _, stay in self._stays.values()]
        await asyncio.gather(*stays, return_exceptions=True)
        if self._membership is not None:
            self._membership.cancel()
            await asyncio.wait([self._membership])

    async def _tick(self) -> None:
        live = await self._live_hosts()
        holders = await self._holders()
        if self._stopping:
            return
        moves = plan_moves(self._member.process, live, self._shards, holders)
        now_s = self._monotonic_s()
        for shard in moves.take:
            if shard not in self._stays and self._not_before_s.get(shard, now_s) <= now_s:
                leave = asyncio.Event()
                stay = asyncio.ensure_future(self._stay(shard, leave))
                self._stays[shard] = (leave, stay)
        for shard in moves.give:
            if shard in self._stays:
                self._stays[shard][0].set()

    async def _stay(self, shard: int, leave: asyncio.Event) -> None:
        """Live through one stay; a shard that someone else holds is no error."""
        name = f"{self._plane}/{shard}"
        try:
            await self._hold(name, shard, leave)
        except Corrupt as error:
            self._not_before_s[shard] = self._monotonic_s() + self._limits.corrupt_pause_s
            log.error("shard_corrupt", shard=name, reason=str(error))
        except HongbaoError as error:
            log.info("shard_left", shard=name, reason=str(error))
        except Exception:  # outermost level of a task: a bug in one shard harms no other
            log.exception("shard_failed", shard=name)
        finally:
            del self._stays[shard]

    async def _hold(self, name: str, shard: int, leave: asyncio.Event) -> None:
        held = await HeldLease.acquire(
            self._coordination,
            name,
            self._member.process,
            ttl_s=self._limits.lease_ttl_s,
            value=self._member.to_json(),
            monotonic_s=self._monotonic_s,
        )
        if held is None:
            return
        keeping = asyncio.ensure_future(held.keep())
        keeping.add_done_callback(lambda _: leave.set())
        try:
            await self._serve(shard, held, leave)
        finally:
            keeping.cancel()
            await held.release()

    async def _live_hosts(self) -> list[str]:
        members = await self._members("lease/member/")
        return [member.process for member in members.values() if member.role == self._member.role]

    async def _holders(self) -> dict[int, str]:
        """Return who holds which shard; what our last incarnation held is free for us."""
        holders = {}
        for name, member in (await self._members(f"lease/{self._plane}/")).items():
            shard = int(name)
            if member.process != self._member.process or shard in self._stays:
                holders[shard] = member.process
        return holders

    async def _members(self, prefix: str) -> dict[str, Member]:
        """Return who holds which lease: UNKNOWN where the document is odd, which is told once."""
        members, unreadable = {}, {}
        told = self._unreadable.get(prefix, {})
        for fact in await self._coordination.read_prefix(prefix):
            try:
                member = Member.from_json(fact.value)
            except Corrupt as error:
                member = UNKNOWN
                unreadable[fact.key] = fact.revision
                if told.get(fact.key) != fact.revision:
                    log.error("member_unreadable", key=fact.key, reason=str(error))
            members[fact.key.removeprefix(prefix)] = member
        self._unreadable[prefix] = unreadable
        return members
