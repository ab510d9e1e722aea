"""Builds ticket files, manifests, orders and clocks for the tests of access, without the mint.

Records carry (file, index) where the enciphered ticket would be, so a test sees which one it got.
"""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hongbao.access.deploy import TicketFile
from hongbao.access.limits import AccessLimits
from hongbao.access.pod import AccessPod, PodIdentity, PodKeys, PodStores
from hongbao.access.service import ShakeService
from hongbao.adapters.memory import MemoryStore
from hongbao.domain import manifest as manifests
from hongbao.domain import ticket
from hongbao.domain.assignment import Assignment, Placement
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import NotFound
from hongbao.domain.ids import BatchId, CampaignId, Fen, FileIndex, ShardId, SlotNumber
from hongbao.domain.manifest import AmountsTable, Manifest, MintedFile
from hongbao.domain.plan import Batch
from hongbao.domain.ticket_file import FileHeader
from hongbao.domain.timeline import Timeline
from hongbao.domain.token import parse_claim_head, seal_session
from hongbao.proto.v1.access_pb2 import PACKET, ShakeReply, ShakeRequest

from tests.waiting import LIMIT_S

CAMPAIGN = CampaignId("rain")
CAMPAIGN_HASH = ticket.campaign_hash(CAMPAIGN)
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
VERIFY_KEY = SIGNING_KEY.public_key().public_bytes_raw()
ISSUER_KEY = Ed25519PrivateKey.from_private_bytes(b"i" * 32)
SESSION_KEY, BINDING_KEY = b"S" * 32, b"B" * 32
JWKS = {
    "keys": [
        json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(ISSUER_KEY.public_key())) | {"kid": "one"}
    ]
}
START_MS = 1_000_000_000
SLOT_MS = 10_000
GAP_MS = 2_000
SMALL = AccessLimits(
    user_cap_columns_log2=12,
    user_packets_max=255,
    reserve_records=64,
    retry_s=0.005,
    refetch_s=0.05,
    pass_ms=10,
    store_timeout_s=LIMIT_S,
    start_wait_s=LIMIT_S,
    quota_floor_per_s=1e9,
)


@dataclass
class Clock:
    """Is a clock that a test moves."""

    now_ms: int = START_MS

    def wall_ms(self) -> int:
        return self.now_ms


def timeline(slots: int = 2) -> Timeline:
    """Return slots of 10 s with 2 s between them."""
    step = SLOT_MS + GAP_MS
    return Timeline(
        tuple(
            Slot(
                SlotNumber(n + 1),
                f"slot {n + 1}",
                START_MS + n * step,
                START_MS + n * step + SLOT_MS,
            )
            for n in range(slots)
        )
    )


def record(file: int, index: int, slot: int, sponsor: int) -> bytes:
    return ticket.RECORD.pack(
        1, slot, sponsor, 0, file.to_bytes(8, "big") + index.to_bytes(8, "big")
    )


def where(claim_token: bytes) -> tuple[int, int]:
    """Return (file, index) of the record in a claim token."""
    head = parse_claim_head(claim_token)
    assert head is not None
    return int.from_bytes(head.record[10:18], "big"), int.from_bytes(head.record[18:], "big")


def records_of(file: int, count: int, slot: int = 1, sponsors: int = 3) -> bytes:
    return b"".join(record(file, index, slot, index % sponsors + 1) for index in range(count))


def bare_file(file: int = 1, count: int = 1000, slot: int = 1) -> TicketFile:
    """Return a file that needed no checks, for tests of cursor and service."""
    data = bytes(ticket.FILE_RECORDS_AT) + records_of(file, count, slot)
    return TicketFile(file, 1, slot, 7, count, data)


def sealed(header: FileHeader, records: bytes) -> bytes:
    """Sign a header and put the records behind it."""
    head = header.pack()
    return head + SIGNING_KEY.sign(head) + records


