"""The battery of bad sessions and claim tokens: one answer for all, nothing changes (R44, R55)."""

from collections.abc import Callable
from hashlib import shake_256
from pathlib import Path

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.cipher.derive import binding_key
from hongbao.domain.errors import Transient, Unauthenticated
from hongbao.domain.ids import CampaignId, KeyId
from hongbao.domain.ticket import TOKEN_BYTES, campaign_hash
from hongbao.domain.token import seal_claim, seal_session
from hongbao.redeem.epochs import EpochReader
from hongbao.redeem.judge import Cause
from hongbao.redeem.limits import RedeemLimits
from hongbao.shards.ports import Versioned
from hongbao.transport.errors import failure_of

from tests.minted import tiny_campaign
from tests.redeem.world import EPOCH, HASH, SLOT_MS, START_MS, USER, World

ONE_ANSWER = failure_of(Unauthenticated("whatever was wrong"))
"""What goes over the wire, byte for byte: session or token, nobody learns which was bad."""


async def refused(world: World, claim_token: bytes, *, user: int = USER) -> None:
    """Open, and check that the one answer came."""
    with pytest.raises(Unauthenticated) as caught:
        await world.open(claim_token, user=user)
    assert failure_of(caught.value) == ONE_ANSWER


async def nothing_changed(world: World) -> None:
    """Check that nothing was asked of any shard, and that the good token still opens."""
    assert world.submitted == 0
    assert await world.claims() == []
    assert (await world.open()).amount_fen > 0


async def test_every_flipped_bit_of_a_good_token_is_refused(world: World) -> None:
    """faults.md, bad input: all bit flips of head, record, ticket and MAC."""
    good = world.token()
    for bit in range(8 * TOKEN_BYTES):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        await refused(world, bytes(flipped))
    await nothing_changed(world)


async def test_random_truncated_and_padded_bytes_are_refused(world: World) -> None:
    good = world.token()
    noise = [shake_256(str(seed).encode()).digest(TOKEN_BYTES) for seed in range(200)]
    cut = [good[:length] for length in range(TOKEN_BYTES)]
    for bad in [*noise, *cut, good + b"\0", good * 2, b"\0" * TOKEN_BYTES, b"\1" * 100_000]:
        await refused(world, bad)
    await nothing_changed(world)


