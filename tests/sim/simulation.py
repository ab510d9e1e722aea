"""One run of the whole shard runtime in one process: hosts, routers, clients, readers, faults.

Everything follows from the seed: `Simulation(seed, scenario).run()` twice gives the same history.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Fenced, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.host import HostLimits, ShardHost
from hongbao.shards.member import Member
from hongbao.shards.owner import Owner, OwnerLimits
from hongbao.shards.reader import LogReader
from hongbao.shards.router import Outcome, ShardRouter, submit_all
from hongbao.shards.tenure import Owners

from tests.sim.dice import Dice
from tests.sim.history import (
    Call,
    History,
    Seen,
    Violation,
    check_derived,
    check_log,
    check_reader,
    read_log,
)
from tests.sim.loop import OUTSIDE, Process, VirtualLoop
from tests.sim.network import Faults, Network, SimStore
from tests.sim.scenario import Scenario

T = TypeVar("T")
LEASE_TTL_S = 1.0
PEER_CALL_S_MAX = 5.0
SETTLE_S = 60.0
"""After the faults have ended, everything must be finished within this (virtual) time."""


@dataclass(frozen=True)
class Size:
    """Is how much happens in a run."""

    servers: int = 3
    clients: int = 4
    operations: int = 12
    faults_s: float = 8.0
    strike_chance: float = 0.1


class SimClock:
    """Is one process's clock: it may run a little fast or slow, its wall time is nonsense."""

    def __init__(self, loop: VirtualLoop, dice: Dice) -> None:
        self._loop = loop
        self._dice = dice
        self._rate = dice.between(0.95, 1.05)
        self._offset_s = dice.between(0, 1000)

    def wall_ms(self) -> int:
        return self._dice.below(1 << 40)  # F9: jumps all the time

    def monotonic_s(self) -> float:
        return self._offset_s + self._loop.time() * self._rate


class Server:
    """Is one incarnation of a serving process: a host and a router over the simulated network."""

    def __init__(self, simulation: "Simulation", name: str) -> None:
        self.process = Process(simulation.loop, name)
        store = simulation.store_type(simulation.memory, simulation.network, simulation.dice, name)
        scenario = simulation.scenario
        self.owners = Owners(
            store,
            scenario.plane,
            scenario.machine,
            simulation.dice.nonce,
            OwnerLimits(checkpoint_blocks=8, derived_blocks_max=4, drain_s=2.0),
            simulation.owner_type,
        )
        self.host = ShardHost(
            store,
            Member(name, "zone", name, "server"),
            scenario.plane,
            scenario.shards,
            self.owners.serve,
            SimClock(simulation.loop, simulation.dice).monotonic_s,
            HostLimits(lease_ttl_s=LEASE_TTL_S, tick_s=0.25),
        )
        peers = SimPeers(simulation, name)
        self.router = ShardRouter(store, self.owners.find, peers)
        self.stopping = False
        self._plane = scenario.plane
        self.process.spawn(self.host.run())

    async def submit(self, shard: int, operation: bytes) -> bytes:
        """Answer a client, as Open does."""
        return await self.router.submit(self._plane, shard, operation)

    async def submit_here(self, shard: int, operations: Sequence[bytes]) -> list[Outcome]:
        """Answer a peer, as Shards.Submit does."""
        owner = self.owners.find(self._plane, shard)
        if owner is None:
            raise Fenced("not owned here")
        return await submit_all(owner, operations)


class Serving(Protocol):
    """Is one incarnation of a process that faults strike and that is started again."""

    process: Process
    host: ShardHost
    stopping: bool


class SimPeers:
    """Carries operations from one server to another."""

    def __init__(self, simulation: "Simulation", name: str) -> None:
        self._simulation = simulation
        self._name = name

    async def submit(
        self, address: str, plane: str, shard: int, operations: Sequence[bytes]
    ) -> Sequence[Outcome]:
        simulation = self._simulation
        return await simulation.network.call(
            self._name,
            lambda: simulation.peer_answer(address, shard, operations),
            target=address,
            timeout_s=PEER_CALL_S_MAX,
        )


