"""The contract of Coordination, on every adapter (F8)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path

import pytest
from hongbao.domain.errors import Ambiguous, Exhausted, Rejected, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.ports import VALUE_BYTES_MAX, Lease, Versioned
from hongbao.shards.ranges import FIRST_NUMBER, take_range

from tests.contracts.conftest import EMBEDDED, embedded_contract
from tests.contracts.etcd_contracts import ETCD, make_contract, start_cluster
from tests.contracts.races import RACES_MAX, raced
from tests.contracts.store_contracts import Contract
from tests.servers.etcd import EtcdCluster
from tests.waiting import LIMIT_S

LONG_S = 30.0
FACTORS = (3, 6, 12, 24)
"""TTLs to try one after the other, in shortest ones: the first where the machine keeps up."""

Clusters = Callable[[str], EtcdCluster | None]


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """Start each etcd cluster when it is first asked for."""
    with ExitStack() as stack:
        started: dict[str, EtcdCluster | None] = {}

        def cluster_of(name: str) -> EtcdCluster | None:
            if name not in started:
                folder = tmp_path_factory.mktemp(name)
                started[name] = stack.enter_context(start_cluster(name, folder))
            return started[name]

        yield cluster_of


@pytest.fixture(params=[*EMBEDDED, *ETCD])
async def contract(
    request: pytest.FixtureRequest, tmp_path: Path, clusters: Clusters
) -> AsyncIterator[Contract]:
    if request.param in EMBEDDED:
        async with embedded_contract(request, tmp_path) as made:
            yield made
        return
    made = make_contract(clusters(request.param), request.node.name)
    yield made
    await made.close()


async def take(contract: Contract, count: int, *, after: int, prefix: str = "") -> list[Versioned]:
    """Return the next `count` changes of a watch over the test's own names."""
    seen: list[Versioned] = []
    watch = contract.store.watch(contract.fact(prefix), after_revision=after)
    async with asyncio.timeout(LIMIT_S), aclosing(watch) as changes:
        async for change in changes:
            seen.append(change)
            if len(seen) == count:
                break
    return seen


async def take_until(contract: Contract, end: Versioned, *, after: int) -> list[Versioned]:
    """Return the changes of a watch up to one that is known."""
    seen: list[Versioned] = []
    watch = contract.store.watch(contract.fact(""), after_revision=after)
    async with asyncio.timeout(LIMIT_S), aclosing(watch) as changes:
        async for change in changes:
            seen.append(change)
            if change == end:
                break
    return seen


async def acquire(
    contract: Contract, holder: str, *, ttl_s: float = 30.0, name: str = "claims/1"
) -> Lease | None:
    lease: Lease | None = await contract.store.acquire(
        contract.fact(name), holder, ttl_s=ttl_s, value=b"at " + holder.encode()
    )
    return lease


async def acquire_later(
    contract: Contract, holder: str, *, ttl_s: float = 30.0, behind_s: float = 0.0
) -> Lease:
    """Take a lease once it is free, which takes `behind_s` and what events need."""
    give_up_s = now_s() + LIMIT_S + behind_s
    while now_s() < give_up_s:
        with suppress(Transient):  # who is in doubt asks again, as an owner does
            lease = await acquire(contract, holder, ttl_s=ttl_s)
            if lease is not None:
                return lease
        await asyncio.sleep(0.02)
    raise AssertionError("the lease was never free")


async def is_held(contract: Contract, *, since_s: float, ttl_s: float) -> bool:
    """Tell whether a stranger is refused; it must be, before the lease can have run out.

    `since_s`: when its holder last asked for it. Behind that a machine that stood still tells
    nothing, and the stranger lets go of what it got.
    """
    stranger = await acquire(contract, "stranger", ttl_s=contract.ttl_s)
    if stranger is not None:
        assert contract.gives_early or now_s() - since_s >= ttl_s, "two held one lease"
        await contract.store.release(stranger)
    return stranger is None


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def test_a_fact_is_read_with_the_revision_that_wrote_it(contract: Contract) -> None:
    written = await contract.store.put(contract.fact("a"), b"1")
    assert await contract.store.read(contract.fact("a")) == written
    assert written.value == b"1"
    assert await contract.store.read(contract.fact("b")) == Versioned(contract.fact("b"), b"", 0)


