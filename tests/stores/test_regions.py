"""F10 on three stores: regions split, leaders move, their store is killed, PD restarts.

Owners of three shards append meanwhile, on TiKV's raw API. Everything that was acknowledged, read
or derived is judged by appends.py; appends go on within five seconds of each kill.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from hongbao.adapters.tikv import TikvStore
from hongbao.domain.errors import Transient
from hongbao.shards.block import ShardKey

from tests.servers import binaries
from tests.servers.tikv import TikvCluster
from tests.sim.dice import Dice
from tests.stalls import Stalls
from tests.stores.appends import PLANE, Appends, Writers, check_appends, check_resumed, resumed_s
from tests.waiting import LIMIT_S, until

SHARDS = (1_000_000_000, 2_000_000_000, 3_000_000_000)
"""Their numbers differ in the first digit: the test store splits only behind eight bytes."""
BACK_S_MAX = 5.0
EVER_S_MAX = 20.0
"""A server or we may starve once on a busy machine, but not each time."""
KILLS = 3
DOWN_S, PD_DOWN_S = 3.0, 0.5  # the test store asks PD for a timestamp at each write
ANSWERS_MIN = 300

_namespaces = map(bytes, ([letter] for letter in itertools.count(ord("a"))))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=binaries.why_not() or ""),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TikvCluster]:
    with TikvCluster(tmp_path_factory.mktemp("tikv"), stores=3) as made:
        yield made


@pytest.fixture
async def namespace() -> bytes:
    return next(_namespaces)


@pytest.fixture
async def stores(cluster: TikvCluster, namespace: bytes) -> AsyncIterator[dict[int, TikvStore]]:
    """Give a client to each shard, as owners in processes of their own have."""
    made = {shard: TikvStore(cluster.pd_endpoints, namespace=namespace) for shard in SHARDS}
    yield made
    for store in made.values():
        await store.close()


async def play(
    stores: dict[int, TikvStore],
    dice: Dice,
    stalls: Stalls,
    trouble: Callable[[], Awaitable[dict[str, float]]],
) -> Appends:
    """Append while there is trouble, which tells when it broke what; judge everything."""
    writers = Writers(dict(stores), dice)
    await writers.start()
    await asyncio.sleep(1)
    faults = await trouble()
    await asyncio.sleep(1)
    await until(lambda: len(writers.appends.answers) > ANSWERS_MIN, "enough appends to judge")
    await writers.finish()
    appends = writers.appends
    for name, broke_s in faults.items():
        back = ", ".join(f"{each:.2f}" for each in resumed_s(appends, broke_s).values())
        print(f"{name}: appends went on after {back} s")
    print(f"{len(appends.answers)} answers, take-overs {appends.takeovers.total()}")
    assert await check_appends(stores[SHARDS[0]], appends) == []
    late = [
        name
        for name, broke_s in faults.items()
        if check_resumed(appends, {name: broke_s}, BACK_S_MAX, stalls.within_s)
    ]
    assert len(late) <= len(faults) // 3, f"appends went on late after {late}"
    assert check_resumed(appends, faults, EVER_S_MAX, stalls.within_s) == []
    return appends


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def test_appends_go_on_while_regions_split(
    cluster: TikvCluster, stores: dict[int, TikvStore], namespace: bytes, seed: int, stalls: Stalls
) -> None:
    """F10."""
    dice = Dice(seed)

    async def split() -> dict[str, float]:
        faults = {}
        keys = [namespace + key for key in (b"applied", b"log/t/1", b"log/t/2", b"log/t/3", b"toy")]
        before = len(cluster.region_leaders())
        while keys:
            key = keys.pop(dice.below(len(keys)))
            await asyncio.sleep(dice.between(0.1, 0.6))
            faults[f"split before {key!r}"] = now_s()
            await asyncio.to_thread(cluster.split, key)
        assert len(await asyncio.to_thread(cluster.region_leaders)) >= before + 4
        return faults

    await play(stores, dice, stalls, split)


async def test_appends_go_on_while_leaders_move(
    cluster: TikvCluster, stores: dict[int, TikvStore], namespace: bytes, seed: int, stalls: Stalls
) -> None:
    """F10: NotLeader, at any moment of an append."""
    dice = Dice(seed)

    async def move() -> dict[str, float]:
        faults = {}
        for number in range(12):
            await asyncio.sleep(dice.between(0.05, 0.5))
            key = namespace + ShardKey(PLANE, dice.choose(SHARDS)).log(0)
            leader = await asyncio.to_thread(cluster.leader_of, key)
            faults[f"leader moved, {number}"] = now_s()
            target = (leader + 1 + dice.below(2)) % cluster.stores
            await asyncio.to_thread(cluster.transfer_leader, key, target)
        return faults

    await play(stores, dice, stalls, move)


async def test_appends_go_on_after_the_leaders_store_is_killed(
    cluster: TikvCluster, stores: dict[int, TikvStore], namespace: bytes, seed: int, stalls: Stalls
) -> None:
    """F10: kill -9 and restart, three times; a create under way is ambiguous and read back."""
    dice = Dice(seed)

    async def kill() -> dict[str, float]:
        faults = {}
        for number in range(KILLS):
            await asyncio.sleep(dice.between(0.5, 1.5))
            key = namespace + ShardKey(PLANE, dice.choose(SHARDS)).log(0)
            leader = await asyncio.to_thread(cluster.leader_of, key)
            faults[f"store {leader} killed, {number}"] = now_s()
            await asyncio.to_thread(cluster.kill_store, leader)
            await asyncio.sleep(DOWN_S)
            await asyncio.to_thread(cluster.start_store, leader)
            await asyncio.sleep(DOWN_S)
            await asyncio.to_thread(cluster.wait_replicated)
        return faults

    await play(stores, dice, stalls, kill)


async def test_appends_go_on_after_pd_restarts(
    cluster: TikvCluster, stores: dict[int, TikvStore], seed: int, stalls: Stalls
) -> None:
    """F10: routes are remembered, and asked for again later."""
    dice = Dice(seed)

    async def restart() -> dict[str, float]:
        faults = {}
        for number in range(KILLS):
            await asyncio.sleep(dice.between(0.2, 1.0))
            await asyncio.to_thread(cluster.kill_pd)
            await asyncio.sleep(PD_DOWN_S)
            await asyncio.to_thread(cluster.start_pd)
            faults[f"PD back, {number}"] = now_s()  # its cold start is none of ours
            await asyncio.sleep(1.5)
        return faults

    await play(stores, dice, stalls, restart)


async def test_a_client_of_creates_alone_recovers_from_a_dead_leader(
    cluster: TikvCluster, stores: dict[int, TikvStore], namespace: bytes, stalls: Stalls
) -> None:
    """F10: the client itself would ask the dead store for ever (README of the test stores)."""
    store = stores[SHARDS[0]]
    assert await store.create(b"first", b"x") is True
    numbers, took_s = itertools.count(), []
    for _ in range(KILLS):
        leader = await asyncio.to_thread(cluster.leader_of, namespace + b"first")
        await asyncio.to_thread(cluster.kill_store, leader)
        took_s.append(await create_again(store, numbers, stalls))
        await asyncio.to_thread(cluster.start_store, leader)
        await asyncio.to_thread(cluster.wait_replicated)
        if took_s[-1] < BACK_S_MAX:
            break
    print(f"a client of creates alone went on after {took_s} s")
    assert took_s[-1] < BACK_S_MAX


async def create_again(store: TikvStore, numbers: Iterator[int], stalls: Stalls) -> float:
    """Create one key after the other until one is created; return how long that took."""
    began_s = now_s()
    async with asyncio.timeout(LIMIT_S):
        for number in numbers:
            try:
                assert await store.create(b"%06d" % number, b"x") is True
                break
            except Transient:
                pass
    return now_s() - began_s - stalls.within_s(began_s, now_s())
