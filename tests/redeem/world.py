"""Builds a redeem role over a tiny minted campaign, real owners and a store in memory.

The two claims shards are served by `shards.owner.Owner`, so an answer is a durable one.
"""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hongbao.adapters.memory import MemoryStore
from hongbao.cipher.derive import binding_key, ticket_keys
from hongbao.cipher.encipher import encipher_span
from hongbao.domain.assignment import AccessPod, plan_assignment
from hongbao.domain.campaign import Slot
from hongbao.domain.claim import CLOSING, Claim, logged_claims, parse_claim
from hongbao.domain.ids import KeyId, SlotNumber
from hongbao.domain.manifest import PacketIndex
from hongbao.domain.ticket import FILE_RECORDS_AT, RECORD_BYTES, campaign_hash
from hongbao.domain.timeline import Timeline
from hongbao.domain.token import seal_claim, seal_session
from hongbao.proto.v1.redeem_pb2 import OpenReply, OpenRequest
from hongbao.redeem.barrier import PROBE
from hongbao.redeem.limits import RedeemLimits
from hongbao.redeem.role import RedeemRole, RedeemSecrets
from hongbao.shards.block import ShardKey
from hongbao.shards.owner import Owner
from hongbao.shards.ports import LogStore
from hongbao.shards.replay import read_blocks

from tests.minted import CAMPAIGN, MintedCampaign, tiny_campaign
from tests.waiting import LIMIT_S

SLOT_MS = 60_000
START_MS = 1_700_000_000_000  # slot 1 opens
HASH = campaign_hash(CAMPAIGN)
PODS = (AccessPod(1, "access-a-0", "a"), AccessPod(2, "access-b-0", "b"))
USER = 7
EPOCH = 3


@dataclass
class SteppedClock:
    """Is both clocks of a test; they move only when the test moves them."""

    now_ms: int = START_MS + 1000

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return self.now_ms / 1000


