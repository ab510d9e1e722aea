"""Which process serves which shard: quotas, fail-over, hand-over; and finding the owner."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous, Fenced, Rejected, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.host import HostLimits, ShardHost, plan_moves
from hongbao.shards.lease import HeldLease
from hongbao.shards.member import Member, keep_member
from hongbao.shards.ports import Lease, Versioned
from hongbao.shards.router import Outcome, ShardRouter, submit_all
from hongbao.shards.tenure import Owners
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.sim.loop import VirtualLoop
from tests.sim.toy import READ, REFUSED, TOTAL, ToyMachine, add
from tests.waiting import LIMIT_S, until

SHARDS = range(4)
LIMITS = HostLimits(lease_ttl_s=LIMIT_S, tick_s=0.05)
"""No lease runs out here because the machine stood still."""
MORTAL = HostLimits(lease_ttl_s=0.9, tick_s=0.05)
"""For hosts whose leases shall run out, or whose time is virtual."""


@given(st.sets(st.integers(0, 9), min_size=1), st.integers(0, 40), st.data())
def test_moves_converge_to_equal_quotas(hosts: set[int], count: int, data: st.DataObject) -> None:
    """Whoever holds what at first: after the moves of all, nobody has two more than another."""
    names = [f"p{host}" for host in sorted(hosts)]
    holders = {
        shard: data.draw(st.sampled_from(names))
        for shard in range(count)
        if data.draw(st.booleans())
    }
    for _ in range(3):
        for name in names:
            moves = plan_moves(name, names, range(count), holders)
            for shard in moves.give:
                assert holders.pop(shard) == name
            for shard in moves.take:
                assert holders.setdefault(shard, name) == name
    sizes = [sum(holder == name for holder in holders.values()) for name in names]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_a_host_alone_takes_everything() -> None:
    assert sorted(plan_moves("a", [], range(5), {}).take) == [0, 1, 2, 3, 4]


def test_nothing_is_taken_from_a_holder_that_may_still_live() -> None:
    assert plan_moves("a", ["a"], range(2), {0: "b"}).take == (1,)


class Cluster:
    """Runs hosts of one role over one memory store, and is their network."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.limits = LIMITS
        self.hosts: dict[str, ShardHost] = {}
        self.owners: dict[str, Owners] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.calls: list[int] = []
        self.broken = False
        self.paused: set[str] = set()
        self.error: Exception | None = None

    def start(self, name: str) -> ShardHost:
        owners = Owners(self.store, "toy", lambda shard: ToyMachine(), lambda: os.urandom(16))
        member = Member(name, "zone-a", name, "toy")
        host = ShardHost(
            self.store, member, "toy", SHARDS, owners.serve, time.monotonic, self.limits
        )
        self.owners[name] = owners
        self.hosts[name] = host
        self.tasks[name] = asyncio.create_task(host.run())
        return host

    def router(self, name: str = "") -> ShardRouter:
        owners = self.owners.get(name)
        return ShardRouter(self.store, owners.find if owners else lambda plane, shard: None, self)

    async def submit(
        self, address: str, plane: str, shard: int, operations: Sequence[bytes]
    ) -> Sequence[Outcome]:
        self.calls.append(len(operations))
        await asyncio.sleep(0.002)
        if address in self.paused:
            await asyncio.sleep(3600)
        if self.error is not None:
            raise self.error
        if self.broken:
            raise Ambiguous("the call failed")
        owner = self.owners[address].find(plane, shard)
        if owner is None:
            raise Fenced("not owned here")
        return await submit_all(owner, operations)

    def owned(self) -> dict[str, int]:
        return {name: len(self.shards_of(name)) for name in self.hosts}

    def shards_of(self, name: str) -> list[int]:
        return [shard for shard in SHARDS if self.owners[name].find("toy", shard)]

    async def stop(self, name: str) -> None:
        await self.hosts.pop(name).stop()
        await self.tasks.pop(name)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    yield cluster
    for name in list(cluster.hosts):
        await cluster.stop(name)


async def test_hosts_share_the_shards_and_survive_one_another(cluster: Cluster) -> None:
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    cluster.start("b")
    await until(lambda: cluster.owned() == {"a": 2, "b": 2})
    await cluster.stop("a")
    await until(lambda: cluster.owned() == {"b": 4})