class Simulation:
    """Runs a scenario under faults that follow from one seed."""

    def __init__(
        self,
        seed: int,
        scenario: Scenario,
        *,
        owner_type: type[Owner] = Owner,
        size: Size | None = None,
        store_type: type[SimStore] = SimStore,
    ) -> None:
        self.store_type = store_type
        self.dice = Dice(seed)
        self.scenario = scenario
        self.owner_type = owner_type
        self.size = size or Size()
        self.loop = VirtualLoop()
        self._troubled = True
        self.memory = MemoryStore(self.loop.time)
        self.network = Network(self.loop, self.dice)
        self.network.at_create = self.trouble_at
        self.history = History()
        self.kinds: dict[str, Callable[[str], Serving]] = {
            f"server-{index}": partial(Server, self) for index in range(self.size.servers)
        }
        """How each process of a name is made anew, in the order in which they start."""
        self._servers: dict[str, Serving] = {}
        self._readers: dict[int, Process] = {}
        self._processes: list[Process] = []

    def run(self) -> list[Violation]:
        """Play the whole run; return the broken rules, none if all is well."""
        try:
            found = self.loop.run_until_complete(self._play())
            self._take_down()
        finally:
            self.loop.close()
        return found

    def digest(self) -> str:
        """Return a hash over all that happened: equal for equal seeds."""
        text = repr((self.history.events, self.history.calls, self.loop.time()))
        return hashlib.sha256(text.encode()).hexdigest()

    async def peer_answer(
        self, address: str, shard: int, operations: Sequence[bytes]
    ) -> list[Outcome]:
        server = self._server(address)
        return await _answer(server, server.submit_here(shard, operations))

    async def _play(self) -> list[Violation]:
        await self.begin()
        for name in self.kinds:
            self._start_server(name)
        for shard in self.scenario.shards:
            self._start_reader(shard)
        people = Process(self.loop, "clients")
        self._processes.append(people)
        clients = [people.spawn(self._be_client(index)) for index in range(self.size.clients)]
        await self._make_trouble()
        self._end_trouble()
        _, late = await asyncio.wait(clients, timeout=SETTLE_S)
        if late:
            return [Violation("everything ends once the faults end", f"{len(late)} clients wait")]
        for client in clients:
            client.result()  # a bug in the simulation itself
        await self.catch_up()
        for _ in range(40):
            if await self._readers_are_done():
                break
            await asyncio.sleep(0.25)
        return await self._check()

    async def begin(self) -> None:
        """Write what must be there before any process starts."""

    async def catch_up(self) -> None:
        """Wait for what must follow once the faults have ended."""

    async def _readers_are_done(self) -> bool:
        """Tell whether every log is read to its end; whatever is missing then stays missing."""
        for shard in self.scenario.shards:
            blocks = await read_log(self.memory, ShardKey(self.scenario.plane, shard))
            if not blocks or len(self.history.reads.get(shard, [])) < len(blocks):
                return False
        return True

    def _start_server(self, name: str) -> None:
        if self.network.closed:
            return
        server = self.kinds[name](name)
        self._servers[name] = server
        self._processes.append(server.process)

    def _start_reader(self, shard: int) -> None:
        if self.network.closed:
            return
        process = Process(self.loop, f"reader-{shard}")
        self._readers[shard] = process
        self._processes.append(process)
        process.spawn(self._be_reader(shard, process.name))

    async def _be_client(self, index: int) -> None:
        dice = Dice(self.dice.bits())
        for _ in range(self.size.operations):
            await asyncio.sleep(dice.between(0, 1.2 * self.size.faults_s / self.size.operations))
            shard, operation = self.scenario.operation(index, dice)
            call = Call(f"client-{index}", shard, operation, self.loop.time())
            self.history.calls.append(call)
            await self._try_until_answered(call, dice)

    async def _try_until_answered(self, call: Call, dice: Dice) -> None:
        while call.result is None:
            call.tries += 1
            server = self._server(f"server-{dice.below(self.size.servers)}")
            try:
                call.result = await self.network.call(
                    call.client,
                    partial(self._client_answer, server, call),
                    target=server.process.name,
                    timeout_s=dice.between(0.5, 6.0),
                )
                call.ended_s = self.loop.time()
            except (Transient, Fenced):
                await asyncio.sleep(dice.between(0.02, 0.3))

    async def _client_answer(self, server: Server, call: Call) -> bytes:
        return await _answer(server, server.submit(call.shard, call.operation))

    async def _be_reader(self, shard: int, name: str) -> None:
        store = SimStore(self.memory, self.network, self.dice, name)
        seen = self.history.reads.setdefault(shard, [])
        reader = LogReader(store, self.scenario.plane, shard)
        machine = self.scenario.machine(shard)
        while True:
            try:
                await reader.look(len(seen))
                blocks = await reader.read(len(seen), limit=4)
            except Transient:
                blocks = []
            for block in blocks:
                keys = [key for entry in block.entries for key, _ in machine.derive(entry)]
                there = [await self.memory.get(key) is not None for key in keys]
                seen.append(Seen(block.position, block, all(there)))
                self.scenario.consume(shard, block.position, block)
            await asyncio.sleep(0.0 if blocks else 0.25)

    async def _make_trouble(self) -> None:
        """Play faults, one after another, until their time is over."""
        end_s = self.loop.time() + self.size.faults_s
        while self.loop.time() < end_s:
            await asyncio.sleep(self.dice.between(0.05, 1.2))
            if self.dice.happens(0.5):
                at_server = [self._kill, self._pause, self._pause, self._stop, self._cut_off]
                self.dice.choose(at_server)(self._any_server())
            else:
                disturb = self._disturb_network
                self.dice.choose([self._restart_store, disturb, disturb, self._kill_reader])()

    def trouble_at(self, name: str) -> float:
        """Strike a process that has just sent a write: between it and its reply (F2, F7).

        Return for how long the write is held up.
        """
        server = self._servers[name]
        if not self._troubled or not self.dice.happens(self.size.strike_chance):
            return 0.0
        strike = self.dice.choose([self._kill, self._pause, self._pause, self._cut_off])
        self.loop.call_soon(strike, server, context=OUTSIDE)  # once the request is sent
        return self.dice.between(0, 3 * LEASE_TTL_S) if self.dice.happens(0.5) else 0.0

    def _note(self, text: str) -> None:
        self.history.events.append(f"{self.loop.time():.6f} {text}")

    def _server(self, name: str) -> Server:
        server = self._servers[name]
        assert isinstance(server, Server)
        return server

    def _any_server(self) -> Serving:
        return self._servers[self.dice.choose(list(self.kinds))]

    def _kill(self, server: Serving) -> None:
        if not server.process.alive:
            return
        self._note(f"kill {server.process.name}")
        server.process.kill()
        self.loop.call_later(self.dice.between(0.01, 2.0), self._start_server, server.process.name)

    def _pause(self, server: Serving) -> None:
        """Stop a process, often past its lease (F7)."""
        for_s = self.dice.between(0.05, 3 * LEASE_TTL_S)
        self._note(f"pause {server.process.name} {for_s:.3f}")
        server.process.pause()
        self.loop.call_later(for_s, server.process.resume)

    def _stop(self, server: Serving) -> None:
        """Drain a process and start it again, as a rolling upgrade does."""
        if server.stopping or not server.process.alive:
            return
        server.stopping = True
        self._note(f"stop {server.process.name}")
        stopped = server.process.spawn(server.host.stop())
        stopped.add_done_callback(lambda _: self._replace(server))

    def _replace(self, server: Serving) -> None:
        if self._servers[server.process.name] is server and not self.network.closed:
            server.process.kill()
            self.loop.call_later(
                self.dice.between(0.01, 0.5), self._start_server, server.process.name
            )

    def _cut_off(self, server: Serving) -> None:
        name = server.process.name
        for_s = self.dice.between(0.1, 3 * LEASE_TTL_S)
        self._note(f"cut off {name} {for_s:.3f}")
        self.network.cut_off.add(name)
        self.loop.call_later(for_s, self.network.cut_off.discard, name)

    def _restart_store(self) -> None:
        """Take the store away for a while; then every lease has its full TTL again (F8)."""
        for_s = self.dice.between(0.05, 1.0)
        self._note(f"restart the store {for_s:.3f}")
        self.network.faults = Faults(drop=1.0)
        self.loop.call_later(for_s, self._calm_network)
        self.loop.call_later(for_s, self.memory.restart)

    def _disturb_network(self) -> None:
        dice = self.dice
        self._note("disturb the network")
        self.network.faults = Faults(
            drop=dice.between(0, 0.3),
            lose_reply=dice.between(0, 0.3),
            double=dice.between(0, 0.3),
            late=dice.between(0, 0.3),
            refuse=dice.between(0, 0.2),
            delay_s_max=dice.between(0.001, 0.2),
        )
        self.loop.call_later(dice.between(0.2, 2.0), self._calm_network)

    def _calm_network(self) -> None:
        self.network.faults = Faults()

    def _kill_reader(self) -> None:
        """Readers go on from their durable position."""
        shard = self.dice.choose(self.scenario.shards)
        if self._readers[shard].alive:
            self._note(f"kill reader {shard}")
            self._readers[shard].kill()
            self.loop.call_later(self.dice.between(0.01, 1.0), self._start_reader, shard)

    def _end_trouble(self) -> None:
        self._note("all is well")
        self._troubled = False
        self._calm_network()
        self.network.cut_off.clear()
        for process in self._processes:
            process.resume()

    def log_keys(self) -> list[ShardKey]:
        return [ShardKey(self.scenario.plane, shard) for shard in self.scenario.shards]

    async def _check(self) -> list[Violation]:
        found: list[Violation] = []
        logs = {}
        for shard, key in zip(self.scenario.shards, self.log_keys(), strict=True):
            logs[shard] = blocks = await read_log(self.memory, key)
            found += check_log(key, blocks)
            found += check_reader(key, blocks, self.history.reads.get(shard, []), complete=True)
            found += await check_derived(self.memory, key, blocks, self.scenario.machine(shard))
        return found + self.scenario.check(logs, self.history.calls)

    def _take_down(self) -> None:
        """End every task, those of killed processes too."""
        self.network.closed = True
        for process in self._processes:
            process.release()
        tasks = asyncio.all_tasks(self.loop)
        for _ in range(10):
            for task in sorted(tasks, key=lambda task: task.get_name()):
                task.cancel()
            ending = asyncio.gather(*tasks, return_exceptions=True)
            # asyncio.wait_for of Python 3.11 may swallow a cancellation: then again
            self.loop.run_until_complete(asyncio.wait([ending], timeout=10))
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                return
        raise AssertionError(f"tasks do not end: {tasks}")


async def _answer(server: Server, work: Coroutine[Any, Any, T]) -> T:
    """Run a handler inside the process that answers; a dead one never does."""
    answer: T = await server.process.spawn(work)
    return answer