class MemoryObjects:
    """Is an object store in a dict; `broken` names answer with other bytes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.broken: dict[str, bytes] = {}
        self.fetched: list[str] = []

    async def get(self, name: str) -> bytes:
        self.fetched.append(name)
        data = self.broken.get(name, self.objects.get(name))
        if data is None:
            raise NotFound(f"no object {name}")
        return data

    async def fetch(self, name: str, path: Path) -> None:
        path.write_bytes(await self.get(name))  # noqa: ASYNC240  (a test's file, a few KiB)

    async def put_new(self, name: str, data: bytes) -> None:
        self.objects[name] = data

    async def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))


def mint_fake(
    objects: MemoryObjects,
    scheme_number: int = 1,
    *,
    slots: int = 2,
    files_a_slot: int = 2,
    records: int = 500,
) -> Manifest:
    """Put a scheme of fake records into the object store."""
    files = []
    for number in range(slots * files_a_slot):
        slot, shard = number // files_a_slot + 1, number % files_a_slot
        file = scheme_number * 100 + number
        body = records_of(file, records, slot)
        digest = hashlib.sha256(body)
        name = manifests.file_name(CAMPAIGN, scheme_number, slot, shard)
        header = FileHeader(
            CAMPAIGN_HASH, scheme_number, slot, shard, shard, file, records, digest.digest()
        )
        objects.objects[name] = sealed(header, body)
        files.append(
            MintedFile(
                FileIndex(file), SlotNumber(slot), shard, ShardId(shard), records,
                Fen(records * 100), digest.hexdigest(), name, (),
            )
        )  # fmt: skip
    manifest = Manifest(
        CAMPAIGN, f"scheme-{scheme_number}", scheme_number, 0, records * len(files),
        Fen(records * len(files) * 100), Fen(20_000_000), fake_batches(slots), tuple(files), (),
        AmountsTable("amounts.bin", "", 0), "",
    )  # fmt: skip
    data = manifests.pack_manifest(manifest)
    objects.objects[manifests.manifest_name(CAMPAIGN, scheme_number)] = data
    objects.objects[manifests.signature_name(CAMPAIGN, scheme_number)] = SIGNING_KEY.sign(data)
    return manifest


def fake_batches(slots: int) -> tuple[Batch, ...]:
    """Return three sponsors a slot; the first has two resources."""
    rows = [
        (1, "image", "one-image"),
        (1, "video", "one-video"),
        (2, "logo", "two"),
        (3, "logo", "three"),
    ]
    return tuple(
        Batch(
            BatchId(slot * 10 + place), sponsor, SlotNumber(slot), kind, resource, "uniform",
            100, Fen(10_000), Fen(1), Fen(500), 0, (),
        )
        for slot in range(1, slots + 1)
        for place, (sponsor, kind, resource) in enumerate(rows)
    )  # fmt: skip


def placed(manifest: Manifest, serving: int = 1, pod: int = 1, backup: int = 2) -> Assignment:
    """Assign every file of a scheme to one pod."""
    return Assignment(
        {each.file: Placement(each.slot, pod, backup, serving) for each in manifest.files}
    )


@dataclass
class Rain:
    """Is a campaign with its stores, on which pods are started."""

    folder: Path
    objects: MemoryObjects = field(default_factory=MemoryObjects)
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=Clock)
    epochs: int = 0

    async def order(self, document: str, value: Any) -> int:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return (await self.store.put(f"campaigns/{CAMPAIGN}/{document}", data)).revision

    async def quota(self, opens_per_s: float) -> int:
        """Let one redeem process say now what it can take."""
        one = {"opens_per_s": opens_per_s, "at_ms": self.clock.now_ms}
        return await self.order(
            "quota", {"opens_per_s": opens_per_s, "processes": {"redeem-a-0": one}}
        )

    async def switch(self, name: str, value: Any, expires_at_ms: int | None = None) -> int:
        document = {
            "value": value, "by": "a test", "why": "to see", "set_at_ms": 0,
            "expires_at_ms": expires_at_ms,
        }  # fmt: skip
        return (await self.store.put(f"switches/{name}", json.dumps(document).encode())).revision

    async def open_campaign(self, manifest: Manifest, assignment: Assignment | None = None) -> None:
        await self.order("timeline", timeline().to_json())
        await self.order("active", {"1": manifest.scheme_number, "2": manifest.scheme_number})
        await self.order("assignment", (assignment or placed(manifest)).to_json())

    def pod(
        self, number: int = 1, *, limits: AccessLimits = SMALL, log: Any = None, objects: Any = None
    ) -> AccessPod:
        """Make a pod with a new epoch; the caller starts it."""
        self.epochs += 1
        return AccessPod(
            PodIdentity(CAMPAIGN, f"access-a-{number}", number, self.epochs),
            PodKeys(BINDING_KEY, SESSION_KEY, VERIFY_KEY, JWKS),
            PodStores(
                objects or self.objects,
                log or self.store,
                self.store,
                self.folder / f"pod-{number}",
            ),
            wall_ms=self.clock.wall_ms,
            monotonic_s=lambda: self.clock.now_ms / 1000,
            limits=limits,
        )


def session_of(user: int, expiry_s: int = START_MS // 1000 + 86_400) -> bytes:
    return seal_session(SESSION_KEY, CAMPAIGN_HASH, user, 0, expiry_s)


def request_of(user: int) -> ShakeRequest:
    return ShakeRequest(campaign=CAMPAIGN, session=session_of(user))


def shake(target: AccessPod | ShakeService, user: int = 1) -> ShakeReply:
    return target.shake(request_of(user))


def new_service(clock: Clock, limits: AccessLimits = SMALL) -> ShakeService:
    return ShakeService(
        CAMPAIGN, 1, 1,
        binding_key=BINDING_KEY, session_key=SESSION_KEY, limits=limits, wall_ms=clock.wall_ms,
    )  # fmt: skip


async def win(
    rain: Rain, pod: AccessPod, duration_ms: int, *, step_ms: int = 1
) -> list[tuple[int, int]]:
    """Shake once a step as ever new users; return the (file, index) of what was won."""
    won = []
    for _ in range(duration_ms // step_ms):
        rain.clock.now_ms += step_ms
        reply = shake(pod, rain.clock.now_ms)
        if reply.outcome == PACKET:
            won.append(where(reply.claim_token))
        if rain.clock.now_ms % 20 == 0:
            await asyncio.sleep(0)
    return won


async def crash(pod: AccessPod) -> None:
    """Let the object vanish as SIGKILL would: no code of ours runs at the end."""
    for task in pod._tasks:
        task.cancel()
    await asyncio.gather(*pod._tasks, return_exceptions=True)