BAD_TOKENS: dict[str, tuple[Cause, Callable[[World], bytes]]] = {
    "of another user": (Cause.MAC, lambda world: world.token(user=USER + 1)),
    "of another pod's key": (
        Cause.MAC,
        lambda world: seal_claim(
            binding_key(world.minted.keyring.token_root, 2, EPOCH),
            *(HASH, 1, EPOCH, 0, world.clock.now_ms // 1000 + 60, world.record(), USER),
        ),
    ),
    "of another campaign": (
        Cause.MAC,
        lambda world: seal_claim(
            binding_key(world.minted.keyring.token_root, 1, EPOCH),
            campaign_hash(CampaignId("other")),
            *(1, EPOCH, 0, world.clock.now_ms // 1000 + 60, world.record(), USER),
        ),
    ),
    "expired": (Cause.EXPIRED, lambda world: world.token(expiry_s=world.clock.now_ms // 1000)),
    "of a slot that does not exist": (
        Cause.SLOT,
        lambda world: world.token(world.record()[:2] + b"\0\x09" + world.record()[4:]),
    ),
    "of an unknown key": (
        Cause.TICKET,
        lambda world: world.token(b"\x0f\xff" + world.record()[2:]),
    ),
    "of another slot's key": (
        Cause.TICKET,
        lambda world: world.token(world.record(slot=2)[:2] + world.record()[2:]),
    ),
    "of another sponsor": (
        Cause.TICKET,
        lambda world: world.token(world.record()[:4] + b"\0\x09" + world.record()[6:]),
    ),
    "with the ticket of another record": (
        Cause.TICKET,
        lambda world: world.token(world.record()[:10] + world.record(place=1)[10:]),
    ),
    "with random bytes as its record": (Cause.SLOT, lambda world: world.token(b"\xa5" * 26)),
    "with an amount below its batch": (
        Cause.AMOUNT,
        lambda world: world.token(world.forged_record(0)),
    ),
    "with an amount above its batch": (
        Cause.AMOUNT,
        lambda world: world.token(world.forged_record(2001)),
    ),
    "with the greatest amount there is": (
        Cause.AMOUNT,
        lambda world: world.token(world.forged_record((1 << 24) - 1)),
    ),
    "with a serial past its batch": (
        Cause.PACKET,
        lambda world: world.token(world.forged_record(5, batch=2, offset=43, key_id=KeyId(2))),
    ),
    "of the other claims shard": (Cause.SHARD, lambda world: world.token(claims_shard=1)),
    "of a shard that does not exist": (Cause.SHARD, lambda world: world.token(claims_shard=9)),
    "of a file that its pod never had": (Cause.ASSIGNMENT, lambda world: world.token(pod=2)),
    "of a pod that does not exist": (Cause.EPOCH, lambda world: world.token(pod=9)),
    "of an epoch that does not exist": (Cause.EPOCH, lambda world: world.token(epoch=EPOCH + 1)),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_a_bad_token_gets_the_one_answer_and_changes_nothing(world: World, name: str) -> None:
    """faults.md, bad input and threat model: forged, stolen, replayed elsewhere, out of time."""
    cause, make = BAD_TOKENS[name]
    await refused(world, make(world))
    assert world.role.counters()[f"refused_{cause}"] == 1
    await nothing_changed(world)


async def test_amounts_at_the_bounds_of_the_batch_are_good(world: World) -> None:
    for place, amount_fen in enumerate((1, 2000)):
        forged = world.forged_record(amount_fen, offset=place)
        assert (await world.open(world.token(forged))).amount_fen == amount_fen


async def test_a_token_under_the_wrong_key_of_its_batch_is_refused(world: World) -> None:
    """R45: the other key of the same batch guards other serials; money per key stays capped."""
    batch = world.minted.plan.batches[0]
    assert len(batch.key_ids) == 2
    forged = world.forged_record(5, offset=0, key_id=batch.key_ids[1])
    await refused(world, world.token(forged))
    assert world.role.counters()["refused_key"] == 1
    await nothing_changed(world)


async def test_a_packet_of_a_scheme_that_is_not_active_is_refused(
    world: World, tmp_path: Path
) -> None:
    """R42: of the alternative ticket sets of one budget only the active one is paid."""
    other = tiny_campaign(tmp_path, scheme_number=2)
    world.role.use_manifests([world.minted.manifest, other.manifest])
    revision = await world.write("active", {"1": 2, "2": 1})
    await world.acked("campaigns/tiny/active", revision)
    await refused(world, world.token())
    assert world.role.counters()["refused_packet"] == 1


async def test_a_token_is_good_until_the_grace_after_its_slot_and_then_refused(
    world: World,
) -> None:
    """A captured pod may write any expiry into a token; the slot's end still holds."""
    late = world.token(expiry_s=(1 << 32) - 1)
    until_ms = START_MS + SLOT_MS + 600_000
    world.clock.now_ms = until_ms
    await refused(world, late)
    world.clock.now_ms = until_ms - 1
    assert (await world.open(late)).amount_fen > 0


async def test_keys_of_a_slot_load_when_it_starts_and_not_before(world: World) -> None:
    """Threat model, early leak of files: a token of the next slot is as good as noise."""
    token = world.token(world.record(slot=2))
    keys = world.role._slot_keys
    world.clock.now_ms = START_MS + SLOT_MS - 2001
    with pytest.raises(Transient):
        await world.open(token)
    await world.open()
    assert list(keys._loaded) == [1]
    world.clock.now_ms = START_MS + SLOT_MS - 2000
    assert (await world.open(token)).amount_fen > 0
    assert list(keys._loaded) == [1, 2]


@pytest.mark.parametrize(("early_ms", "wait_s"), [(1, 0.001), (60_000, 5.0)])
async def test_a_good_token_that_comes_before_its_slot_by_our_clock_may_come_again(
    world: World, early_ms: int, wait_s: float
) -> None:
    """F9: clocks differ; a client drops a token that is refused, and with it the packet."""
    token = world.token(world.record(slot=2))
    world.clock.now_ms = START_MS + SLOT_MS - 2000 - early_ms
    with pytest.raises(Transient) as caught:
        await world.open(token)
    assert caught.value.retry_after_s == wait_s
    assert world.role.counters()["early"] == 1
    await refused(world, token, user=USER + 1)  # without a good MAC it is as bad as any
    world.clock.now_ms += early_ms
    assert (await world.open(token)).amount_fen > 0


async def test_every_bad_session_gets_one_answer(world: World) -> None:
    """faults.md, bad input: sessions flipped, cut, expired, of another campaign or key."""
    good = world.session()
    flipped = [
        bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(good))
        for bit in range(8 * len(good))
    ]
    foreign_key = seal_session(b"k" * 32, HASH, USER, 0, world.clock.now_ms // 1000 + 60)
    foreign_campaign = seal_session(
        world.minted.keyring.session_key,
        campaign_hash(CampaignId("other")),
        *(USER, 0, world.clock.now_ms // 1000 + 60),
    )
    expired = world.session(expires_in_s=0)
    for bad in [*flipped, b"", good[:-1], good + b"\0", foreign_key, foreign_campaign, expired]:
        request = world.request()
        request.session = bad
        with pytest.raises(Unauthenticated) as caught:
            await world.role.open(request)
        assert failure_of(caught.value) == ONE_ANSWER
    await nothing_changed(world)


async def test_forged_tickets_under_one_key_raise_one_alarm_per_window(world: World) -> None:
    """Threat model, token flood: failures per key call a person, once."""
    for _ in range(50):
        await refused(world, world.token(world.forged_record(2001)))
    assert world.role.counters()["alarms"] == 1
    world.clock.now_ms += 10_000
    for _ in range(20):
        await refused(world, world.token(world.forged_record(2001)))
    assert world.role.counters()["alarms"] == 2


async def test_noise_without_a_good_mac_raises_no_alarm_in_the_name_of_a_key(
    world: World,
) -> None:
    for user in range(100, 150):
        await refused(world, world.token(user=user))
    assert world.role.counters()["alarms"] == 0


async def test_tokens_of_unknown_pods_cost_only_so_many_reads_a_second(world: World) -> None:
    """A storm of new epochs: more tokens than looks are told to come again, none is refused."""

    class CountedReads(MemoryStore):
        reads = 0

        async def read(self, key: str) -> Versioned:
            self.reads += 1
            return await super().read(key)

    store = CountedReads()
    epochs = EpochReader(
        store, world.role.facts, reads_per_s=20, monotonic_s=world.clock.monotonic_s
    )
    assert not any([await epochs.exists(pod, 1) for pod in range(100, 120)])
    with pytest.raises(Transient):
        await epochs.exists(120, 1)
    assert store.reads == 20
    world.clock.now_ms += 1000
    await epochs.exists(100, 1)
    assert store.reads == 21


async def test_a_stranger_who_makes_up_epochs_causes_no_reads_and_empties_no_cache(
    world: World,
) -> None:
    """Threat model, token flood: the MAC is proved before anything is looked up."""
    limits, reads = RedeemLimits(), world.store.read
    looked_up: list[str] = []

    async def read(key: str) -> Versioned:
        looked_up.append(key)
        return await reads(key)

    world.store.read = read  # type: ignore[method-assign]
    for epoch in range(limits.epoch_reads_per_s + 5):
        await refused(world, world.token(epoch=EPOCH + 1 + epoch, user=USER + 1))
    assert [key for key in looked_up if key.startswith("pods/")] == []
    await world.store.put("pods/1/epoch", str(EPOCH + 1).encode())
    assert (await world.open(world.token(epoch=EPOCH + 1))).amount_fen > 0
