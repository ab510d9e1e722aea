"""F7 on real processes: SIGSTOP an owner past its lease, let another take over, SIGCONT."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hongbao.adapters.store_client import StoreClient
from hongbao.domain.errors import Fenced, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.peers import GrpcPeers
from hongbao.shards.replay import read_blocks
from hongbao.shards.router import Outcome, ShardRouter

from tests.contracts.store_contracts import StoreProcess
from tests.sim.history import check_log
from tests.sim.toy import ENTRY, TOTAL, add

SHARDS = 2
LOG_BLOCKS_MAX = 1 << 20
ROOT = Path(__file__).parents[2]


class Worker:
    """Is a serving process and the lines it has printed."""

    def __init__(self, name: str, folder: Path, hearing: str) -> None:
        program = [sys.executable, "-m", "tests.shards.toy_process"]
        command = [*program, name, str(folder), f"{SHARDS}", hearing]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._pipe = self.process.stdout
        self._text = ""

    def lines(self, kind: str) -> list[list[str]]:
        """Return the words of the printed lines of a kind, so far."""
        self._text += (self._pipe.read() or b"").decode()
        return [words for line in self._text.splitlines() if (words := line.split())[0] == kind]

    def tenures(self) -> list[list[str]]:
        """Return shard and epoch of what it owns now, as far as it has told."""
        left = [words[1:3] for words in self.lines("left")]
        return [words[1:3] for words in self.lines("owner") if words[1:3] not in left]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


async def until(fact: Callable[[], bool]) -> None:
    """Wait until a fact holds, at most some seconds."""
    for _ in range(400):
        if fact():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never happened")


class Load:
    """Adds one number after another to every shard, and remembers what was acknowledged."""

    def __init__(self, router: ShardRouter) -> None:
        self.acknowledged: dict[bytes, int] = {}
        self.running = True
        self._router = router

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


async def outcome_at(peers: GrpcPeers, address: str, shard: int) -> Outcome:
    """Submit to one process, whoever owns the shard: it may have been fenced already."""
    try:
        return (await peers.submit(address, "toy", shard, [add(1 << 40, 1)]))[0]
    except Fenced as error:
        return error


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreClient]:
    server = StoreProcess(tmp_path)
    client = StoreClient(server.socket, server.path)
    yield client
    await client.close()
    server.kill()


async def read_entries(store: StoreClient, shard: int) -> list[tuple[int, int, int]]:
    """Read the log itself to its end: killed owners leave blocks that are not applied yet."""
    key = ShardKey("toy", shard)
    blocks = await read_blocks(store, key, 0, LOG_BLOCKS_MAX, limit=LOG_BLOCKS_MAX)
    assert check_log(key, blocks) == []
    return [ENTRY.unpack(entry) for block in blocks for entry in block.entries]


@pytest.mark.parametrize("hearing", ["good", "deaf"])
async def test_a_paused_owner_is_fenced_and_nothing_is_lost_or_doubled(
    store: StoreClient, tmp_path: Path, hearing: str
) -> None:
    """With good hearing its lease stops it first; a deaf one is stopped by the log alone."""
    workers = [Worker(name, tmp_path, hearing) for name in ("toy-a-0", "toy-b-0")]
    peers = GrpcPeers(call_s_max=0.6)
    router = ShardRouter(store, lambda plane, shard: None, peers)
    following = asyncio.create_task(router.follow("toy"))
    load = Load(router)
    clients = [asyncio.create_task(load.run(client)) for client in range(16)]
    try:
        await until(lambda: [len(worker.tenures()) for worker in workers] == [1, 1])
        await until(lambda: len(load.acknowledged) > 200)
        paused, other = workers
        ((shard, epoch),) = paused.tenures()
        paused.process.send_signal(signal.SIGSTOP)
        await until(lambda: shard in [taken for taken, _ in other.tenures()])
        before = len(load.acknowledged)
        await until(lambda: len(load.acknowledged) > before + 200)
        paused.process.send_signal(signal.SIGCONT)
        if hearing == "deaf":  # it still answers as the owner: give it something to write
            address = f"unix:{tmp_path}/toy-a-0"
            assert isinstance(await outcome_at(peers, address, int(shard)), Fenced)
        await until(lambda: any(left[1:3] == [shard, epoch] for left in paused.lines("left")))
        (left,) = [left for left in paused.lines("left") if left[1:3] == [shard, epoch]]
        assert left[3] == "Fenced"
        if hearing == "deaf":
            assert "belongs to another writer" in " ".join(left)
        load.running = False
        await asyncio.gather(*clients)
    finally:
        for task in (following, *clients):
            task.cancel()
        await asyncio.gather(following, *clients, return_exceptions=True)
        await peers.close()
        for worker in workers:
            worker.kill()
    entries = [entry for shard in range(SHARDS) for entry in await read_entries(store, shard)]
    numbers = [number for number, _, _ in entries]
    assert len(numbers) == len(set(numbers))
    assert 1 << 40 not in numbers
    logged = {add(number, amount): total for number, amount, total in entries}
    assert load.acknowledged == {op: logged.get(op) for op in load.acknowledged}
