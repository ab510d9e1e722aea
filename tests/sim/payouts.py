"""Settle processes in the simulation: leases that move, a ledger and a bank that lose replies.

What runs is the product's own: host, reader, settler, payout, switch. Their ledger is one database
that answers late or not at all, their sink a bank behind the network, and each process dies, stops
or is cut off like any other, most often between a write and its reply.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hongbao.api import switches
from hongbao.domain.claim import Claim
from hongbao.domain.errors import HongbaoError, Transient
from hongbao.domain.manifest import Manifest
from hongbao.settle.memory import MemoryLedger
from hongbao.settle.pause import SWITCH, PauseSwitch
from hongbao.settle.payout import Payout
from hongbao.settle.ports import (
    AccountKind,
    Posted,
    Posting,
    Quarantined,
    SinkAnswer,
    SinkReply,
    Transfer,
    TransferState,
)
from hongbao.settle.rules import Rules
from hongbao.settle.run import Settlement
from hongbao.settle.settler import Settler
from hongbao.shards.block import Block
from hongbao.shards.host import HostLimits, ShardHost
from hongbao.shards.lease import HeldLease
from hongbao.shards.member import Member

from tests.minted import CAMPAIGN
from tests.settle.claims import schemes_of
from tests.sim.history import Call, Violation, read_log
from tests.sim.loop import OUTSIDE, Process
from tests.sim.money import ClaimsScenario, Logs, check_plane, claims_of, minted_book
from tests.sim.simulation import LEASE_TTL_S, SETTLE_S, SimClock, Simulation

T = TypeVar("T")
NAMES = ("settle-0", "settle-1")
REFUSED_USER = 5
"""The bank refuses this one for good."""
THREAD_S_MAX = 0.05
LATE_S_MAX = 2.0
BANK_CALL_S_MAX = 1.0
BANK_S_MAX = 0.5
LOOK_S = 0.25


class Bank:
    """Pays each transfer once, however often it is asked (faults.md F6)."""

    def __init__(self) -> None:
        self.paid: dict[int, tuple[int, int]] = {}  # serial → user, fen
        self.answers: Counter[SinkAnswer] = Counter()

    async def pay(self, transfer: Transfer) -> SinkReply:
        reply = self._answer(transfer)
        self.answers[reply] += 1
        return SinkReply(reply)

    def _answer(self, transfer: Transfer) -> SinkAnswer:
        payment = (transfer.user, transfer.amount_fen)
        if transfer.user == REFUSED_USER:
            return SinkAnswer.REFUSED
        if transfer.serial not in self.paid:
            self.paid[transfer.serial] = payment
            return SinkAnswer.PAID
        same = self.paid[transfer.serial] == payment
        return SinkAnswer.EXISTS if same else SinkAnswer.REFUSED


class PayoutScenario(ClaimsScenario):
    """Lets users race for packets; settle processes pay what they claimed."""

    def __init__(self) -> None:
        super().__init__()
        self.money = MemoryLedger()
        self.bank = Bank()
        self.broken: list[Violation] = []

    def consume(self, shard: int, position: int, block: Block) -> None:
        """Leave it to the settle processes, which read for themselves."""

    def check(self, logs: Logs, calls: Sequence[Call]) -> list[Violation]:
        claims = claims_of(logs)
        found = [*self.broken, *check_plane(logs, claims, calls), *self._check_payments(claims)]
        for shard, blocks in logs.items():
            if (end := self.money.position(shard)) != len(blocks):
                evidence = f"claims/{shard}: {end} of {len(blocks)} blocks"
                found.append(Violation("settlement reaches the end", evidence))
        return found

    def _check_payments(self, claims: Mapping[int, Claim]) -> list[Violation]:
        """Every claim is credited and paid once, or refused and paid never."""
        found, credits = [], Counter[int]()
        for serial in sorted(claims.keys() | self.money.states.keys() | self.bank.paid.keys()):
            claim, state = claims.get(serial), self.money.states.get(serial)
            paid = self.bank.paid.get(serial)
            if claim is None:
                found.append(Violation("nothing is paid without a claim", f"{serial}: {paid}"))
                continue
            refused = claim.user == REFUSED_USER
            wanted = TransferState.REFUSED if refused else TransferState.CREDITED
            if state is not wanted or paid != (None if refused else (claim.user, claim.amount_fen)):
                evidence = f"{serial}: {claim}: {state}, the bank paid {paid}"
                found.append(Violation("credited = paid by the bank, one to one", evidence))
            credits[claim.user] += 0 if refused else claim.amount_fen
        booked = {
            user: fen
            for (kind, user), fen in self.money.credited_fen.items()
            if kind == AccountKind.USER
        }
        if booked != {user: fen for user, fen in credits.items() if fen}:
            found.append(Violation("accounts equal the payments", f"{booked}, not {credits}"))
        return found


class LedgerLink:
    """Is one process's connection to the database: a transaction is done, late, or never."""

    def __init__(self, simulation: "PayoutSimulation", process: str) -> None:
        self._simulation = simulation
        self._process = process

    def position(self, shard: int) -> int:
        return self._ask(lambda money: money.position(shard))

    def post(self, posting: Posting) -> Posted:
        return self._ask(lambda money: money.post(posting))

    def find_transfers(self, serials: Sequence[int]) -> list[Transfer]:
        return self._ask(lambda money: money.find_transfers(serials))

    def pending(self, shard: int, limit: int, behind: Transfer | None = None) -> list[Transfer]:
        return self._ask(lambda money: money.pending(shard, limit, behind))

    def credit(self, shard: int, transfers: Sequence[Transfer], at_ms: int) -> None:
        self._ask(lambda money: money.credit(shard, transfers, at_ms))

    def refuse(self, transfer: Transfer, quarantined: Quarantined, at_ms: int) -> None:
        self._ask(lambda money: money.refuse(transfer, quarantined, at_ms))

    def _ask(self, run: Callable[[MemoryLedger], T]) -> T:
        simulation, dice = self._simulation, self._simulation.dice
        network = simulation.network
        cut_off = network.closed or self._process in network.cut_off
        if cut_off or dice.happens(network.faults.drop):
            raise Transient("the database cannot be reached")
        money = simulation.payouts.money
        if dice.happens(network.faults.late):
            late_s = dice.between(0, LATE_S_MAX)
            simulation.loop.call_later(late_s, _run_late, run, money, context=OUTSIDE)
            raise Transient("the connection broke, and the transaction goes on")
        simulation.trouble_at(self._process)
        answer = run(money)
        if dice.happens(network.faults.lose_reply):
            raise Transient("the connection broke behind the transaction")
        return answer