@dataclass
class World:
    """Is everything around one redeem role."""

    minted: MintedCampaign
    store: MemoryStore
    clock: SteppedClock
    role: RedeemRole
    owners: dict[int, Owner] = field(default_factory=dict)
    submitted: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # cleared: owners are slow

    async def submit(self, plane: str, shard: int, operation: bytes) -> bytes:
        assert plane == "claims"
        if operation not in (PROBE, CLOSING):
            self.submitted += 1
            await self.gate.wait()
        return await self.owners[shard].submit(operation)

    def record(self, slot: int = 1, ticket_shard: int = 0, place: int = 0) -> bytes:
        """Return a record as it stands in a ticket file."""
        name = f"{CAMPAIGN}/1/slot-{slot:02d}/tickets-{ticket_shard:04d}.hbt"
        data = (self.minted.folder / name).read_bytes()[FILE_RECORDS_AT:]
        return data[place * RECORD_BYTES : (place + 1) * RECORD_BYTES]

    def token(self, record: bytes | None = None, **changes: int) -> bytes:
        """Return the claim token that pod 1 seals for USER, but for the changes."""
        fields = {
            "pod": 1,
            "epoch": EPOCH,
            "claims_shard": 0,
            "expiry_s": self.clock.now_ms // 1000 + 600,
            "user": USER,
        } | changes
        return seal_claim(
            binding_key(self.minted.keyring.token_root, fields["pod"], fields["epoch"]),
            HASH,
            fields["pod"],
            fields["epoch"],
            fields["claims_shard"],
            fields["expiry_s"],
            self.record() if record is None else record,
            fields["user"],
        )

    def session(self, user: int = USER, *, expires_in_s: int = 600) -> bytes:
        expiry_s = self.clock.now_ms // 1000 + expires_in_s
        return seal_session(self.minted.keyring.session_key, HASH, user, 0, expiry_s)

    def request(
        self, claim_token: bytes | None = None, *, user: int = USER, campaign: str = CAMPAIGN
    ) -> OpenRequest:
        return OpenRequest(
            campaign=campaign,
            session=self.session(user),
            claim_token=self.token(user=user) if claim_token is None else claim_token,
        )

    async def open(self, claim_token: bytes | None = None, *, user: int = USER) -> OpenReply:
        return await self.role.open(self.request(claim_token, user=user))

    def forged_record(
        self, amount_fen: int, *, batch: int = 1, offset: int = 0, key_id: KeyId | None = None
    ) -> bytes:
        """Return a record as an insider with ticket keys could make it."""
        plan = self.minted.plan.batches[batch - 1]
        key_id = key_id or plan.key_of(offset)
        master = self.minted.keyring.ticket_masters[key_id]
        keys = ticket_keys(master, CAMPAIGN, key_id, plan.slot, plan.sponsor)
        serials = np.array([plan.serial_base + offset], dtype=np.uint64)
        amounts = np.array([amount_fen], dtype=np.uint32)
        records = encipher_span(keys, key_id, plan.slot, plan.sponsor, plan.batch, serials, amounts)
        return records[0].tobytes()

    async def claims(self) -> list[Claim]:
        """Return every claim in the logs of both shards."""
        found = []
        for shard in self.owners:
            blocks = await read_blocks(self.store, ShardKey("claims", shard), 0, 1000, limit=1000)
            found += [
                parse_claim(entry) for block in blocks for entry in logged_claims(block.entries)
            ]
        return found

    async def deny(self, *key_ids: int) -> int:
        """Put keys on the deny list; return the document's revision."""
        return await self.write("keys", {"deny": list(key_ids), "allow": None})

    async def write(self, document: str, shape: object) -> int:
        """Write a document of the campaign; return its revision."""
        value = shape if isinstance(shape, bytes) else json.dumps(shape).encode()
        return (await self.store.put(f"campaigns/{CAMPAIGN}/{document}", value)).revision

    async def acked(self, document: str, revision: int) -> None:
        """Wait until the role says that a revision of a document is effective."""
        async with asyncio.timeout(LIMIT_S):
            async for fact in self.store.watch(f"acks/{document}/", after_revision=0):
                if json.loads(fact.value)["revision"] >= revision:
                    return

    async def take_over(self, shard: int, epoch: int, store: LogStore | None = None) -> None:
        """Let a new owner take a shard from whoever had it."""
        self.owners[shard] = await Owner.take_over(
            store or self.store,
            "claims",
            shard,
            epoch=epoch,
            nonce=epoch.to_bytes(16, "big"),
            lease_valid=lambda: True,
            machine=self.role.new_machine(shard),
        )

    async def close(self) -> None:
        self.gate.set()  # or a failed test would wait for its open for ever
        await self.role.drain()
        for owner in self.owners.values():
            await owner.drain()


def timeline() -> Timeline:
    """Return two slots of a minute, one after the other."""
    return Timeline(
        tuple(
            Slot(SlotNumber(slot), f"slot {slot}", start_ms, start_ms + SLOT_MS)
            for slot, start_ms in ((1, START_MS), (2, START_MS + SLOT_MS))
        )
    )


async def make_world(tmp_path: Path, limits: RedeemLimits | None = None) -> World:
    """Return a started world: both slots play scheme 1, pod 1 has file 0 and pod 2 file 1."""
    minted = tiny_campaign(tmp_path)
    clock = SteppedClock()
    store = MemoryStore()
    index = PacketIndex([minted.manifest])
    assert index.locate(1, minted.plan.serial_base) is not None
    keyring = minted.keyring

    async def submit(plane: str, shard: int, operation: bytes) -> bytes:
        return await world.submit(plane, shard, operation)

    role = RedeemRole(
        campaign=CAMPAIGN,
        process="redeem-a-0",
        secrets=RedeemSecrets(keyring.ticket_masters, keyring.token_root, keyring.session_key),
        manifests=[minted.manifest],
        submit=submit,
        coordination=store,
        wall_ms=clock.wall_ms,
        monotonic_s=clock.monotonic_s,
        limits=limits or RedeemLimits(),
    )
    world = World(minted, store, clock, role)
    world.gate.set()
    files = [(file.file, file.slot, file.ticket_shard) for file in minted.plan.files]
    await world.write("timeline", timeline().to_json())
    await world.write("active", {"1": 1, "2": 1})
    await world.write("assignment", plan_assignment(files, PODS).to_json())
    for pod in PODS:
        await store.put(f"pods/{pod.pod}/epoch", str(EPOCH).encode())
    await role.start()
    for shard in (0, 1):
        await world.take_over(shard, epoch=shard + 1)
    return world
