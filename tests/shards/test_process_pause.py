"""F7 on real processes: SIGSTOP an owner past its lease, let another take over, SIGCONT.

Whose owner, when and for how long is drawn: HONGBAO_SEED repeats a run. tests/stores plays the same
story on TiKV and etcd.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import SharedState, connect_stores
from hongbao.domain.errors import Fenced, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.peers import GrpcPeers
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import read_blocks
from hongbao.shards.router import Outcome, ShardRouter

from tests.contracts.store_contracts import StoreProcess
from tests.shards.worker import Worker
from tests.sim.dice import Dice
from tests.sim.history import check_log
from tests.sim.toy import ENTRY, TOTAL, add
from tests.stalls import Stalls, judged
from tests.waiting import LIMIT_S, until

SHARDS = 2
LOG_BLOCKS_MAX = 1 << 20
STRANGER = 1 << 40
"""A number that no client of the load adds."""


@dataclass(frozen=True)
class Pause:
    """Is whose owner is stopped, when, and for how long: always until another has taken over."""

    shard: int
    acknowledged_before: int
    delay_s: float
    acknowledged_meanwhile: int
    longer_s: float

    @classmethod
    def drawn(cls, dice: Dice) -> "Pause":
        return cls(
            shard=dice.below(SHARDS),
            acknowledged_before=50 + dice.below(300),
            delay_s=dice.between(0.0, 0.5),  # anywhere between two renewals
            acknowledged_meanwhile=50 + dice.below(300),
            longer_s=dice.between(0.0, 0.5),
        )


class Load:
    """Adds one number after another to every shard, and remembers what was acknowledged."""

    def __init__(self, router: ShardRouter) -> None:
        self.acknowledged: dict[bytes, int] = {}
        self.running = True
        self._router = router

    async def until_more(self, count: int) -> None:
        """Return when so many more were acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= wanted, f"{count} more are acknowledged")

    async def run(self, client: int) -> None:
        number = client
        while self.running:
            shard, operation = number % SHARDS, add(number, 1)
            while operation not in self.acknowledged and self.running:
                with suppress(Transient, TimeoutError):
                    async with asyncio.timeout(0.5):
                        result = await self._router.submit("toy", shard, operation)
                        self.acknowledged[operation] = TOTAL.unpack(result)[0]
            number += 16


async def outcome_at(address: str, shard: int) -> Outcome:
    """Submit to one process, whoever owns the shard: it may have been fenced already.

    Asks once and waits as long as it takes: a second try might come when it owns the shard again.
    """
    peers = GrpcPeers(call_s_max=LIMIT_S)
    try:
        return (await peers.submit(address, "toy", shard, [add(STRANGER, 1)]))[0]
    except Fenced as error:
        return error
    finally:
        await peers.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SharedState]:
    """Give the embedded store, served by a process of its own."""
    server = StoreProcess(tmp_path)
    settings = UpSettings(campaign=Path("none.yaml"), lease_ttl_s=1.0)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    connected = await connect_stores(RunDir(tmp_path), settings, "toy")
    yield connected
    await connected.close()
    server.kill()


def owns(worker: Worker, shard: int) -> bool:
    return str(shard) in [owned for owned, _ in worker.tenures()]


def one_each(workers: list[Worker]) -> bool:
    owned = [[int(shard) for shard, _ in worker.tenures()] for worker in workers]
    return sorted(owned) == [[shard] for shard in range(SHARDS)]


async def read_entries(store: LogStore, shard: int) -> list[tuple[int, int, int]]:
    """Read the log itself to its end: killed owners leave blocks that are not applied yet."""
    key = ShardKey("toy", shard)
    blocks = await read_blocks(store, key, 0, LOG_BLOCKS_MAX, limit=LOG_BLOCKS_MAX)
    assert check_log(key, blocks) == []
    return [ENTRY.unpack(entry) for block in blocks for entry in block.entries]


@pytest.mark.parametrize("hearing", ["good", "deaf"])
async def test_a_paused_owner_is_fenced_and_nothing_is_lost_or_doubled(
    stores: SharedState, tmp_path: Path, hearing: str, seed: int, stalls: Stalls
) -> None:
    """With good hearing its lease stops it first; a deaf one is stopped by the log alone."""
    await judged(stalls, lambda number: pause_an_owner(stores, tmp_path, hearing, seed + number))


async def pause_an_owner(stores: SharedState, tmp_path: Path, hearing: str, seed: int) -> None:
    """Play the story and check what is left."""
    pause = Pause.drawn(Dice(seed ^ sum(hearing.encode())))
    print(f"drawn from seed {seed}: {pause}")
    async with under_load(stores, tmp_path) as (workers, load):
        await load.until_more(pause.acknowledged_before)
        await asyncio.sleep(pause.delay_s)
        await until(lambda: one_each(workers))
        paused, other = sorted(workers, key=lambda worker: not owns(worker, pause.shard))
        if hearing == "deaf":
            paused.process.send_signal(signal.SIGUSR1)
            await until(lambda: paused.lines("deaf"))
        await until(lambda: [int(one) for one, _ in paused.tenures()] == [pause.shard])
        ((shard, epoch),) = paused.tenures()
        paused.process.send_signal(signal.SIGSTOP)
        await until(lambda: owns(other, pause.shard))
        await load.until_more(pause.acknowledged_meanwhile)
        await asyncio.sleep(pause.longer_s)
        paused.process.send_signal(signal.SIGCONT)
        if hearing == "deaf":  # it still answers as the owner: give it something to write
            address = f"unix:{tmp_path}/{paused.name}"
            assert isinstance(await outcome_at(address, pause.shard), Fenced)
        await until(lambda: any(left[1:3] == [shard, epoch] for left in paused.lines("left")))
        (left,) = [left for left in paused.lines("left") if left[1:3] == [shard, epoch]]
        assert left[3] == "Fenced"
        if hearing == "deaf":
            assert "belongs to another writer" in " ".join(left)


@asynccontextmanager
async def under_load(stores: SharedState, folder: Path) -> AsyncIterator[tuple[list[Worker], Load]]:
    """Let two processes share the shards and clients add to them; then check what is left."""
    workers = [Worker(name, folder, SHARDS) for name in ("toy-a-0", "toy-b-0")]
    peers = GrpcPeers(call_s_max=0.6)
    router = ShardRouter(stores.coordination, lambda plane, shard: None, peers)
    following = asyncio.create_task(router.follow("toy"))
    load = Load(router)
    clients = [asyncio.create_task(load.run(client)) for client in range(16)]
    try:
        await until(lambda: one_each(workers))
        yield workers, load
        load.running = False
        await asyncio.gather(*clients)
    finally:
        for task in (following, *clients):
            task.cancel()
        await asyncio.gather(following, *clients, return_exceptions=True)
        await peers.close()
        for worker in workers:
            worker.kill()
    entries = [
        entry for shard in range(SHARDS) for entry in await read_entries(stores.log_store, shard)
    ]
    numbers = [number for number, _, _ in entries]
    assert len(numbers) == len(set(numbers))
    assert STRANGER not in numbers
    logged = {add(number, amount): total for number, amount, total in entries}
    assert load.acknowledged == {op: logged.get(op) for op in load.acknowledged}