def _run_late(run: Callable[[MemoryLedger], object], money: MemoryLedger) -> None:
    with contextlib.suppress(HongbaoError):
        run(money)


class BankLink:
    """Is one process's way to the bank; notes a payment that a pause should have stopped."""

    def __init__(self, simulation: "PayoutSimulation", process: str) -> None:
        self._simulation = simulation
        self._process = process

    async def pay(self, transfer: Transfer) -> SinkReply:
        simulation = self._simulation
        await self._check_pause()
        simulation.trouble_at(self._process)
        try:
            return await simulation.network.call(
                self._process,
                lambda: simulation.payouts.bank.pay(transfer),
                target="bank",
                timeout_s=BANK_CALL_S_MAX,
                held_up_s=simulation.dice.between(0, BANK_S_MAX),
            )
        finally:
            await self._check_pause()

    async def _check_pause(self) -> None:
        if await self._simulation.has_acked_a_pause(self._process):
            broken = Violation("nothing is paid behind the ack of a pause", self._process)
            self._simulation.payouts.broken.append(broken)


class SettleServer:
    """Is one incarnation of a settle process, put together as cli/role_settle.py does it."""

    def __init__(self, simulation: "PayoutSimulation", name: str) -> None:
        self.process = Process(simulation.loop, name)
        self.stopping = False
        store = simulation.store_type(simulation.memory, simulation.network, simulation.dice, name)
        clock = SimClock(simulation.loop, simulation.dice)
        ledger, bank = LedgerLink(simulation, name), BankLink(simulation, name)
        rules = Rules(store, CAMPAIGN, _load_schemes, offload=simulation.offload)
        pause = simulation.pause_type(store, name, clock.wall_ms)

        async def settle(shard: int, _held: HeldLease, leave: asyncio.Event) -> None:
            settler = Settler(shard, ledger, state=TransferState.PENDING, wall_ms=clock.wall_ms)
            payout = simulation.payout_type(
                shard,
                ledger,
                bank,
                paused=pause.paused,
                clock=clock,
                campaign=CAMPAIGN,
                offload=simulation.offload,
            )
            settlement = Settlement(
                store,
                settler,
                rules,
                payout=payout,
                rounds=pause.round,
                offload=simulation.offload,
            )
            await settlement.run(leave)

        self.host = ShardHost(
            store,
            Member(name, name, "", "settle"),
            "settle",
            simulation.payouts.shards,
            settle,
            clock.monotonic_s,
            HostLimits(lease_ttl_s=LEASE_TTL_S, tick_s=0.25),
        )
        self.process.spawn(self.host.run())


