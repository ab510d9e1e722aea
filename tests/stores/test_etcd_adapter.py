"""What only the etcd adapter promises: counted writes, leases that outlive members, TLS."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import grpc
import pytest
from hongbao.adapters.etcd import EtcdCoordination
from hongbao.adapters.etcd_members import OPTIONS, EtcdSettings, EtcdTls
from hongbao.domain.errors import Rejected, Transient
from hongbao.proto.etcd import rpc_pb2 as pb
from hongbao.shards.lease import HeldLease
from hongbao.shards.ports import Coordination, Versioned

from tests.servers import binaries
from tests.servers.certificates import make_certificates
from tests.servers.etcd import EtcdCluster
from tests.stores.etcd_load import connected
from tests.stores.relay import Relay
from tests.waiting import LIMIT_S

LARGE_BYTES = 700_000
TURNS_MAX = 3
TTLS_S = (8.0, 24.0)
"""At load 10 a renewal may have to wait for seconds: then once more, with a longer lease."""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), 3) as made:
        yield made


@pytest.fixture
def settings(cluster: EtcdCluster) -> EtcdSettings:
    return cluster.settings(f"{secrets.token_hex(6)}/")


async def test_writes_are_counted_by_purpose_and_waiting_costs_none(
    settings: EtcdSettings,
) -> None:
    """Whoever reads, watches, renews, or waits for a lease that another holds, writes nothing.

    A call that takes over a second goes to the next member and counts twice: then once more.
    """
    for turn in range(TURNS_MAX):
        way = replace(settings, namespace=f"{settings.namespace}{turn}/")
        async with connected(way) as holder, connected(way) as waiter:
            store: Coordination = holder
            await store.put("switches/a", b"1")
            lease = await store.acquire("claims/1", "p1", ttl_s=LIMIT_S, value=b"{}")
            assert lease is not None
            before = holder.writes.written()
            for _ in range(10):
                assert await holder.renew(lease)
                assert await waiter.acquire("claims/1", "p2", ttl_s=LIMIT_S, value=b"{}") is None
                await waiter.read_prefix("switches/")
            counted = holder.writes.written(), waiter.writes.written()
            await holder.release(lease)
            if {holder.endpoint, waiter.endpoint} == {settings.endpoints[0]}:
                break
    assert before == 3
    assert counted == (3, 0)
    assert holder.writes.by_purpose() == {
        ("switches", "txn"): 1,
        ("lease", "grant"): 1,
        ("lease", "txn"): 1,
        ("lease", "keepalive"): 10,
        ("lease", "revoke"): 1,
    }


@pytest.mark.parametrize("harm", ["kill", "pause"])
async def test_a_lease_outlives_the_member_that_it_was_kept_over(
    cluster: EtcdCluster, settings: EtcdSettings, harm: str
) -> None:
    """A follower is lost; its holder relies on the lease all the time."""
    for ttl_s in TTLS_S:
        follower = (await asyncio.to_thread(cluster.leader) + 1) % 3
        ends = settings.endpoints
        way = replace(settings, endpoints=ends[follower:] + ends[:follower])
        async with connected(way) as store:
            held = await hold(store, ttl_s=ttl_s)
            if store.endpoint != ends[follower]:
                continue  # it was too slow to hold a lease over
            kept = await outlives(cluster, follower, harm, store, held)
            assert store.endpoint != ends[follower]
        if kept:
            return
    raise AssertionError("no lease was kept, neither a short one nor a long one")


@pytest.mark.parametrize("harm", ["kill", "pause"])
async def test_a_lease_outlives_the_leader(
    cluster: EtcdCluster, settings: EtcdSettings, harm: str
) -> None:
    """An election takes 1–2 s, more on a busy machine, which a TTL must allow for.

    A paused leader may give the lease away once it wakes (etcd's fault, see docs/stores.md). Then
    its holder is told at the next renewal, and whoever takes it has a higher epoch.
    """
    for ttl_s in TTLS_S:
        leader = await asyncio.to_thread(cluster.leader)
        async with connected(settings) as store:
            held = await hold(store, ttl_s=ttl_s)
            kept = await outlives(cluster, leader, harm, store, held, woken=harm == "pause")
            next_one = await hold(store, ttl_s=ttl_s)
            assert next_one.lease.epoch > held.lease.epoch
        if kept:
            return
    raise AssertionError("no lease was kept, neither a short one nor a long one")


async def outlives(
    cluster: EtcdCluster,
    index: int,
    harm: str,
    store: EtcdCoordination,
    held: HeldLease,
    *,
    woken: bool = False,
) -> bool:
    """Lose a member while a lease is held; tell whether it was good all the time.

    With `woken` it may be lost behind that, if its holder is told.
    """
    keeping = asyncio.create_task(held.keep())
    lose(cluster, index, harm)
    try:
        kept = await rely_on(held)
    finally:
        bring_back(cluster, index, harm)
    await asyncio.to_thread(cluster.wait_until_serving)
    found = await store.read("lease/claims/1")
    keeping.cancel()
    is_there = found.revision == held.lease.epoch
    told = not is_there and not await held.renew()
    if told:
        print("the lease was given away")
    await held.release()
    return kept and (is_there or (woken and told))


async def hold(store: EtcdCoordination, *, ttl_s: float) -> HeldLease:
    held = await HeldLease.acquire(
        store, "claims/1", "p1", ttl_s=ttl_s, value=b"{}", monotonic_s=time.monotonic
    )
    assert held is not None
    return held


async def rely_on(held: HeldLease) -> bool:
    """Tell whether a lease is good all the time, for longer than it lives without renewals."""
    ends_s = time.monotonic() + 1.5 * held.lease.ttl_s
    while time.monotonic() < ends_s:
        if not held.valid():
            return False
        await asyncio.sleep(0.05)
    return True


def lose(cluster: EtcdCluster, index: int, harm: str) -> None:
    cluster.kill(index) if harm == "kill" else cluster.pause(index)


def bring_back(cluster: EtcdCluster, index: int, harm: str) -> None:
    cluster.start(index) if harm == "kill" else cluster.resume(index)


async def test_revisions_of_many_large_changes_come_whole_over_broken_connections(
    settings: EtcdSettings,
) -> None:
    """etcd sends such history in fragments, which may part the changes of one revision."""
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(Relay(one)) for one in settings.endpoints]
        way = replace(settings, endpoints=tuple(relay.endpoint for relay in relays))
        store = await stack.enter_async_context(connected(way))
        begin = await store.put("begin", b"1")
        for number in range(6):
            await put_two(settings, f"large/{number}")
        seen: list[Versioned] = []
        watch = store.watch("large/", after_revision=begin.revision)
        async with asyncio.timeout(LIMIT_S), aclosing(watch) as changes:
            async for change in changes:
                seen.append(change)
                for relay in relays:
                    relay.break_connections()
                if len(seen) == 12:
                    break
    assert [event.key for event in seen] == [f"large/{n}/{half}" for n in range(6) for half in "ab"]
    assert [event.revision - begin.revision for event in seen] == [
        n for n in range(1, 7) for _ in "ab"
    ]
    assert {len(event.value) for event in seen} == {LARGE_BYTES}


async def put_two(settings: EtcdSettings, key: str) -> None:
    """Write two keys in one revision, as another program might."""
    puts = [
        pb.PutRequest(key=f"{settings.namespace}{key}/{half}".encode(), value=b"x" * LARGE_BYTES)
        for half in "ab"
    ]
    async with grpc.aio.insecure_channel(settings.endpoints[0], options=OPTIONS) as channel:
        txn = channel.unary_unary(
            "/etcdserverpb.KV/Txn",
            request_serializer=pb.TxnRequest.SerializeToString,
            response_deserializer=pb.TxnResponse.FromString,
        )
        await txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))


async def test_namespaces_of_one_cluster_see_nothing_of_each_other(settings: EtcdSettings) -> None:
    other = replace(settings, namespace=f"{settings.namespace[:-1]}x/")
    async with connected(settings) as ours, connected(other) as theirs:
        begin = await ours.put("a", b"1")
        await theirs.put("a", b"2")
        await theirs.put("b", b"2")
        assert await theirs.acquire("claims/1", "p", ttl_s=LIMIT_S, value=b"{}")
        assert await ours.acquire("claims/1", "q", ttl_s=LIMIT_S, value=b"{}")
        assert [fact.value for fact in await ours.read_prefix("")] == [b"1", b"{}"]
        async with aclosing(ours.watch("", after_revision=begin.revision)) as changes:
            assert (await anext(changes)).key == "lease/claims/1"


async def test_a_holder_of_two_lines_is_refused(settings: EtcdSettings) -> None:
    async with connected(settings) as store:
        with pytest.raises(Rejected):
            await store.acquire("claims/1", "p\nq", ttl_s=LIMIT_S, value=b"{}")


async def test_a_client_without_the_right_certificates_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("tls")
    with EtcdCluster(folder / "etcd", tls=True) as cluster:
        good = cluster.settings()
        assert good.tls is not None
        by_name = tuple(one.replace("127.0.0.1", "localhost") for one in good.endpoints)
        async with connected(replace(good, endpoints=by_name)) as store:
            await store.put("a", b"1")
        stranger = make_certificates(folder / "stranger")
        not_theirs = EtcdTls(good.tls.ca, stranger.cert, stranger.key)
        for tls in (EtcdTls(good.tls.ca), replace(good.tls, ca=stranger.ca), not_theirs):
            async with connected(replace(good, tls=tls)) as store:
                with pytest.raises(Transient):
                    await store.read("a")