async def test_revisions_rise_over_all_keys_and_a_restart(contract: Contract) -> None:
    first = await contract.store.put(contract.fact("a"), b"1")
    second = await contract.store.put(contract.fact("b"), b"1")
    await contract.restart()
    third = await contract.store.put(contract.fact("a"), b"1")
    assert first.revision < second.revision < third.revision


async def test_compare_and_put_writes_only_at_the_expected_revision(contract: Contract) -> None:
    key = contract.fact("a")
    first = await contract.store.compare_and_put(key, b"1", revision=0)
    assert first is not None
    assert await contract.store.compare_and_put(key, b"2", revision=0) is None
    assert await contract.store.compare_and_put(key, b"2", revision=first.revision + 1) is None
    second = await contract.store.compare_and_put(key, b"2", revision=first.revision)
    assert second is not None
    assert await contract.store.read(key) == second


async def test_no_update_is_lost_when_many_compare_and_put(contract: Contract) -> None:
    key, in_doubt = contract.fact("counter"), 0

    async def add(times: int) -> None:
        nonlocal in_doubt
        while times:
            current = await contract.store.read(key)
            value = b"%d" % (int(current.value or b"0") + 1)
            try:
                if await contract.store.compare_and_put(key, value, revision=current.revision):
                    times -= 1
            except Ambiguous:  # where etcd took longer than one try
                in_doubt += 1

    await asyncio.gather(*(add(5) for _ in range(6)))
    assert 30 <= int((await contract.store.read(key)).value) <= 30 + in_doubt


async def test_of_racing_creators_one_wins_and_the_others_know(contract: Contract) -> None:
    for race in range(RACES_MAX):
        key = contract.fact(f"a/{race}")
        written, in_doubt = await raced(
            [contract.store.compare_and_put(key, b"%d" % n, revision=0) for n in range(8)]
        )
        there = await contract.store.read(key)
        assert written == [there] or (in_doubt and not written)
        if not in_doubt:
            return
    raise AssertionError("somebody was in doubt in each race")


async def test_racing_takers_of_a_sequence_get_ranges_that_never_meet(contract: Contract) -> None:
    shard = ShardKey(contract.fact("streams"), 1)

    first = await take_range(contract.store, shard, count=10)  # who races to create it may skip

    async def take_some() -> list[range]:
        return [await take_range(contract.store, shard, count=10) for _ in range(5)]

    taken = [one for some in await asyncio.gather(*(take_some() for _ in range(4))) for one in some]
    starts = range(FIRST_NUMBER, FIRST_NUMBER + 210, 10)
    assert sorted([first, *taken], key=lambda one: one.start) == [
        range(one, one + 10) for one in starts
    ]


async def test_after_a_restart_a_sequence_goes_on_above_its_last_range(contract: Contract) -> None:
    shard = ShardKey(contract.fact("streams"), 1)
    before = await take_range(contract.store, shard)
    await contract.restart()
    assert (await take_range(contract.store, shard)).start == before.stop


async def test_of_many_puts_to_one_key_each_is_a_change_of_its_own(contract: Contract) -> None:
    start = await contract.store.put(contract.fact("a"), b"first")
    puts = (contract.store.put(contract.fact("a"), b"%d" % number) for number in range(8))
    written = sorted(await asyncio.gather(*puts), key=lambda fact: fact.revision)
    assert await take(contract, 8, after=start.revision) == written
    assert await contract.store.read(contract.fact("a")) == written[-1]