class PayoutSimulation(Simulation):
    """Adds settle processes, and an operator who pauses them, to the claims plane."""

    def __init__(
        self,
        seed: int,
        scenario: PayoutScenario,
        *,
        payout_type: type[Payout] = Payout,
        pause_type: type[PauseSwitch] = PauseSwitch,
        **options: Any,
    ) -> None:
        super().__init__(seed, scenario, **options)
        self.payouts = scenario
        self.payout_type = payout_type
        self.pause_type = pause_type
        for name in NAMES:
            self.kinds[name] = lambda name: SettleServer(self, name)

    async def offload(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Run a blocking call as a thread does: once begun, to its end, whoever waits for it."""

        begun = False

        async def be_thread() -> Any:
            nonlocal begun
            await asyncio.sleep(self.dice.between(0, THREAD_S_MAX))
            begun = True
            await asyncio.sleep(self.dice.between(0, THREAD_S_MAX))
            return run(*arguments)

        thread = asyncio.ensure_future(be_thread())
        thread.add_done_callback(_forget)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if not begun:  # it waits for one of the pool
                thread.cancel()
            raise

    async def has_acked_a_pause(self, process: str) -> bool:
        """Tell whether the process has told everybody that it pays nothing now."""
        setting = await self.memory.read(f"{switches.PREFIX}{SWITCH}")
        ack = await self.memory.read(f"{switches.ACKS}{SWITCH}/{process}")
        on = bool(setting.value) and json.loads(setting.value)["value"] is True
        return on and bool(ack.value) and json.loads(ack.value)["revision"] == setting.revision

    async def begin(self) -> None:
        active = dict.fromkeys((1, 2), 1)
        await self.memory.put(f"campaigns/{CAMPAIGN}/active", json.dumps(active).encode())
        operator = Process(self.loop, "operator")
        self._processes.append(operator)
        operator.spawn(self._be_operator())

    async def catch_up(self) -> None:
        """Wait until every claim is settled and paid; whatever is missing then stays missing."""
        for _ in range(int(SETTLE_S / LOOK_S)):
            logs = [await read_log(self.memory, key) for key in self.log_keys()]
            ends = [len(blocks) for blocks in logs]
            money = self.payouts.money
            settled = [money.position(shard) for shard in self.payouts.shards] == ends
            if settled and TransferState.PENDING not in money.states.values():
                return
            await asyncio.sleep(LOOK_S)

    async def _be_operator(self) -> None:
        """Pause settlement or lose the bank now and then, while there is trouble."""
        ends_s = self.loop.time() + self.size.faults_s
        while self.loop.time() < ends_s:
            await asyncio.sleep(self.dice.between(0.2, 1.5))
            if self.dice.happens(0.5):
                await self._set_pause(True)
                await asyncio.sleep(self.dice.between(0.2, 1.0))
                await self._set_pause(False)
            else:
                self.network.cut_off.add("bank")
                await asyncio.sleep(self.dice.between(0.2, 2.0))
                self.network.cut_off.discard("bank")

    async def _set_pause(self, value: bool) -> None:
        setting = switches.Setting(value, "operator", "trouble", 0, None)
        await self.memory.put(f"{switches.PREFIX}{SWITCH}", switches.setting_to_json(setting))


def _forget(thread: "asyncio.Future[Any]") -> None:
    if not thread.cancelled():
        thread.exception()  # whoever waited may be gone


async def _load_schemes() -> list[tuple[Manifest, Path]]:
    return schemes_of(minted_book()[0])


class TakesSilenceForPayment(Payout):
    """Is a planted bug: a bank that did not answer will have paid."""

    async def _pay(self, transfer: Transfer) -> SinkReply | None:
        return await super()._pay(transfer) or SinkReply(SinkAnswer.PAID)


class TakesSilenceForRefusal(Payout):
    """Is a planted bug: a bank that did not answer will have refused."""

    async def _pay(self, transfer: Transfer) -> SinkReply | None:
        return await super()._pay(transfer) or SinkReply(SinkAnswer.REFUSED)


class AcksWhilePaying(PauseSwitch):
    """Is a planted bug: a pause is acknowledged while rounds of other shards go on."""

    @contextlib.asynccontextmanager
    async def round(self) -> AsyncIterator[bool]:
        async with super().round() as may_work:
            self._running = 0
            yield may_work
            self._running = 1  # for the one that takes it away


PLANTED: dict[str, dict[str, Any]] = {
    "silence-is-payment": {"payout_type": TakesSilenceForPayment},
    "silence-is-refusal": {"payout_type": TakesSilenceForRefusal},
    "ack-while-paying": {"pause_type": AcksWhilePaying},
}
