"""Builds claims, blocks and books over the tiny campaign, for the tests of settle and audit."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hongbao.domain.claim import Claim, pack_claim
from hongbao.domain.manifest import Manifest, PacketIndex
from hongbao.settle.book import Book, KeyRules
from hongbao.shards.block import Block, BlockKind, ShardKey, encode_block
from hongbao.shards.ports import Coordination, LogStore

from tests.minted import CAMPAIGN, MintedCampaign

OPENED_AT_MS = 1_700_000_000_000
NONCE = b"n" * 16


@dataclass
class SteppedClock:
    """Is both clocks of a test; they move only when the test moves them."""

    now_ms: int = OPENED_AT_MS + 1500
    up_s: float = 100.0

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return self.up_s

    def pass_s(self, seconds: float) -> None:
        """Let time pass on both."""
        self.now_ms += round(1000 * seconds)
        self.up_s += seconds


def schemes_of(*minted: MintedCampaign) -> list[tuple[Manifest, Path]]:
    return [(one.manifest, one.folder / one.manifest.amounts.name) for one in minted]


def book_of(
    *minted: MintedCampaign, active: dict[int, int] | None = None, keys: KeyRules | None = None
) -> Book:
    """Return a book in which every slot plays the first scheme, unless told otherwise."""
    number = minted[0].plan.scheme_number
    return Book(schemes_of(*minted), active=active or {1: number, 2: number}, keys=keys)


def amount_of(minted: MintedCampaign, serial: int) -> int:
    table = np.fromfile(minted.folder / minted.manifest.amounts.name, ">u4")
    return int(table[serial - minted.plan.serial_base])


def good_claim(minted: MintedCampaign, serial: int, user: int = 7, **changes: int) -> Claim:
    """Return the claim that an honest redeem process writes, but for the changes."""
    batch = next(
        one
        for one in minted.plan.batches
        if one.serial_base <= serial < one.serial_base + one.count
    )
    place = PacketIndex([minted.manifest]).locate(batch.batch, serial)
    assert place is not None
    claim = Claim(
        batch=batch.batch,
        key_id=batch.key_of(serial - batch.serial_base),
        slot=batch.slot,
        sponsor=batch.sponsor,
        pod=1,
        pod_epoch=1,
        file=place.file,
        bit=place.bit,
        amount_fen=amount_of(minted, serial),
        serial=serial,
        user=user,
        opened_at_ms=OPENED_AT_MS,
    )
    return claim._replace(**changes)


def serials_of_shard(minted: MintedCampaign, shard: int) -> list[int]:
    """Return the serials whose claims belong to a shard, in order."""
    bases = {batch.batch: batch.serial_base for batch in minted.plan.batches}
    return sorted(
        bases[part.batch] + offset
        for file in minted.manifest.files
        if file.claims_shard == shard
        for part in file.ranges
        for offset in range(part.start, part.end)
    )


def shard_claims(
    minted: MintedCampaign, shard: int = 0, *, count: int | None = None, user: int = 100
) -> list[Claim]:
    """Return good claims of a shard, each by another user."""
    serials = serials_of_shard(minted, shard)[:count]
    return [good_claim(minted, serial, user + place) for place, serial in enumerate(serials)]


def blocks_of(claims: Sequence[Claim], *, size: int = 8, position: int = 0) -> list[Block]:
    """Cut claims into consecutive blocks, behind an epoch block when they begin the log."""
    blocks = []
    if position == 0:
        blocks.append(Block(BlockKind.EPOCH, 1, NONCE, 0, ()))
        position = 1
    for start in range(0, len(claims), size):
        entries = tuple(pack_claim(claim) for claim in claims[start : start + size])
        blocks.append(Block(BlockKind.OPERATIONS, 1, NONCE, position, entries))
        position += 1
    return blocks


async def write_log(
    store: LogStore, shard: int, blocks: Iterable[Block], *, applied: bool = True
) -> None:
    """Write blocks as an owner does, with or without their applied markers."""
    key = ShardKey("claims", shard)
    for block in blocks:
        assert await store.create(key.log(block.position), encode_block(block))
        if applied:
            await store.put_many([(key.applied(block.position), b"\x01")])


async def write_documents(
    store: Coordination, *, active: dict[int, int], deny: Sequence[int] = ()
) -> None:
    """Write the coordination documents that settlement follows."""
    document = {str(slot): number for slot, number in active.items()}
    await store.put(f"campaigns/{CAMPAIGN}/active", json.dumps(document).encode())
    keys = {"deny": list(deny), "allow": None}
    await store.put(f"campaigns/{CAMPAIGN}/keys", json.dumps(keys).encode())