@pytest.mark.parametrize("odd", [b"{", b"[]", b"\xff"])
async def test_a_host_takes_shards_beside_documents_that_it_cannot_read(
    cluster: Cluster, odd: bytes
) -> None:
    """As found: one such member, and nobody took any shard. It is told once, not at each look."""
    await cluster.store.acquire("member/odd", "odd", ttl_s=LIMIT_S, value=odd)
    await cluster.store.acquire("toy/1", "odd", ttl_s=LIMIT_S, value=odd)
    with capture_logs() as told:
        cluster.start("a")
        await until(lambda: cluster.owned() == {"a": 3})
        cluster.start("b")
        await until(lambda: sorted(cluster.owned().values()) == [1, 2])
    unread = [each["key"] for each in told if each["event"] == "member_unreadable"]
    assert sorted(unread) == 2 * ["lease/member/odd"] + 2 * ["lease/toy/1"]


async def test_a_dead_hosts_shards_move_when_its_leases_run_out(cluster: Cluster) -> None:
    cluster.limits = MORTAL
    cluster.start("a")
    cluster.start("b")
    await until(lambda: cluster.owned() == {"a": 2, "b": 2})
    dead = cluster.hosts.pop("a")
    cluster.tasks.pop("a").cancel()
    for _, stay in dead._stays.values():
        stay.cancel()
    await until(lambda: cluster.owned() == {"b": 4})


async def test_a_host_that_comes_back_takes_its_shards_without_waiting(cluster: Cluster) -> None:
    """Its own leases, left by its last incarnation, are free for it."""
    await cluster.store.acquire(
        "toy/1", "a", ttl_s=60, value=Member("a", "zone-a", "a", "toy").to_json()
    )
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})


async def test_operations_reach_the_owner_wherever_it_is(cluster: Cluster) -> None:
    cluster.start("a")
    cluster.start("b")
    await until(lambda: cluster.owned() == {"a": 2, "b": 2})
    for name in ("a", "b", "elsewhere"):
        router = cluster.router(name)
        for shard in SHARDS:
            await router.submit("toy", shard, add(shard, 5))
            assert TOTAL.unpack(await router.submit("toy", shard, READ)) == (5,)


async def test_waiting_operations_share_calls_to_a_peer(cluster: Cluster) -> None:
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    router = cluster.router()
    await asyncio.gather(*(router.submit("toy", 1, add(number, 1)) for number in range(300)))
    assert sum(cluster.calls) == 300
    assert len(cluster.calls) < 10


async def test_each_operation_of_a_call_has_its_own_outcome(cluster: Cluster) -> None:
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    router = cluster.router()
    good, refused = await asyncio.gather(
        router.submit("toy", 1, add(1, 7)),
        router.submit("toy", 1, REFUSED),
        return_exceptions=True,
    )
    assert good == TOTAL.pack(7)
    assert isinstance(refused, Rejected)


async def test_a_router_finds_the_new_owner_after_a_hand_over(cluster: Cluster) -> None:
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    router = cluster.router()
    for shard in SHARDS:
        await router.submit("toy", shard, READ)
    cluster.start("b")
    await until(lambda: cluster.owned() == {"a": 2, "b": 2})
    for shard in SHARDS:
        assert TOTAL.unpack(await router.submit("toy", shard, add(shard, 3))) == (3,)


async def test_a_router_that_follows_learns_of_moves_by_itself(cluster: Cluster) -> None:
    router = cluster.router()
    following = asyncio.create_task(router.follow("toy"))
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    await cluster.stop("a")
    cluster.start("b")
    await until(lambda: cluster.owned() == {"b": 4})
    await router.submit("toy", 1, READ)
    following.cancel()
    assert cluster.calls == [1]


