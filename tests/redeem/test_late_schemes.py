"""A scheme that is minted while redeem runs is learned; its opens wait, they are not refused."""

import asyncio
from pathlib import Path

import pytest
from hongbao.domain.errors import Corrupt, Transient, Unauthenticated
from hongbao.domain.manifest import Manifest
from hongbao.domain.ticket import RECORD_BYTES
from hongbao.proto.v1.redeem_pb2 import OPENED
from hongbao.redeem.limits import RedeemLimits
from hongbao.redeem.role import RedeemRole, RedeemSecrets

from tests.minted import CAMPAIGN, MintedCampaign, tiny_campaign
from tests.redeem.world import World, make_world
from tests.waiting import until


class Library:
    """Is the object store as the role sees it: what is minted, and whether it can be read."""

    def __init__(self, *minted: MintedCampaign) -> None:
        self.manifests: list[Manifest] = [one.manifest for one in minted]
        self.error: Exception | None = None
        self.loads = 0

    async def load(self) -> list[Manifest]:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return self.manifests

    async def loaded(self, times: int) -> None:
        await until(lambda: self.loads >= times, f"{times} loads")


async def world_with(tmp_path: Path, library: Library) -> World:
    """Return a world whose role can learn; it was started when only scheme 1 was minted."""
    world = await make_world(tmp_path)
    await world.role.drain()
    keyring = world.minted.keyring
    library.manifests.append(world.minted.manifest)
    world.role = RedeemRole(
        campaign=CAMPAIGN,
        process="redeem-a-0",
        secrets=RedeemSecrets(keyring.ticket_masters, keyring.token_root, keyring.session_key),
        manifests=[world.minted.manifest],
        submit=world.submit,
        coordination=world.store,
        wall_ms=world.clock.wall_ms,
        monotonic_s=world.clock.monotonic_s,
        limits=RedeemLimits(watch_retry_s=0.001),
        load_manifests=library.load,
    )
    await world.role.start()
    for shard in (0, 1):
        await world.take_over(shard, epoch=shard + 10)
    return world


async def activate_late(world: World, late: MintedCampaign) -> bytes:
    """Let slot 1 play scheme 2, all its files on pod 1; return a token of its first record."""
    revision = await world.write(
        "assignment",
        {
            "files": {
                str(file.file): {"slot": file.slot, "pod": 1, "backup": 1, "serving": 1}
                for file in late.plan.files
            }
        },
    )
    await world.acked(f"campaigns/{CAMPAIGN}/assignment", revision)
    await world.write("active", {"1": 2, "2": 1})
    facts, late_batches = world.role.facts, {batch.batch for batch in late.plan.batches}
    await until(lambda: 1 in facts.unknown_slots or late_batches & facts.active_batches)
    name = late.manifest.files[0].name
    data = (late.folder / name).read_bytes()
    return world.token(data[-RECORD_BYTES:])


async def test_a_scheme_minted_while_redeem_runs_is_learned_when_a_slot_plays_it(
    tmp_path: Path,
) -> None:
    """R35, R37: a late sponsor needs no restart."""
    library = Library()
    world = await world_with(tmp_path, library)
    late = tiny_campaign(tmp_path, scheme_number=2)
    assert library.loads == 0
    library.manifests.append(late.manifest)
    token = await activate_late(world, late)
    await until(lambda: not world.role.facts.unknown_slots, "the scheme is learned")
    assert (await world.open(token)).outcome == OPENED
    await asyncio.sleep(0.01)
    assert library.loads == 1
    await world.close()


@pytest.mark.parametrize("error", [None, Corrupt("a bad signature"), OSError("no disk")])
async def test_opens_of_an_unknown_scheme_wait_until_it_is_found(
    tmp_path: Path, error: Exception | None
) -> None:
    """A client drops a token that is refused; one that may come again it keeps."""
    library = Library()
    world = await world_with(tmp_path, library)
    late = tiny_campaign(tmp_path, scheme_number=2)
    library.error = error
    token = await activate_late(world, late)
    await library.loaded(2)
    with pytest.raises(Transient, match="not loaded yet"):
        await world.open(token)
    with pytest.raises(Unauthenticated):
        await world.open(token[:-1] + bytes([token[-1] ^ 1]))
    library.error = None
    library.manifests.append(late.manifest)
    await until(lambda: not world.role.facts.unknown_slots, "the scheme is learned")
    assert (await world.open(token)).outcome == OPENED
    await world.close()


async def test_other_slots_are_opened_while_one_slot_s_scheme_is_unknown(tmp_path: Path) -> None:
    library = Library()
    world = await world_with(tmp_path, library)
    revision = await world.write("active", {"1": 1, "2": 2})
    await world.acked(f"campaigns/{CAMPAIGN}/active", revision)
    assert world.role.facts.unknown_slots == {2}
    assert (await world.open()).outcome == OPENED
    await world.close()


async def test_schemes_that_contradict_each_other_are_not_used(tmp_path: Path) -> None:
    library = Library()
    world = await world_with(tmp_path, library)
    await activate_late(world, tiny_campaign(tmp_path, scheme_number=2))
    library.manifests.append(world.minted.manifest)  # every serial twice
    await library.loaded(library.loads + 2)
    assert world.role.facts.unknown_slots == {1}
    await world.close()
