"""What etcd refused and did nevertheless, and what it did twice: neither fools the adapter."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import pytest
from hongbao.adapters.etcd import EtcdCoordination
from hongbao.domain.errors import Ambiguous, Transient
from hongbao.shards.ports import Versioned

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stalls import Stalls, judged
from tests.stores.etcd_load import connected
from tests.stores.retold import Retold

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests"
LOST = grpc.StatusCode.UNAVAILABLE, "the reply was lost"
REFUSED = grpc.StatusCode.FAILED_PRECONDITION, "not now"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@dataclass(frozen=True)
class Scene:
    """Is an adapter behind a teller of untruths, and another with a plain way to etcd."""

    store: EtcdCoordination
    other: EtcdCoordination
    retold: Retold


@asynccontextmanager
async def opened_scene(cluster: EtcdCluster) -> AsyncIterator[Scene]:
    """Give a scene with a namespace of its own."""
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    async with AsyncExitStack() as stack:
        retold = await stack.enter_async_context(Retold(cluster.endpoints[0]))
        way = replace(settings, endpoints=(retold.endpoint,))
        store = await stack.enter_async_context(connected(way))
        other = await stack.enter_async_context(connected(settings))
        yield Scene(store, other, retold)


def judged_scene(story: Callable[[Scene], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make a test of a story; told anew when it failed while the machine stood still (`judged`).

    An attempt that took a second is given up, and its planned answer goes to nobody.
    """

    async def test(cluster: EtcdCluster, stalls: Stalls) -> None:
        async def once(_: int) -> None:
            async with opened_scene(cluster) as scene:
                try:
                    await story(scene)
                except (Transient, pytest.fail.Exception) as error:
                    raise AssertionError(str(error)) from error

        await judged(stalls, once)

    test.__doc__ = story.__doc__
    return test


@judged_scene
async def test_a_write_that_crossed_the_quota_and_was_done_is_known(scene: Scene) -> None:
    for key, begin in (("a", 0), ("b", (await scene.store.put("b", b"1")).revision)):
        scene.retold.plan("Txn", *FULL, done=True)
        written = await scene.store.compare_and_put(key, b"2", revision=begin)
        assert written is not None
        assert written == await scene.other.read(key) == Versioned(key, b"2", written.revision)


@judged_scene
async def test_a_write_that_a_full_etcd_did_not_do_is_surely_not_done(scene: Scene) -> None:
    first = await scene.store.put("a", b"1")
    scene.retold.plan("Txn", *FULL, done=False)
    with pytest.raises(Transient) as refused:
        await scene.store.compare_and_put("a", b"2", revision=first.revision)
    assert not isinstance(refused.value, Ambiguous)
    assert await scene.other.read("a") == first


@judged_scene
async def test_whether_a_full_etcd_created_what_is_not_there_is_not_guessed(scene: Scene) -> None:
    """It may have been deleted meanwhile."""
    scene.retold.plan("Txn", *FULL, done=False)
    with pytest.raises(Ambiguous):
        await scene.store.compare_and_put("a", b"2", revision=0)


@judged_scene
async def test_after_a_lost_try_a_full_etcd_leaves_a_write_in_doubt(scene: Scene) -> None:
    first = await scene.store.put("a", b"1")
    scene.retold.plan("Txn", *LOST, done=False)
    scene.retold.plan("Txn", *FULL, done=False)
    with pytest.raises(Ambiguous):
        await scene.store.compare_and_put("a", b"2", revision=first.revision)


@judged_scene
async def test_a_write_that_a_busy_etcd_did_not_take_is_surely_not_done(scene: Scene) -> None:
    scene.retold.plan("Txn", *BUSY, done=False)
    with pytest.raises(Transient) as refused:
        await scene.store.compare_and_put("a", b"1", revision=0)
    assert not isinstance(refused.value, Ambiguous)


@judged_scene
async def test_a_holder_that_asks_again_keeps_its_lease_when_the_old_one_is_twice_revoked(
    scene: Scene,
) -> None:
    assert await scene.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    scene.retold.plan("LeaseRevoke", *LOST, done=True)
    lease = await scene.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    assert lease is not None
    assert (await scene.other.read("lease/claims/1")).revision == lease.epoch
    assert await scene.store.renew(lease)


@judged_scene
async def test_a_holder_that_asks_again_keeps_its_lease_when_the_old_one_cannot_be_revoked(
    scene: Scene,
) -> None:
    first = await scene.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    assert first is not None
    for _ in range(1000):
        scene.retold.plan("LeaseRevoke", *LOST, done=False)
    lease = await scene.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    assert lease is not None
    assert await scene.other.renew(lease)
    assert not await scene.store.renew(first)


@judged_scene
async def test_a_release_whose_reply_was_lost_has_released(scene: Scene) -> None:
    lease = await scene.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    assert lease is not None
    scene.retold.plan("LeaseRevoke", *LOST, done=True)
    await scene.store.release(lease)
    assert await scene.other.acquire("claims/1", "q", ttl_s=30, value=b"{}")


@judged_scene
async def test_a_release_that_failed_has_forgotten_its_lease(scene: Scene) -> None:
    """It asks etcd again, which knows by then that another holds the lease: it revokes nothing."""
    lease = await scene.store.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    assert lease is not None
    scene.retold.plan("LeaseRevoke", *REFUSED, done=False)
    with pytest.raises(Transient):
        await scene.store.release(lease)
    assert await scene.other.acquire("claims/1", "p", ttl_s=30, value=b"{}")
    revokes = scene.store.writes.by_purpose()["lease", "revoke"]
    await scene.store.release(lease)
    assert scene.store.writes.by_purpose()["lease", "revoke"] == revokes
