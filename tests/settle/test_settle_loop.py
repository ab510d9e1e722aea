"""Proves the loop around settlement: log to ledger, rules that change, pause, leases."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.api import switches
from hongbao.domain.claim import CLOSING
from hongbao.domain.errors import Corrupt, Transient
from hongbao.domain.manifest import Manifest
from hongbao.settle.memory import MemoryLedger
from hongbao.settle.metrics import SettleMetrics
from hongbao.settle.pause import PauseSwitch
from hongbao.settle.payout import PAYOUT_CALLS_MAX, Payout
from hongbao.settle.ports import Sink, SinkAnswer, SinkReply, Transfer, TransferState
from hongbao.settle.rules import Rules, parse_active, parse_keys
from hongbao.settle.run import Settlement, SettleTiming, log_lag
from hongbao.settle.settler import Settler
from hongbao.shards.block import Block, BlockKind, ShardKey
from hongbao.shards.host import HostLimits, ShardHost
from hongbao.shards.lease import HeldLease
from hongbao.shards.member import Member
from hongbao.shards.ports import Versioned
from prometheus_client import CollectorRegistry

from tests.minted import CAMPAIGN, MintedCampaign, tiny_campaign
from tests.settle.claims import (
    SteppedClock,
    blocks_of,
    schemes_of,
    shard_claims,
    write_documents,
    write_log,
)
from tests.waiting import LIMIT_S, until

FAST = SettleTiming(poll_s=0.005, retry_s=0.005)


class CountingStore(MemoryStore):
    """Counts how often each key was read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    async def read(self, key: str) -> Versioned:
        self.reads[key] += 1
        return await super().read(key)


class Stage:
    """Is a store, a ledger and whatever settles between them."""

    def __init__(self, minted: MintedCampaign) -> None:
        self.minted = minted
        self.late: list[MintedCampaign] = []
        self.store = CountingStore()
        self.ledger = MemoryLedger()
        self.clock = SteppedClock()
        self.loads = 0
        self.registry = CollectorRegistry()
        self.metrics = SettleMetrics(self.registry)
        self.rules = Rules(self.store, CAMPAIGN, self._load)
        self.pause = PauseSwitch(self.store, "settle-a-0", self.clock.wall_ms)

    async def _load(self) -> list[tuple[Manifest, Path]]:
        self.loads += 1
        return schemes_of(self.minted, *self.late)

    def settlement(self, shard: int = 0, sink: Sink | None = None) -> Settlement:
        state, payout = TransferState.CREDITED, None
        wall_ms, paused = self.clock.wall_ms, self.pause.paused
        if sink is not None:
            state = TransferState.PENDING
            payout = Payout(
                shard, self.ledger, sink, paused=paused, clock=self.clock, campaign=CAMPAIGN
            )
        return Settlement(
            self.store,
            Settler(shard, self.ledger, state=state, wall_ms=wall_ms),
            self.rules,
            payout=payout,
            rounds=self.pause.round,
            counts=self.metrics,
            timing=FAST,
        )

    async def set_pause(self, value: bool) -> Versioned:
        setting = switches.Setting(value, "wang", "test", 0, None)
        return await self.store.put("switches/settle_pause", switches.setting_to_json(setting))

    async def acked(self, written: Versioned) -> bool:
        """Tell whether the switch's newest ack is for this document."""
        ack = (await self.store.read("acks/switches/settle_pause/settle-a-0")).value
        return bool(ack) and json.loads(ack) == {"revision": written.revision}

    async def serve(self, shard: int, held: HeldLease, leave: asyncio.Event) -> None:
        await self.settlement(shard).run(leave)

    def host(self, name: str, shards: range) -> ShardHost:
        limits = HostLimits(lease_ttl_s=LIMIT_S, tick_s=0.02)  # nobody dies here
        member = Member(name, name, "", "settle")
        return ShardHost(self.store, member, "settle", shards, self.serve, time.monotonic, limits)

    async def holders(self) -> list[str]:
        """Return who settles the shards that somebody settles."""
        leases = await self.store.read_prefix("lease/settle/")
        return [Member.from_json(lease.value).process for lease in leases]

    async def until_held(self, **shards: int) -> None:
        async def held() -> bool:
            return Counter(await self.holders()) == shards

        await until(held, f"shards are held as {shards}")

    async def until_settled(self, transfers: int) -> None:
        await until(lambda: len(self.ledger.transfers) >= transfers, f"{transfers} are settled")


@pytest.fixture
async def stage(minted: MintedCampaign) -> Stage:
    made = Stage(minted)
    await write_documents(made.store, active={1: 1, 2: 1})
    return made