class TellingStore(MemoryStore):
    """Keeps what its watches tell; they wait, or break behind each change, when they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Versioned] = []
        self.breaks = False
        self.go = asyncio.Event()
        self.go.set()

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        async for fact in super().watch(prefix, after_revision=after_revision):
            await self.go.wait()
            self.told.append(fact)
            yield fact
            if self.breaks:
                raise Transient("connection lost")


async def hand_on(store: MemoryStore, *names: str) -> Lease:
    """Let each process hold shard 1 for a moment, and the last one keep it."""
    held = None
    for name in names:
        if held is not None:
            await store.release(held)
        value = Member(name, "zone-a", name, "toy").to_json()
        held = await store.acquire("toy/1", name, ttl_s=LIMIT_S, value=value)
    assert held is not None
    return held


@pytest.fixture
def telling(cluster: Cluster) -> TellingStore:
    cluster.store = store = TellingStore()
    return store


async def test_a_router_that_begins_to_follow_leaves_old_owners_alone(
    cluster: Cluster, telling: TellingStore
) -> None:
    """As found: it followed all history, and each old owner took a call from the living one."""
    await hand_on(telling, "old", "older", "a")
    cluster.paused.add("a")  # the call stays under way
    router = cluster.router()
    calling = asyncio.create_task(router.submit("toy", 1, READ))
    await until(lambda: cluster.calls)
    following = asyncio.create_task(router.follow("toy"))
    await asyncio.sleep(0)
    await telling.put("lease/toy/2", Member("b", "zone-a", "b", "toy").to_json())
    await until(lambda: telling.told, "something is told")
    assert [fact.key for fact in telling.told] == ["lease/toy/2"]
    assert not calling.done()
    assert len(cluster.calls) == 1
    following.cancel()
    calling.cancel()


async def test_where_nobody_holds_a_shard_a_router_is_not_told_who_ever_did(
    telling: TellingStore, cluster: Cluster
) -> None:
    await telling.release(await hand_on(telling, "old", "older"))
    await telling.acquire("member/a", "a", ttl_s=LIMIT_S, value=b"{}")
    following = asyncio.create_task(cluster.router().follow("toy"))
    await asyncio.sleep(0)
    await hand_on(telling, "a")
    await until(lambda: telling.told, "something is told")
    assert b'"a"' in telling.told[0].value
    following.cancel()


async def test_a_router_whose_watch_breaks_goes_on_with_what_is_there_then(
    cluster: Cluster, telling: TellingStore
) -> None:
    """Also what was given up meanwhile is known, and nothing is told twice."""
    telling.breaks = True
    router = cluster.router()
    following = asyncio.create_task(router.follow("toy"))
    await asyncio.sleep(0)
    held = await hand_on(telling, "old")
    await until(lambda: len(telling.told) == 1, "the watch tells and breaks")
    await telling.release(held)
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    assert await asyncio.wait_for(router.submit("toy", 1, READ), LIMIT_S) == TOTAL.pack(0)
    assert len({fact.revision for fact in telling.told}) == len(telling.told)
    following.cancel()


async def test_an_owner_that_cannot_be_read_keeps_a_router_from_following_no_other(
    cluster: Cluster, telling: TellingStore
) -> None:
    await telling.put("lease/toy/2", b"odd")
    following = asyncio.create_task(cluster.router().follow("toy"))
    await asyncio.sleep(0)
    await hand_on(telling, "a")
    await until(lambda: telling.told, "something is told")
    following.cancel()


async def test_a_router_told_late_of_an_old_owner_stays_with_the_new_one(
    cluster: Cluster, telling: TellingStore
) -> None:
    """Where a call has read who owns its shard before the watch comes to it."""
    await telling.acquire("member/a", "a", ttl_s=LIMIT_S, value=b"{}")
    router = cluster.router()
    following = asyncio.create_task(router.follow("toy"))
    await asyncio.sleep(0)
    telling.go.clear()
    await hand_on(telling, "old", "older", "a")
    cluster.paused.add("a")  # the call stays under way
    calling = asyncio.create_task(router.submit("toy", 1, READ))
    await until(lambda: cluster.calls)
    telling.go.set()
    await until(lambda: len(telling.told) == 5, "all is told")
    await asyncio.sleep(0)
    assert not calling.done()
    assert len(cluster.calls) == 1
    following.cancel()
    calling.cancel()


async def test_a_call_to_a_paused_owner_goes_to_the_next_one_as_soon_as_there_is_one(
    cluster: Cluster,
) -> None:
    """F5: not only when the call's own deadline has passed, and however long the pause was."""
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    router = ShardRouter(cluster.store, lambda plane, shard: None, cluster, owner_wait_s=0.0)
    following = asyncio.create_task(router.follow("toy"))
    cluster.paused.add("a")
    calls = [asyncio.create_task(router.submit("toy", 1, add(n, 1))) for n in range(2000)]
    await until(lambda: len(cluster.calls) >= 2)  # two calls at the peer, the rest waits
    await cluster.stop("a")
    cluster.start("b")
    async with asyncio.timeout(LIMIT_S):
        totals = await asyncio.gather(*calls)
    assert sorted(TOTAL.unpack(total)[0] for total in totals) == list(range(1, 2001))
    following.cancel()


