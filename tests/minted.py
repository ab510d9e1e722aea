"""Builds a tiny minted campaign, for the tests of every part that reads one.

Two sponsors, three kinds, two slots, two files a slot, two claims shards; a few hundred packets.
"""

from dataclasses import dataclass
from hashlib import shake_256
from pathlib import Path

from hongbao.cipher.keyring import Keyring, new_keyring
from hongbao.domain.ids import BatchId, CampaignId, Fen, FileIndex, KeyId, ShardId, SlotNumber
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import Batch, FilePlan, MintPlan
from hongbao.mint.scheme import mint_scheme

CAMPAIGN = CampaignId("tiny")
RUN = "the run of these tests"
KINDS = ("image", "video", "logo")


@dataclass(frozen=True)
class MintedCampaign:
    """Is a minted scheme; `folder` is the root of its object store."""

    plan: MintPlan
    manifest: Manifest
    keyring: Keyring
    folder: Path


class FixedEntropy:
    """Gives the same bytes in every run, in the place of os.urandom."""

    def __init__(self, seed: bytes = b"tests") -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return shake_256(self._seed + self._calls.to_bytes(8, "big")).digest(count)


def tiny_campaign(tmp_path: Path, *, scheme_number: int = 1) -> MintedCampaign:
    """Mint a tiny scheme below `tmp_path`; another scheme number shares no serial with it."""
    plan = tiny_plan(scheme_number)
    keyring = tiny_keyring()
    folder = tmp_path / "objects"
    folder.mkdir(exist_ok=True)
    manifest = mint_scheme(plan, keyring, folder)
    return MintedCampaign(plan, manifest, keyring, folder)


def tiny_keyring() -> Keyring:
    return new_keyring(CAMPAIGN, [KeyId(key_id) for key_id in range(1, 65)], FixedEntropy())


def tiny_plan(
    scheme_number: int = 1, *, packets_a_batch: int = 40, chunks_a_file: int = 2, slots: int = 2
) -> MintPlan:
    """Build a plan by hand: per slot two sponsors times three kinds and two files."""
    serial = serial_base = scheme_number * 1_000_000
    batches = []
    for slot in range(1, slots + 1):
        for sponsor in (1, 2):
            for place, kind in enumerate(KINDS):
                number = (scheme_number - 1) * 100 + len(batches) + 1
                count = packets_a_batch + 3 * place
                batches.append(
                    Batch(
                        batch=BatchId(number),
                        sponsor=sponsor,
                        slot=SlotNumber(slot),
                        kind=kind,
                        resource=f"{kind}-{sponsor}",
                        curve=("uniform", "lucky")[place % 2],
                        count=count,
                        total_fen=Fen(count * 250 + 7 * sponsor),
                        min_fen=Fen(1),
                        max_fen=Fen(2000),
                        serial_base=serial,
                        key_ids=_key_ids(scheme_number, len(batches)),
                    )
                )
                serial += count
    return MintPlan(
        campaign=CAMPAIGN,
        scheme=f"scheme-{scheme_number}",
        scheme_number=scheme_number,
        serial_base=serial_base,
        batches=tuple(batches),
        files=tuple(
            FilePlan(
                file=FileIndex((scheme_number - 1) * 100 + (slot - 1) * 2 + shard),
                slot=SlotNumber(slot),
                ticket_shard=shard,
                claims_shard=ShardId(shard),
                chunk_start=shard * chunks_a_file,
                chunk_end=(shard + 1) * chunks_a_file,
            )
            for slot in range(1, slots + 1)
            for shard in (0, 1)
        ),
        key_cap_fen=Fen(20_000_000),
    )


def large_plan(packets: int, *, slots: int = 5, sponsors: int = 10, files: int = 6) -> MintPlan:
    """Build a plan of about `packets` packets of 2.50 yuan, as large as a measurement wants."""
    cap_fen = 20_000_000
    count = packets // (slots * sponsors * len(KINDS))
    chunks = files * max(1, -(-count * sponsors * len(KINDS) // (files << 17)))
    batches: list[Batch] = []
    key_id = 1
    for place in range(slots * sponsors * len(KINDS)):
        total_fen = count * 250 + place
        keys = -(-total_fen * 101 // (100 * cap_fen))
        batches.append(
            Batch(
                batch=BatchId(place + 1),
                sponsor=place // len(KINDS) % sponsors + 1,
                slot=SlotNumber(place // (sponsors * len(KINDS)) + 1),
                kind=KINDS[place % len(KINDS)],
                resource="",
                curve=("uniform", "lucky")[place % 2],
                count=count,
                total_fen=Fen(total_fen),
                min_fen=Fen(1),
                max_fen=Fen(20_000),
                serial_base=place * count,
                key_ids=tuple(KeyId(one) for one in range(key_id, key_id + keys)),
            )
        )
        key_id += keys
    cuts = [chunks * file // files for file in range(files + 1)]
    return MintPlan(
        campaign=CAMPAIGN,
        scheme="large",
        scheme_number=1,
        serial_base=0,
        batches=tuple(batches),
        files=tuple(
            FilePlan(
                file=FileIndex((slot - 1) * files + shard),
                slot=SlotNumber(slot),
                ticket_shard=shard,
                claims_shard=ShardId(shard % 4),
                chunk_start=cuts[shard],
                chunk_end=cuts[shard + 1],
            )
            for slot in range(1, slots + 1)
            for shard in range(files)
        ),
        key_cap_fen=Fen(cap_fen),
    )


def _key_ids(scheme_number: int, place: int) -> tuple[KeyId, ...]:
    """Give the first batch of a scheme two keys and every other batch one."""
    first = (scheme_number - 1) * 32 + place + 1
    return (KeyId(first), KeyId(first + 31)) if place == 0 else (KeyId(first),)
