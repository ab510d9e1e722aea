"""Closing a campaign: after the ack nothing is opened, refunds meet no late claim (R36)."""

import asyncio
import json

import pytest
from hongbao.domain.errors import Rejected
from hongbao.domain.timeline import Closed
from hongbao.redeem.role import RedeemRole, RedeemSecrets

from tests.minted import CAMPAIGN
from tests.redeem.world import World

CLOSED = "campaigns/tiny/closed"
DOCUMENT = Closed(at_ms=1, by="wang").to_json()


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
    """The owner refuses what it has not decided yet; the caller hears why."""
    world.gate.clear()
    call = asyncio.create_task(world.open())
    await asyncio.sleep(0)
    ack = asyncio.create_task(world.acked(CLOSED, await world.write("closed", DOCUMENT)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not ack.done()
    world.gate.set()
    await ack
    assert call.done()
    with pytest.raises(Rejected, match="the campaign is closed"):
        await call
    assert await world.claims() == []


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