async def test_a_bug_in_a_call_leaves_nobody_waiting(cluster: Cluster) -> None:
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    cluster.error = ValueError("a reply that nobody foresaw")
    router = ShardRouter(cluster.store, lambda plane, shard: None, cluster, owner_wait_s=0.0)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(Ambiguous):
            await router.submit("toy", 1, add(1, 1))


async def test_without_an_owner_the_caller_is_told_to_come_back(cluster: Cluster) -> None:
    with pytest.raises(Transient) as caught:
        await cluster.router().submit("toy", 1, READ)
    assert 0 < caught.value.retry_after_s < 1


async def test_a_failed_call_leaves_the_outcome_open(cluster: Cluster) -> None:
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 4})
    cluster.broken = True
    with pytest.raises(Ambiguous):
        await cluster.router().submit("toy", 1, add(1, 1))


async def test_a_corrupt_log_is_left_alone_and_the_others_served(cluster: Cluster) -> None:
    await cluster.store.create(ShardKey("toy", 2).log(0), b"not a block")
    cluster.start("a")
    await until(lambda: cluster.owned() == {"a": 3})
    await asyncio.sleep(0.1)
    assert cluster.shards_of("a") == [0, 1, 3]


class SlowStore(MemoryStore):
    """Takes longer for a question than a lease lives, and a good part of that for a renewal."""

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        await asyncio.sleep(1.5 * MORTAL.lease_ttl_s)
        return await super().read_prefix(prefix)

    async def renew(self, lease: Lease) -> bool:
        await asyncio.sleep(0.1 * MORTAL.lease_ttl_s)
        return await super().renew(lease)


def test_a_slow_store_costs_a_host_neither_a_shard_nor_its_membership() -> None:
    """As found: one loop renewed all leases, one after the other, between its questions.

    In virtual time: a machine that stands still for a lease's time would cost a shard, too.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(keep_shards_over_a_slow_store(runner.get_loop().time))


async def keep_shards_over_a_slow_store(monotonic_s: Callable[[], float]) -> None:
    store = SlowStore(monotonic_s=monotonic_s)
    stays: list[int] = []

    async def serve(shard: int, held: HeldLease, leave: asyncio.Event) -> None:
        stays.append(shard)
        await leave.wait()

    member = Member("a", "zone-a", "a", "toy")
    host = ShardHost(store, member, "toy", range(12), serve, monotonic_s, MORTAL)
    running = asyncio.create_task(host.run())
    await until(lambda: len(stays) == 12)
    before = await MemoryStore.read_prefix(store, "lease/")
    for _ in range(20):
        await asyncio.sleep(0.25 * MORTAL.lease_ttl_s)
        assert await MemoryStore.read_prefix(store, "lease/") == before
    assert len(stays) == 12
    await host.stop()
    await running


async def test_a_bug_in_one_shard_harms_no_other() -> None:
    served: set[int] = set()

    async def serve(shard: int, held: HeldLease, leave: asyncio.Event) -> None:
        if shard == 1:
            raise ZeroDivisionError
        served.add(shard)
        await leave.wait()

    store = MemoryStore()
    member = Member("a", "zone-a", "a", "toy")
    host = ShardHost(store, member, "toy", range(3), serve, time.monotonic, LIMITS)
    running = asyncio.create_task(host.run())
    await until(lambda: served == {0, 2})
    await asyncio.sleep(5 * LIMITS.tick_s)
    assert not running.done()
    await host.stop()
    await running
    assert await store.read_prefix("lease/") == []


async def test_a_process_that_starts_again_is_a_member_all_the_while() -> None:
    """A refund waits for living processes: one between two lives must not be missed."""
    store, member = MemoryStore(), Member("a", "zone-a", "", "access")

    def live() -> "asyncio.Task[None]":
        return asyncio.create_task(keep_member(store, member, ttl_s=60, monotonic_s=time.monotonic))

    async def revision() -> int:
        return (await store.read("lease/member/a")).revision

    await store.acquire("member/a", "a", ttl_s=60, value=member.to_json())  # killed
    killed = await revision()
    second = live()
    for _ in range(20):
        await asyncio.sleep(0)
    assert await revision() > killed
    second.cancel()
    await asyncio.wait([second])
    assert await revision() == 0
