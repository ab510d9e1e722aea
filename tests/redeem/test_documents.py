"""Documents of Coordination: effective at once, acknowledged, last known good (F20, R46)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog.testing
from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous, Corrupt, Rejected, Transient, Unauthenticated
from hongbao.proto.v1 import redeem_pb2
from hongbao.redeem.flights import Flights
from hongbao.redeem.role import RedeemRole, RedeemSecrets

from tests.redeem.world import EPOCH, START_MS, World, make_world

KEYS = "campaigns/tiny/keys"


def key_of(record: bytes) -> int:
    return int.from_bytes(record[:2], "big")


async def other_record(world: World) -> bytes:
    """Return a record of file 0 under another key than its first record."""
    file = world.minted.manifest.files[0]
    records = [world.record(place=place) for place in range(file.count)]
    return next(record for record in records if key_of(record) != key_of(records[0]))


async def test_a_denied_key_opens_nothing_after_the_ack_and_others_go_on(world: World) -> None:
    """F20: effective at once."""
    denied = world.record()
    revision = await world.deny(key_of(denied))
    await world.acked(KEYS, revision)
    with pytest.raises(Unauthenticated):
        await world.open(world.token(denied))
    assert world.submitted == 0  # its owner would refuse it too, but is not even asked
    other = await world.open(world.token(await other_record(world)))
    assert other.outcome == redeem_pb2.OPENED
    assert key_of(denied) not in {claim.key_id for claim in await world.claims()}


async def test_a_denied_key_does_not_even_answer_a_repeat(world: World) -> None:
    """F20: zero opens with the key, whoever opened before; settle decides on those."""
    await world.open()
    await world.acked(KEYS, await world.deny(key_of(world.record())))
    with pytest.raises(Unauthenticated):
        await world.open()


async def test_the_ack_of_a_denied_key_waits_for_opens_that_are_under_way(world: World) -> None:
    """F20: an open that passed the old list is over before the ack is written."""
    world.gate.clear()
    call = asyncio.create_task(world.open())
    await asyncio.sleep(0)
    revision = await world.deny(key_of(world.record()))
    ack = asyncio.create_task(world.acked(KEYS, revision))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not world.role.facts.key_allowed(key_of(world.record()))
    assert not ack.done()
    world.gate.set()
    await ack
    assert call.done()


class StuckLog:
    """Is a log whose next `create` waits until `free` is set."""

    def __init__(self, store: MemoryStore) -> None:
        self.get, self.scan, self.put_many = store.get, store.scan, store.put_many
        self.store = store
        self.free, self.stuck = asyncio.Event(), asyncio.Event()
        self.free.set()

    async def create(self, key: bytes, value: bytes) -> bool:
        self.stuck.set()
        await self.free.wait()
        return await self.store.create(key, value)


@contextlib.asynccontextmanager
async def stuck_open(world: World) -> AsyncIterator[StuckLog]:
    """Give up waiting for an open whose block is decided and does not reach the log."""
    log = StuckLog(world.store)
    await world.take_over(0, epoch=10, store=log)
    log.free.clear()
    log.stuck.clear()
    call = asyncio.create_task(world.open())
    await log.stuck.wait()
    call.cancel()
    yield log
    log.free.set()


async def early(world: World, revision: int) -> bool:
    """Say whether the revision is acknowledged although nothing has happened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await world.acked(KEYS, revision)
            return True
    return False


async def test_the_ack_waits_for_a_block_on_its_way_although_its_caller_is_gone(
    world: World,
) -> None:
    """F20: not for some time, but until the block's outcome is known."""
    async with stuck_open(world) as log:
        revision = await world.deny(key_of(world.record()))
        acked_early, claims_early = await early(world, revision), await world.claims()
        log.free.set()
        await world.acked(KEYS, revision)
        assert not acked_early
        assert (len(claims_early), len(await world.claims())) == (0, 1)


async def test_the_ack_of_a_block_that_its_owner_gave_up_waits_for_the_next_owner(
    world: World,
) -> None:
    """F20: until somebody has taken the shard over, the block may still come."""
    async with stuck_open(world) as log:
        await world.owners[0].stop(Ambiguous("no answer about the block"))
        revision = await world.deny(key_of(world.record()))
        acked_early = await early(world, revision)
        log.free.set()
        await world.take_over(0, epoch=11)
        await world.acked(KEYS, revision)
        assert not acked_early