async def test_a_value_at_the_limit_is_kept_and_one_byte_more_is_refused(
    contract: Contract,
) -> None:
    value = b"\nline\0" * (VALUE_BYTES_MAX // 6 + 1)
    start = await contract.store.put(contract.fact("start"), b"0")
    written = await contract.store.put(contract.fact("a"), value[:VALUE_BYTES_MAX])
    assert await contract.store.read(contract.fact("a")) == written
    assert await take(contract, 1, after=start.revision) == [written]
    assert written.value == value[:VALUE_BYTES_MAX]
    with pytest.raises(Exhausted):
        await contract.store.put(contract.fact("a"), value[: VALUE_BYTES_MAX + 1])


async def test_a_prefix_of_many_large_facts_is_read_whole(contract: Contract) -> None:
    names = [contract.fact(f"many/{number:04}") for number in range(300)]
    await asyncio.gather(*(contract.store.put(name, b"x" * 20_000) for name in names))
    found = await contract.store.read_prefix(contract.fact("many/"))
    assert [fact.key for fact in found] == names
    assert {len(fact.value) for fact in found} == {20_000}


async def test_a_deleted_fact_is_absent_and_can_be_created_again(contract: Contract) -> None:
    key = contract.fact("a")
    await contract.store.put(key, b"1")
    await contract.store.delete(key)
    await contract.store.delete(key)
    assert (await contract.store.read(key)).revision == 0
    assert await contract.store.read_prefix(key) == []
    assert await contract.store.compare_and_put(key, b"2", revision=0) is not None


async def test_a_prefix_is_read_in_key_order(contract: Contract) -> None:
    for name in ("b/2", "a/1", "b/1", "c/1"):
        await contract.store.put(contract.fact(name), name.encode())
    found = await contract.store.read_prefix(contract.fact("b/"))
    assert [fact.value for fact in found] == [b"b/1", b"b/2"]


async def test_an_empty_value_is_refused(contract: Contract) -> None:
    with pytest.raises(Exhausted):
        await contract.store.put(contract.fact("a"), b"")


async def test_a_watch_yields_every_change_once_and_in_order(contract: Contract) -> None:
    start = await contract.store.put(contract.fact("start"), b"0")

    async def change(writer: int) -> None:
        for number in range(20):
            await contract.store.put(contract.fact(f"{writer}"), b"%d" % number)
        await contract.store.delete(contract.fact(f"{writer}"))

    watching = asyncio.create_task(take(contract, 63, after=start.revision))
    await asyncio.gather(*(change(writer) for writer in range(3)))
    seen = await watching
    assert [event.revision for event in seen] == sorted({event.revision for event in seen})
    for writer in range(3):
        own = [event.value for event in seen if event.key == contract.fact(f"{writer}")]
        assert own == [*(b"%d" % number for number in range(20)), b""]


async def test_a_watch_goes_on_where_another_one_ended(contract: Contract) -> None:
    """F8: a watch that was cut off resumes with no lost and no doubled event."""
    start = await contract.store.put(contract.fact("start"), b"0")
    for number in range(10):
        await contract.store.put(contract.fact("a"), b"%d" % number)
    first = await take(contract, 4, after=start.revision)
    rest = await take(contract, 6, after=first[-1].revision)
    assert [event.value for event in first + rest] == [b"%d" % number for number in range(10)]


async def test_a_watch_survives_a_restart_without_loss_or_duplicates(contract: Contract) -> None:
    """F8."""
    start = await contract.store.put(contract.fact("start"), b"0")
    await contract.store.put(contract.fact("a"), b"before")
    if contract.store.__class__.__name__ == "LmdbStore":
        await contract.restart()
        watching = asyncio.create_task(take(contract, 2, after=start.revision))
    else:
        watching = asyncio.create_task(take(contract, 2, after=start.revision))
        await asyncio.sleep(0.05)
        await contract.restart()
    await contract.store.put(contract.fact("a"), b"after")
    assert [event.value for event in await watching] == [b"before", b"after"]


async def test_a_watch_that_was_cut_off_over_lost_history_misses_no_last_change(
    contract: Contract,
) -> None:
    """F8: of what lies far back, a store may keep only the last change of each key."""
    store, fact = contract.store, contract.fact
    for name in ("kept", "changed", "deleted", "deleted and back"):
        await store.put(fact(name), b"old")
    start = await store.read(fact("deleted and back"))
    for number in range(3):
        await store.put(fact("changed"), b"new %d" % number)
    await store.delete(fact("deleted"))
    await store.delete(fact("deleted and back"))
    await store.put(fact("deleted and back"), b"new")
    await contract.forget_history()
    end = await store.put(fact("end"), b"1")
    seen = await take_until(contract, end, after=start.revision)
    last = {event.key: event.value for event in seen}
    assert last == {
        fact("changed"): b"new 2",
        fact("deleted"): b"",
        fact("deleted and back"): b"new",
        fact("end"): b"1",
    }
    assert len({(event.key, event.revision) for event in seen}) == len(seen)
    assert [event.revision for event in seen] == sorted(event.revision for event in seen)


async def test_a_deletion_that_was_seen_does_not_come_again_from_lost_history(
    contract: Contract,
) -> None:
    """F8."""
    start = await contract.store.put(contract.fact("start"), b"0")
    await contract.store.put(contract.fact("a"), b"1")
    await contract.store.delete(contract.fact("a"))
    seen = await take(contract, 2, after=start.revision)
    other = await contract.store.put(contract.fact("b"), b"1")
    await contract.forget_history()
    end = await contract.store.put(contract.fact("end"), b"1")
    assert await take_until(contract, end, after=seen[-1].revision) == [other, end]


async def test_a_watch_sees_only_its_prefix(contract: Contract) -> None:
    start = await contract.store.put(contract.fact("start"), b"0")
    await contract.store.put(contract.fact("b/1"), b"b")
    await contract.store.put(contract.fact("a/1"), b"a")
    seen = await take(contract, 1, after=start.revision, prefix="a/")
    assert [event.value for event in seen] == [b"a"]


async def test_a_lease_is_held_by_one(contract: Contract) -> None:
    for race in range(RACES_MAX):
        name = f"claims/{race}"
        held, in_doubt = await raced(
            [acquire(contract, f"p{number}", name=name) for number in range(8)]
        )
        fact = await contract.store.read(f"lease/{contract.fact(name)}")
        assert [fact.value] == [b"at " + one.holder.encode() for one in held] or (
            in_doubt and not held
        )
        if not in_doubt:
            return
    raise AssertionError("somebody was in doubt in each race")


async def test_a_released_lease_is_free_at_once_and_its_value_gone(contract: Contract) -> None:
    lease = await acquire(contract, "p1")
    assert lease is not None
    await contract.store.release(lease)
    await contract.store.release(lease)
    assert (await contract.store.read(f"lease/{lease.name}")).revision == 0
    assert await contract.store.renew(lease) is False
    assert await acquire(contract, "p2") is not None


async def test_an_expired_lease_goes_to_the_next_with_a_higher_epoch(contract: Contract) -> None:
    asked_s = now_s()
    first = await acquire(contract, "p1", ttl_s=contract.ttl_s)
    assert first is not None
    await is_held(contract, since_s=asked_s, ttl_s=contract.ttl_s)
    second = await acquire_later(contract, "p2")
    assert second.epoch > first.epoch
    assert await contract.store.renew(first) is False
    await contract.store.release(first)
    assert await contract.store.renew(second) is True


async def test_of_two_that_race_for_an_expiring_lease_one_gets_it_at_a_time(
    contract: Contract,
) -> None:
    first = await acquire(contract, "p0", ttl_s=contract.ttl_s)
    assert first is not None

    async def wait_and_hold(holder: str) -> Lease:
        lease = await acquire_later(contract, holder, ttl_s=LONG_S)
        assert await acquire(contract, "stranger") is None
        await contract.store.release(lease)
        return lease

    taken = await asyncio.gather(*(wait_and_hold(f"p{number}") for number in (1, 2)))
    epochs = sorted(lease.epoch for lease in taken)
    assert first.epoch < epochs[0] < epochs[1]
    assert await contract.store.renew(first) is False


async def test_a_lost_lease_takes_nothing_from_its_successor(contract: Contract) -> None:
    """F7: the slow one wakes after the take-over; neither renewal nor release does harm."""
    first = await acquire(contract, "p1")
    assert first is not None
    await contract.store.release(first)
    second = await acquire(contract, "p1")
    assert second is not None
    await contract.store.release(first)
    assert await contract.store.renew(first) is False
    assert await contract.store.renew(second) is True
    assert (await contract.store.read(f"lease/{second.name}")).revision == second.epoch


async def test_a_renewed_lease_outlives_its_ttl(contract: Contract) -> None:
    """A machine that stands still for a TTL tells nothing: then once more, with a longer one."""
    for factor in FACTORS:
        ttl_s = factor / 2 * contract.ttl_s
        if await renew_for_long(contract, ttl_s):
            return
    raise AssertionError("no renewal came in time")


async def renew_for_long(contract: Contract, ttl_s: float) -> bool:
    """Hold a lease for twice its TTL; False when it ran out because we came too late."""
    asked_s = now_s()
    lease = await acquire_later(contract, "p1", ttl_s=ttl_s)
    for _ in range(6):
        await asyncio.sleep(ttl_s / 3)
        again_s = now_s()
        if not await contract.store.renew(lease):
            early = contract.gives_early
            assert early or now_s() - asked_s >= ttl_s, "a renewal in time was refused"
            return False
        asked_s = again_s
    return await is_held(contract, since_s=asked_s, ttl_s=ttl_s)


async def test_a_holder_that_asks_again_gets_a_new_epoch_and_loses_the_old_one(
    contract: Contract,
) -> None:
    first = await acquire(contract, "p1")
    second = await acquire(contract, "p1")
    assert first is not None
    assert second is not None
    assert second.epoch > first.epoch
    assert await contract.store.renew(first) is False
    assert await contract.store.renew(second) is True


async def test_a_watch_sees_a_lease_come_and_expire(contract: Contract) -> None:
    start = await contract.store.put(contract.fact("start"), b"0")
    lease = await acquire(contract, "p1", ttl_s=contract.ttl_s)
    assert lease is not None
    seen: list[Versioned] = []
    async with asyncio.timeout(LIMIT_S):
        async for change in contract.store.watch(
            f"lease/{contract.prefix}", after_revision=start.revision
        ):
            seen.append(change)
            if len(seen) == 2:
                break
    assert [event.value for event in seen] == [b"at p1", b""]
    assert seen[0].revision == lease.epoch


async def test_after_a_restart_a_lease_gets_its_full_ttl_and_epochs_still_rise(
    contract: Contract,
) -> None:
    """A holder that never noticed the restart keeps its lease; nobody gets it early.

    A restart that took as long as the lease tells nothing: then once more, with a longer one.
    """
    for factor in FACTORS:
        ttl_s = factor * contract.ttl_s
        asked_s = now_s()
        first = await acquire_later(contract, "p1", ttl_s=ttl_s)
        await asyncio.sleep(ttl_s * 2 / 3)
        restarts_s = now_s()
        if restarts_s - asked_s >= ttl_s:  # it may have run out before
            continue
        await contract.restart()
        held = await is_held(contract, since_s=restarts_s, ttl_s=ttl_s)
        renewed = await contract.store.renew(first)
        if held and renewed:
            second = await acquire_later(contract, "p2", behind_s=ttl_s)
            assert second.epoch > first.epoch
            return
        assert contract.gives_early or now_s() - restarts_s >= ttl_s, "the holder lost its lease"
    raise AssertionError("no restart was over within a TTL, or the lease was lost each time")


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 1e9, float("nan")])
async def test_a_senseless_ttl_is_refused(contract: Contract, ttl_s: float) -> None:
    with pytest.raises(Rejected):
        await acquire(contract, "p1", ttl_s=ttl_s)
