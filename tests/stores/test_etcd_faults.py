"""F8: members of a real etcd cluster die, pause, part and compact, while clients work on.

Seeded: HONGBAO_SEED repeats a run.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace

import pytest
from hongbao.adapters.etcd import EtcdCoordination
from hongbao.domain.errors import Ambiguous, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.lease import MARGIN_SHARE
from hongbao.shards.ports import Versioned
from hongbao.shards.ranges import FIRST_NUMBER, take_range

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.sim.dice import Dice
from tests.stores import etcd_history
from tests.stores.etcd_load import LEASE_TTL_S, Load, connected
from tests.stores.relay import Relay
from tests.waiting import until

BACK_S_MAX = 25.0
"""From the loss of a member to the next answer. An idle machine needs 1–3 s, for an election of one
or two rounds (each test prints its own figure); a busy one is only asked to come back at all."""
CUT_S = 2.0
SHARD = ShardKey("streams", 1)
TURNS_MAX = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), 3) as made:
        yield made


@pytest.fixture
def dice(request: pytest.FixtureRequest, seed: int) -> Dice:
    """Give the draws of one test."""
    return Dice(seed ^ sum(request.node.name.encode()))


@asynccontextmanager
async def loaded(cluster: EtcdCluster, dice: Dice, *, early_s: float = 0.0) -> AsyncIterator[Load]:
    """Run the clients around a fault, with calm before and behind it; then check all they saw.

    `early_s`: how long two may rely on a lease that etcd gave away early.
    """
    load = Load(cluster.settings(f"{secrets.token_hex(6)}/"), dice)
    try:
        await load.start()
        await asyncio.sleep(dice.between(0.8, 1.5))
        yield load
        await asyncio.to_thread(cluster.wait_until_serving)
        await asyncio.sleep(2.0)
        await load.until_judgeable()
        check(load, *await load.finish(), early_s=early_s)
    finally:
        await load.close()


def check(load: Load, final: int, there: list[Versioned], *, early_s: float = 0.0) -> None:
    """Judge a finished history, and show its size."""
    history = load.history
    gap_s = etcd_history.longest_gap_s(history.answered_at_s)
    print(
        f"{len(history.counted)} counted, {history.unknown} unknown, "
        f"{len(history.written)} written, {len(history.tenures)} tenures, gap {gap_s:.2f} s"
    )
    etcd_history.check_counter(final, history.counted, history.unknown)
    etcd_history.check_tenures(history.tenures, early_s=early_s)
    assert len(history.seen) >= 3
    truth = {event for seen in history.seen.values() for event in seen}
    for seen in history.seen.values():
        etcd_history.check_watch(seen, history.written, truth, history.compactions)
        etcd_history.check_final_state(seen, there)


async def test_the_leader_is_killed_and_comes_back(cluster: EtcdCluster, dice: Dice) -> None:
    async with loaded(cluster, dice) as load:
        for _ in range(2):
            leader = await asyncio.to_thread(cluster.leader)
            cluster.kill(leader)
            await asyncio.sleep(dice.between(2.5, 4.0))
            cluster.start(leader)
            await asyncio.to_thread(cluster.wait_until_serving)
    assert etcd_history.longest_gap_s(load.history.answered_at_s) < BACK_S_MAX


async def test_the_connected_member_is_killed(cluster: EtcdCluster, dice: Dice) -> None:
    async with loaded(cluster, dice) as load:
        for counter in load.counters:
            connected_to = cluster.endpoints.index(counter.endpoint)
            cluster.kill(connected_to)
            await asyncio.sleep(dice.between(1.0, 2.5))
            cluster.start(connected_to)
            await asyncio.to_thread(cluster.wait_until_serving)
    assert etcd_history.longest_gap_s(load.history.answered_at_s) < BACK_S_MAX


async def test_all_members_are_killed_and_restarted(cluster: EtcdCluster, dice: Dice) -> None:
    async with loaded(cluster, dice) as load:
        for index in cluster.running():
            cluster.kill(index)
        await asyncio.sleep(dice.between(0.1, 1.0))
        for index in range(3):
            cluster.start(index)
    assert etcd_history.longest_gap_s(load.history.answered_at_s) < BACK_S_MAX


async def test_one_member_after_the_other_is_paused(cluster: EtcdCluster, dice: Dice) -> None:
    """A paused member keeps its connections: only time limits tell.

    A leader that wakes revokes the leases that others renewed at the next leader (etcd's fault, see
    docs/stores.md). Their holder then stops by its own clock, at the latest.
    """
    async with loaded(cluster, dice, early_s=LEASE_TTL_S * (1 - MARGIN_SHARE)) as load:
        first = dice.below(3)
        for index in (await asyncio.to_thread(cluster.leader), first, (first + 1) % 3):
            cluster.pause(index)
            await asyncio.sleep(dice.between(3.0, 4.0))
            cluster.resume(index)
            await asyncio.sleep(dice.between(0.2, 1.0))
    assert etcd_history.longest_gap_s(load.history.answered_at_s) < BACK_S_MAX


async def test_the_quorum_is_lost_and_comes_back(cluster: EtcdCluster, dice: Dice) -> None:
    """R20: nobody heals it by hand, and every read, watch and lease of it is judged."""
    down_s = dice.between(4.0, 6.0)
    async with loaded(cluster, dice) as load:
        left = dice.below(3)
        for index in {0, 1, 2} - {left}:
            cluster.kill(index)
        await asyncio.sleep(down_s)
        for index in {0, 1, 2} - {left}:
            cluster.start(index)
    assert etcd_history.longest_gap_s(load.history.answered_at_s) < down_s + BACK_S_MAX


async def test_history_is_compacted_while_a_watcher_is_cut_off(
    cluster: EtcdCluster, dice: Dice
) -> None:
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    load = Load(settings, dice)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(load.close)
        relays = [await stack.enter_async_context(Relay(one)) for one in settings.endpoints]
        watcher = replace(settings, endpoints=tuple(relay.endpoint for relay in relays))
        await load.start([watcher])
        for _ in range(3):
            await asyncio.sleep(dice.between(0.5, 1.0))
            for relay in relays:
                relay.cut()
            await asyncio.sleep(CUT_S)
            load.history.compactions.append(await asyncio.to_thread(cluster.compact))
            for relay in relays:
                relay.heal()
        await asyncio.sleep(1.0)
        await load.until_judgeable()
        check(load, *await load.finish())
        cut_off, *others = load.history.seen.values()
        assert len(cut_off) < min(len(seen) for seen in others)


class Takers:
    """Take ranges of one sequence, each over connections of its own, until told to stop."""

    def __init__(self, stores: Sequence[EtcdCoordination]) -> None:
        self.taken: list[range] = []
        self._going = True
        self._tasks = [asyncio.create_task(self._take(store)) for store in stores]

    async def take_more(self, count: int) -> None:
        """Return when so many more were taken by whoever still can."""
        wanted = len(self.taken) + count
        await until(lambda: len(self.taken) >= wanted, f"{count} more ranges are taken")

    async def stop(self) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)

    async def _take(self, store: EtcdCoordination) -> None:
        while self._going:
            with suppress(Transient):
                self.taken.append(await take_range(store, SHARD, count=10))


async def test_no_number_of_a_sequence_is_given_twice_while_members_die_and_replies_are_lost(
    cluster: EtcdCluster,
) -> None:
    """One taker hears no replies, two lose the member that they are connected to."""
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    ends = settings.endpoints
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(ends[0]))
        ways = [(relay.endpoint,), *(ends[first:] + ends[:first] for first in range(3))]
        stores = [
            await stack.enter_async_context(connected(replace(settings, endpoints=way)))
            for way in ways
        ]
        takers = Takers(stores)
        for store in stores[1:3]:
            await takers.take_more(30)
            relay.lose_replies()
            await takers.take_more(30)
            relay.heal()
            index = ends.index(store.endpoint)
            cluster.kill(index)
            await takers.take_more(30)
            cluster.start(index)
            await asyncio.to_thread(cluster.wait_until_serving)
        await takers.stop()
        assert relay.lost_bytes
        numbers = [number for one in takers.taken for number in one]
        assert len(set(numbers)) == len(numbers)
        last = await take_range(stores[3], SHARD)
        assert last.start > max(numbers)
        skipped = last.start - FIRST_NUMBER - len(numbers)
        print(f"{len(takers.taken)} ranges, {skipped} numbers skipped")


@pytest.mark.parametrize("members", [1, 3])
async def test_a_write_whose_reply_is_lost_is_read_back(cluster: EtcdCluster, members: int) -> None:
    """The write is done once, its writer knows, and nobody sees it twice."""
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(settings.endpoints[0]))
        way = replace(settings, endpoints=(relay.endpoint, *settings.endpoints[1:members]))
        store = await stack.enter_async_context(connected(way))
        other = await stack.enter_async_context(connected(settings))
        for turn in range(TURNS_MAX):
            key = f"a{turn}"
            first = await store.put(key, b"1")
            relay.lose_replies()
            asyncio.get_running_loop().call_later(1.5, relay.heal)
            try:
                second = await store.compare_and_put(key, b"2", revision=first.revision)
            except Ambiguous:  # what happened could not be read in time: that tells nothing
                continue
            assert relay.lost_bytes
            assert second == await other.read(key) == Versioned(key, b"2", first.revision + 1)
            return
        raise AssertionError("nobody could say what happened each time")


async def take_one(store: EtcdCoordination, key: str, *, after: int) -> Versioned:
    """Return the next change of a key."""
    async with aclosing(store.watch(key, after_revision=after)) as changes:
        return await anext(changes)


async def test_a_write_that_someone_else_has_overtaken_is_still_known(
    cluster: EtcdCluster,
) -> None:
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(settings.endpoints[0]))
        store = await stack.enter_async_context(
            connected(replace(settings, endpoints=(relay.endpoint,)))
        )
        other = await stack.enter_async_context(connected(settings))
        for turn in range(TURNS_MAX):
            key = f"a{turn}"
            first = await store.put(key, b"same")
            relay.lose_replies()
            writing = asyncio.create_task(
                store.compare_and_put(key, b"same", revision=first.revision)
            )
            await take_one(other, key, after=first.revision)
            try:
                # All at once: one after the other might take longer than a write is tried.
                await asyncio.gather(*(other.put(key, b"same") for _ in range(8)))
                relay.heal()
                assert await writing == Versioned(key, b"same", first.revision + 1)
                return
            except Ambiguous:  # the replies were away for too long: that tells nothing
                relay.heal()
                await asyncio.gather(writing, return_exceptions=True)
        raise AssertionError("the replies were away for too long each time")


async def test_a_write_that_never_arrived_and_came_too_late_was_not_done(
    cluster: EtcdCluster,
) -> None:
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(settings.endpoints[0]))
        store = await stack.enter_async_context(
            connected(replace(settings, endpoints=(relay.endpoint,)))
        )
        other = await stack.enter_async_context(connected(settings))
        for turn in range(TURNS_MAX):
            key = f"a{turn}"
            first = await store.put(key, b"same")
            relay.cut()
            writing = asyncio.create_task(
                store.compare_and_put(key, b"same", revision=first.revision)
            )
            await asyncio.sleep(0.1)
            last = await other.put(key, b"same")
            relay.heal()
            try:
                written = await writing
            except Ambiguous:  # what happened could not be read in time: that tells nothing
                continue
            assert written is None
            assert await other.read(key) == last
            return
        raise AssertionError("nobody could say what happened each time")


async def test_a_write_that_nobody_answers_is_ambiguous_or_not_done(
    cluster: EtcdCluster,
) -> None:
    settings = cluster.settings(f"{secrets.token_hex(6)}/")
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(settings.endpoints[0]))
        store = await stack.enter_async_context(
            connected(replace(settings, endpoints=(relay.endpoint,)))
        )
        first = await store.put("a", b"1")
        relay.lose_replies()
        with pytest.raises(Ambiguous):
            await store.compare_and_put("a", b"2", revision=first.revision)
        nobody = replace(settings, endpoints=("127.0.0.1:1",))
        lost = await stack.enter_async_context(connected(nobody))
        with pytest.raises(Transient) as refused:
            await lost.compare_and_put("a", b"2", revision=first.revision)
        assert not isinstance(refused.value, Ambiguous)