async def test_an_owner_refuses_operations_under_a_key_that_was_denied_meanwhile(
    world: World,
) -> None:
    """F20: another process may have sent it before it knew."""
    world.gate.clear()
    call = asyncio.create_task(world.open())
    await asyncio.sleep(0)
    world.role.facts.apply(KEYS, b'{"deny": [%d], "allow": null}' % key_of(world.record()))
    world.gate.set()
    with pytest.raises(Unauthenticated):
        await call
    assert await world.claims() == []


@pytest.mark.parametrize("seed", range(5))
async def test_no_claim_under_a_denied_key_is_younger_than_the_ack(world: World, seed: int) -> None:
    """F20: users open all the time while the key is denied at some moment."""
    file = world.minted.manifest.files[0]
    records = [world.record(place=place) for place in range(file.count)]
    denied = key_of(records[0])

    async def open_all(first: int) -> None:
        for record in records[first::4]:
            try:
                await world.open(world.token(record))
            except Unauthenticated:
                assert key_of(record) == denied
            await asyncio.sleep(0)

    users = [asyncio.create_task(open_all(first)) for first in range(4)]
    for _ in range(3 + 7 * seed):
        await asyncio.sleep(0)
    await world.acked(KEYS, await world.deny(denied))
    opened = {claim.serial for claim in await world.claims() if claim.key_id == denied}
    await asyncio.gather(*users)
    claims = await world.claims()
    assert {claim.serial for claim in claims if claim.key_id == denied} == opened
    others = [record for record in records if key_of(record) != denied]
    assert len([claim for claim in claims if claim.key_id != denied]) == len(others)


async def test_only_keys_of_the_allow_list_open_when_there_is_one(world: World) -> None:
    """R46: the white list."""
    allowed = await other_record(world)
    document = {"deny": [], "allow": [key_of(allowed)]}
    await world.acked(KEYS, await world.write("keys", document))
    with pytest.raises(Unauthenticated):
        await world.open()
    assert (await world.open(world.token(allowed))).outcome == redeem_pb2.OPENED


@pytest.mark.parametrize(
    "document",
    [b'{"deny": [5], "allow": [5]}', b"{", b"[]", b'{"deny": "5", "allow": null}', b"null"],
)
async def test_broken_key_lists_are_refused_and_the_last_good_stay_in_force(
    world: World, document: bytes
) -> None:
    """faults.md, keys: an id on both lists; a person is told, nothing is acknowledged."""
    denied = key_of(world.record())
    good = await world.deny(denied)
    await world.acked(KEYS, good)
    with structlog.testing.capture_logs() as logs:
        await world.write("keys", document)
        marker = await world.write("active", {"1": 1, "2": 1})
        await world.acked("campaigns/tiny/active", marker)
    assert [(log["event"], log["log_level"]) for log in logs] == [("document_refused", "error")]
    with pytest.raises(Unauthenticated):
        await world.open()
    ack = (await world.store.read(f"acks/{KEYS}/redeem-a-0")).value
    assert json.loads(ack) == {"revision": good}


@pytest.mark.parametrize("name", ["timeline", "active", "assignment", "keys"])
@pytest.mark.parametrize("document", [b"{", b"[1]", b'"x"', b'{"1": "x"}', b'{"files": {"0": 1}}'])
async def test_a_broken_document_changes_nothing(world: World, name: str, document: bytes) -> None:
    with pytest.raises((Corrupt, Rejected)):
        world.role.facts.apply(f"campaigns/tiny/{name}", document)
    assert (await world.open()).outcome == redeem_pb2.OPENED


async def test_a_deleted_document_leaves_the_last_known_in_force(world: World) -> None:
    await world.acked(KEYS, await world.deny(key_of(world.record())))
    await world.store.delete(KEYS)
    marker = await world.write("active", {"1": 1, "2": 1})
    await world.acked("campaigns/tiny/active", marker)
    with pytest.raises(Unauthenticated):
        await world.open()


def role_over(world: World) -> RedeemRole:
    """Return another, not yet started role over the same store."""
    keyring = world.minted.keyring
    return RedeemRole(
        campaign=keyring.campaign,
        process="redeem-b-0",
        secrets=RedeemSecrets(keyring.ticket_masters, keyring.token_root, keyring.session_key),
        manifests=[world.minted.manifest],
        submit=world.submit,
        coordination=world.store,
        wall_ms=world.clock.wall_ms,
        monotonic_s=world.clock.monotonic_s,
    )