async def test_the_log_is_settled_up_to_the_applied_position_and_not_past_it(stage: Stage) -> None:
    blocks = blocks_of(shard_claims(stage.minted, count=40))
    await write_log(stage.store, 0, blocks[:4])
    await write_log(stage.store, 0, blocks[4:], applied=False)
    settlement = stage.settlement()
    assert await settlement.step()
    assert not await settlement.step()
    assert stage.ledger.position(0) == 4
    assert await log_lag(stage.store, 0, 4) == len(blocks) - 4
    key = ShardKey("claims", 0)
    await stage.store.put_many([(key.applied(one.position), b"\x01") for one in blocks[4:]])
    assert await settlement.step()
    assert len(stage.ledger.transfers) == 40
    counted = stage.registry.get_sample_value("hongbao_settle_claims_total", {"outcome": "posted"})
    assert counted == 40


async def test_blocks_without_claims_are_no_lag(stage: Stage) -> None:
    """Refunds do not wait for a settle process that has nothing to pay."""
    blocks = blocks_of(shard_claims(stage.minted, count=400), size=2)
    closing = Block(BlockKind.OPERATIONS, 1, bytes(16), len(blocks), (CLOSING,))
    await write_log(stage.store, 0, [*blocks, closing])
    assert await log_lag(stage.store, 0, len(blocks) - 3) == 3
    assert await log_lag(stage.store, 0, len(blocks)) == 0
    epochs = [
        Block(BlockKind.EPOCH, 1, bytes(16), position, ())
        for position in range(len(blocks) + 1, len(blocks) + 301)
    ]
    await write_log(stage.store, 0, epochs)
    assert await log_lag(stage.store, 0, len(blocks)) == 0


async def test_a_key_that_is_denied_meanwhile_is_not_paid_from_the_next_block_on(
    stage: Stage,
) -> None:
    """F20: rules are read after the block that they judge; tables are loaded once."""
    blocks = blocks_of(shard_claims(stage.minted, count=16))
    settlement = stage.settlement()
    await write_log(stage.store, 0, blocks[:2])
    await settlement.step()
    key_id = next(iter(stage.ledger.transfers.values())).key_id
    await write_documents(stage.store, active={1: 1, 2: 1}, deny=[key_id])
    await write_log(stage.store, 0, blocks[2:])
    await settlement.step()
    assert len(stage.ledger.transfers) == 8
    assert {row.reason for row in stage.ledger.quarantine.values()} == {"key_denied"}
    assert stage.loads == 1


async def test_claims_of_a_scheme_that_is_not_stored_wait_and_all_others_are_settled(
    stage: Stage, tmp_path: Path
) -> None:
    """R35, R37: an active scheme that settlement cannot find once stopped the crediting of all."""
    late = tiny_campaign(tmp_path, scheme_number=2)
    known = [one for one in shard_claims(stage.minted) if one.slot == 2][:8]
    waiting = [one for one in shard_claims(late) if one.slot == 1][:8]
    await write_documents(stage.store, active={1: 2, 2: 1})
    await write_log(stage.store, 0, blocks_of(known + waiting + known[:1]))
    settlement = stage.settlement()
    assert await settlement.step()
    assert (len(stage.ledger.transfers), stage.ledger.position(0)) == (8, 2)
    with pytest.raises(Transient, match="slots \\[1\\]"):
        await settlement.step()
    stage.late = [late]
    assert await settlement.step()
    assert (len(stage.ledger.transfers), stage.ledger.quarantine) == (16, {})
    loads = stage.loads
    await stage.rules.book()
    assert stage.loads == loads


async def test_a_late_scheme_that_is_broken_stops_only_its_own_claims(
    stage: Stage, tmp_path: Path
) -> None:
    settlement = stage.settlement()
    await write_log(stage.store, 0, blocks_of(shard_claims(stage.minted, count=8)))
    assert await settlement.step()
    stage.late = [tiny_campaign(tmp_path, scheme_number=2)]
    (tmp_path / "objects" / stage.late[0].manifest.amounts.name).write_bytes(b"torn")
    await write_documents(stage.store, active={1: 1, 2: 2})
    claims = [one for one in shard_claims(stage.minted, count=16) if one.slot == 1][8:]
    await write_log(stage.store, 0, blocks_of(claims, position=2))
    assert await settlement.step()
    assert len(stage.ledger.transfers) == 16


async def test_settle_pause_stops_crediting_and_is_acknowledged(stage: Stage) -> None:
    """R24, R30: a backlog delays credit and loses nothing; the switch makes one."""
    written = await stage.set_pause(True)
    leave = asyncio.Event()
    running = asyncio.create_task(stage.settlement().run(leave))
    await write_log(stage.store, 0, blocks_of(shard_claims(stage.minted, count=8)))
    await until(lambda: stage.acked(written), "the pause is acknowledged")
    await asyncio.sleep(0.05)
    assert stage.ledger.transfers == {}
    await stage.store.delete(written.key)
    await stage.until_settled(8)
    leave.set()
    await running


