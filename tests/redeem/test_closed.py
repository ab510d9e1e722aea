"""Closing a campaign: after the ack nothing is opened, refunds meet no late claim (R36)."""

import asyncio
import json
import os
import time
from typing import Any

import pytest
from hongbao.domain.claim import Claim, pack_claim
from hongbao.domain.errors import Corrupt, Fenced, Rejected, Transient
from hongbao.domain.timeline import Closed
from hongbao.proto.v1 import redeem_pb2
from hongbao.redeem.closing import close_logs, open_logs
from hongbao.redeem.role import RedeemRole, RedeemSecrets
from hongbao.shards.block import ShardKey
from hongbao.shards.replay import read_blocks

from tests.minted import CAMPAIGN
from tests.redeem.test_documents import StuckLog
from tests.redeem.world import World
from tests.waiting import LIMIT_S, until

CLOSED = "campaigns/tiny/closed"
DOCUMENT = Closed(at_ms=1, by="wang").to_json()
SHARDS = (0, 1)
CLOSER: dict[str, Any] = {
    "process": "fund-refund-1",
    "nonces": lambda: os.urandom(16),
    "monotonic_s": time.monotonic,
}


async def rejected(world: World) -> None:
    with pytest.raises(Rejected, match=r"^the campaign is closed$") as caught:
        await world.open()
    assert type(caught.value) is Rejected


async def test_a_closed_campaign_opens_nothing_after_the_ack(world: World) -> None:
    await world.acked(CLOSED, await world.write("closed", DOCUMENT))
    await rejected(world)
    assert world.submitted == 0
    assert await world.claims() == []


async def test_the_ack_of_closing_waits_for_opens_that_are_under_way(world: World) -> None:
    """What is opened before the log is closed will be settled before money goes back."""
    world.gate.clear()
    call = asyncio.create_task(world.open())
    await asyncio.sleep(0)
    ack = asyncio.create_task(world.acked(CLOSED, await world.write("closed", DOCUMENT)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ack.done()
    assert await open_logs(world.store, SHARDS) == [0, 1]
    world.gate.set()
    await ack
    assert (await call).outcome == redeem_pb2.OPENED
    assert len(await world.claims()) == 1


async def test_the_ack_of_closing_says_that_every_log_is_closed(world: World) -> None:
    await world.open()
    await world.acked(CLOSED, await world.write("closed", DOCUMENT))
    for shard in SHARDS:
        with pytest.raises(Corrupt, match="behind its closing"):
            await forge_behind(world, shard)
    await until_open(world, [])
    await close_logs(world.store, world.store, SHARDS, **CLOSER)  # finds nothing to do
    assert await world.store.read_prefix("lease/") == []


async def test_a_lone_process_that_is_paused_before_its_append_is_fenced_by_closing(
    world: World,
) -> None:
    """As found: one block after closing, acknowledged, then quarantined and never paid."""
    log = StuckLog(world.store)
    await world.take_over(0, epoch=10, store=log)
    log.free.clear()
    log.stuck.clear()
    call = asyncio.create_task(world.open())
    await log.stuck.wait()  # decided, under a lease that was valid
    await close_logs(world.store, world.store, SHARDS, **CLOSER)
    assert await open_logs(world.store, SHARDS) == []
    log.free.set()
    with pytest.raises((Transient, Fenced)):
        await call
    assert await world.claims() == []


async def test_a_process_that_wakes_late_and_takes_a_closed_shard_opens_nothing(
    world: World,
) -> None:
    """It has not heard of the closing, but it reads the log before it serves."""
    await close_logs(world.store, world.store, SHARDS, **CLOSER)
    await world.take_over(0, epoch=1 << 40)
    assert not world.role.facts.closed
    await rejected(world)
    assert world.submitted == 1
    assert await world.claims() == []


async def test_closing_waits_for_a_shard_that_somebody_holds(world: World) -> None:
    lease = await world.store.acquire("claims/1", "redeem-b-0", ttl_s=60, value=b"{}")
    assert lease is not None
    closing = asyncio.create_task(close_logs(world.store, world.store, SHARDS, **CLOSER))
    await until_open(world, [1])
    assert not closing.done()
    await world.store.release(lease)
    async with asyncio.timeout(LIMIT_S):
        await closing
    assert await open_logs(world.store, SHARDS) == []


async def forge_behind(world: World, shard: int) -> None:
    """Replay a shard's log with one more claim at its end."""
    key, machine = ShardKey("claims", shard), world.role.new_machine(shard)
    blocks = await read_blocks(world.store, key, 0, 100, limit=100)
    for entry in [entry for block in blocks for entry in block.entries]:
        machine.apply(entry, 0)
    machine.apply(pack_claim(Claim(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)), 99)


async def until_open(world: World, shards: list[int]) -> None:
    async def open_now() -> bool:
        return await open_logs(world.store, SHARDS) == shards

    await until(open_now, f"the open logs are {shards}")


async def test_a_process_that_starts_in_a_closed_campaign_opens_nothing(world: World) -> None:
    """As found: refunds, then a restart, then an open that settlement could only quarantine."""
    await world.write("closed", DOCUMENT)
    await world.role.drain()
    keyring, clock = world.minted.keyring, world.clock
    world.role = RedeemRole(
        campaign=CAMPAIGN,
        process="redeem-a-0",
        secrets=RedeemSecrets(keyring.ticket_masters, keyring.token_root, keyring.session_key),
        manifests=[world.minted.manifest],
        submit=world.submit,
        coordination=world.store,
        wall_ms=clock.wall_ms,
        monotonic_s=clock.monotonic_s,
    )
    await world.role.start()
    await rejected(world)


async def test_a_campaign_stays_closed_when_the_document_is_deleted(world: World) -> None:
    await world.acked(CLOSED, await world.write("closed", DOCUMENT))
    await world.store.delete(CLOSED)
    for _ in range(20):
        await asyncio.sleep(0)
    await rejected(world)


@pytest.mark.parametrize("document", [b"{", b"[]", b"{}", json.dumps({"at_ms": "x"}).encode()])
async def test_a_broken_document_closes_nothing_and_is_not_acknowledged(
    world: World, document: bytes
) -> None:
    await world.write("closed", document)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (await world.open()).amount_fen > 0
    assert await world.store.read_prefix(f"acks/{CLOSED}/") == []