async def test_a_process_does_not_start_on_contradicting_key_lists(world: World) -> None:
    """faults.md, keys: on both white- and blacklist, startup refused."""
    await world.write("keys", {"deny": [5], "allow": [5]})
    with pytest.raises(Rejected, match="key 5 is on the deny list and on the allow list"):
        await role_over(world).start()


async def test_a_process_starts_despite_a_broken_switch_or_epoch(world: World) -> None:
    await world.store.put("switches/open_pause", b"{")
    await world.store.put("pods/x/epoch", b"1")
    role = role_over(world)
    await role.start()
    assert role.ready
    await role.drain()


async def test_nothing_opens_until_all_documents_are_there(tmp_path: Path) -> None:
    """A caller may try again: its token is not at fault."""
    world = await make_world(tmp_path)
    role = role_over(world)
    for name in ("timeline", "active", "assignment"):
        await world.store.delete(f"campaigns/tiny/{name}")
    await role.start()
    assert not role.ready
    assert role.facts.missing == ["timeline", "active", "assignment"]
    with pytest.raises(Transient):
        await role.open(world.request())
    await role.drain()
    await world.close()


async def test_what_is_obeyed_here_is_acknowledged_and_nothing_else(world: World) -> None:
    """R30: who has made a switch effective; access answers for its own."""
    document = {"value": True, "by": "a", "why": "b", "set_at_ms": 0, "expires_at_ms": START_MS}
    value = json.dumps(document).encode()
    await world.store.put("switches/shake_pause", value)
    await world.store.put("switches/no_such_switch", value)
    written = await world.store.put("switches/open_pause", value)
    await world.acked("switches/open_pause", written.revision)
    acks = {fact.key for fact in await world.store.read_prefix("acks/")}
    assert acks == {
        "acks/campaigns/tiny/timeline/redeem-a-0",
        "acks/campaigns/tiny/active/redeem-a-0",
        "acks/campaigns/tiny/assignment/redeem-a-0",
        "acks/switches/open_pause/redeem-a-0",
    }


async def test_epochs_only_rise(world: World) -> None:
    world.role.facts.apply("pods/1/epoch", b"1")
    assert world.role.facts.epochs[1] == EPOCH


async def test_another_set_of_schemes_takes_effect_at_once(world: World) -> None:
    """R37: a re-plan brings new manifests; without its scheme nobody can judge a packet."""
    world.role.use_manifests([])
    with pytest.raises(Transient, match="scheme is not loaded"):
        await world.open()
    world.role.use_manifests([world.minted.manifest])
    assert (await world.open()).outcome == redeem_pb2.OPENED


async def test_settled_waits_for_older_opens_only() -> None:
    """F20: or a change would never be acknowledged under load."""
    flights = Flights()
    older = flights.enter()
    settled = asyncio.create_task(flights.settled())
    await asyncio.sleep(0)
    younger = flights.enter()
    assert not settled.done()
    flights.leave(older)
    await settled
    assert flights.count == 1
    flights.leave(younger)
    await flights.settled()


async def test_two_who_wait_for_older_opens_are_both_told() -> None:
    flights = Flights()
    older = flights.enter()
    first = asyncio.create_task(flights.settled())
    await asyncio.sleep(0)
    middle = flights.enter()
    second = asyncio.create_task(flights.settled())
    await asyncio.sleep(0)
    flights.leave(middle)
    await asyncio.sleep(0)
    assert not first.done()
    assert not second.done()
    flights.leave(older)
    await asyncio.gather(first, second)


async def test_secrets_are_never_printed(world: World) -> None:
    """R44: neither the role's secrets nor its caches show a key."""
    keyring = world.minted.keyring
    await world.open()
    secrets = RedeemSecrets(keyring.ticket_masters, keyring.token_root, keyring.session_key)
    shown = repr([secrets, world.role._slot_keys, world.role._judge, world.role.__dict__])
    for secret in (keyring.token_root, keyring.session_key, *keyring.ticket_masters.values()):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_a_role_without_its_secrets_is_refused() -> None:
    with pytest.raises(Rejected):
        RedeemSecrets({}, b"r" * 32, b"s" * 32)