class SlowSink:
    """Is a payment backend that answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Transfer] = []
        self.answer = asyncio.Event()

    async def pay(self, transfer: Transfer) -> SinkReply:
        self.asked.append(transfer)
        await self.answer.wait()
        return SinkReply(SinkAnswer.PAID)


async def test_a_pause_is_acknowledged_once_no_payment_is_under_way(stage: Stage) -> None:
    """As found: the shard's other task acknowledged while a round of 256 went on being paid."""
    claims = shard_claims(stage.minted, count=PAYOUT_CALLS_MAX + 8)
    await write_log(stage.store, 0, blocks_of(claims))
    sink, leave = SlowSink(), asyncio.Event()
    running = asyncio.create_task(stage.settlement(sink=sink).run(leave))
    await stage.until_settled(len(claims))
    await until(lambda: len(sink.asked) == PAYOUT_CALLS_MAX, "all calls are under way")
    written = await stage.set_pause(True)
    await until(stage.pause.paused, "the switch is read")
    reads = stage.store.reads["switches/settle_pause"]
    await until(lambda: stage.store.reads["switches/settle_pause"] > reads + 3, "it is read again")
    assert not await stage.acked(written)
    sink.answer.set()
    await until(lambda: stage.acked(written), "the pause is acknowledged")
    assert len(sink.asked) == PAYOUT_CALLS_MAX
    assert len(stage.ledger.pending(0, 100)) == len(claims) - PAYOUT_CALLS_MAX
    await stage.store.delete(written.key)
    await until(lambda: not stage.ledger.pending(0, 100), "the others are paid")
    assert sorted(one.serial for one in sink.asked) == sorted(one.serial for one in claims)
    leave.set()
    await running


async def test_a_pause_that_ends_is_acknowledged_while_other_shards_work(stage: Stage) -> None:
    async with stage.pause.round() as may_work:
        assert may_work
        on = await stage.set_pause(True)
        async with stage.pause.round() as may_work:
            assert not may_work
        assert not await stage.acked(on)
        off = await stage.set_pause(False)
        async with stage.pause.round() as may_work:
            assert may_work
        assert await stage.acked(off)


async def test_a_broken_switch_document_leaves_the_last_known_good(stage: Stage) -> None:
    on = await stage.set_pause(True)
    async with stage.pause.round() as may_work:
        assert not may_work
    await stage.store.put("switches/settle_pause", b"{")
    async with stage.pause.round() as may_work:
        assert not may_work
    assert await stage.acked(on)


@pytest.mark.parametrize("document", [b"{", b"[1]", b'{"a": 1}'])
def test_a_broken_rules_document_is_corrupt(document: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_active(Versioned("active", document, 3))
    if document != b'{"a": 1}':
        with pytest.raises(Corrupt):
            parse_keys(Versioned("keys", document, 3))


async def test_one_process_settles_all_shards_and_two_share_them(stage: Stage) -> None:
    hosts = {name: stage.host(name, range(4)) for name in "ab"}
    running = [asyncio.create_task(hosts["a"].run())]
    await stage.until_held(a=4)
    running.append(asyncio.create_task(hosts["b"].run()))
    await stage.until_held(a=2, b=2)
    await write_log(stage.store, 0, blocks_of(shard_claims(stage.minted, 0, count=8)))
    await write_log(stage.store, 1, blocks_of(shard_claims(stage.minted, 1, count=8)))
    await stage.until_settled(16)
    await hosts["a"].stop()
    await stage.until_held(b=4)
    await hosts["b"].stop()
    await asyncio.gather(*running)
    assert await stage.store.read_prefix("lease/") == []


async def test_a_shard_whose_log_is_broken_stops_alone(stage: Stage) -> None:
    key = ShardKey("claims", 0)
    await stage.store.create(key.log(0), b"nonsense")
    await stage.store.put_many([(key.applied(0), b"\x01")])
    await write_log(stage.store, 1, blocks_of(shard_claims(stage.minted, 1, count=8)))
    host = stage.host("a", range(2))
    running = asyncio.create_task(host.run())
    await stage.until_settled(8)
    await asyncio.sleep(0.15)
    assert [lease.key for lease in await stage.store.read_prefix("lease/settle/")] == [
        "lease/settle/1"
    ]
    await host.stop()
    await running


async def test_a_log_whose_epochs_fall_is_not_settled(stage: Stage) -> None:
    blocks = blocks_of(shard_claims(stage.minted, count=16))
    await write_log(stage.store, 0, [*blocks[:2], replace(blocks[2], epoch=0)])
    with pytest.raises(Corrupt, match="epochs fall"):
        await stage.settlement().step()
    assert stage.ledger.transfers == {}


async def test_a_bug_in_settlement_is_corrupt_so_that_its_shard_is_left_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settlement = stage.settlement()
    monkeypatch.setattr(settlement, "step", lambda: 1 // 0)
    with pytest.raises(Corrupt, match="ZeroDivisionError"):
        await settlement.run(asyncio.Event())
