"""Owns what a minted scheme promises: counts, sums, hashes, keys and where each packet lies.

PacketIndex leads from a packet's batch and serial to its file, bit and claims shard, over any
number of schemes of one campaign.

The manifest is canonical JSON, so that the same minting gives the same bytes, and is signed with
Ed25519 as it stands. Nothing here reads a ticket or an amount.
"""

import dataclasses
import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from hongbao.domain.errors import Corrupt
from hongbao.domain.ids import BatchId, CampaignId, Fen, FileIndex, KeyId, ShardId, SlotNumber
from hongbao.domain.plan import Batch, MintPlan

FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileRange:
    """Is consecutive packets of one batch: offsets [start, end) in the batch, as in the plan."""

    batch: BatchId
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class MintedFile:
    """Is one ticket file; `name` is its object name, `sha256` (hex) that of its records."""

    file: FileIndex
    slot: SlotNumber
    ticket_shard: int
    claims_shard: ShardId
    count: int
    total_fen: Fen
    sha256: str
    name: str
    ranges: tuple[FileRange, ...]  # ordered by batch; a packet's bit is its place in them


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Is the money and the packets that one key guards."""

    key_id: KeyId
    fen: Fen
    packets: int


@dataclass(frozen=True, slots=True)
class AmountsTable:
    """Is the sealed table: u32 big-endian fen at 4 * (serial - serial_base)."""

    name: str
    sha256: str
    count: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Is one minted scheme."""

    campaign: CampaignId
    scheme: str
    scheme_number: int
    serial_base: int
    packets: int
    total_fen: Fen
    key_cap_fen: Fen
    batches: tuple[Batch, ...]
    files: tuple[MintedFile, ...]
    keys: tuple[KeyUse, ...]
    amounts: AmountsTable
    merkle_root: str  # over the hashes of the files in order, then of the table

    @property
    def prefix(self) -> str:
        return scheme_prefix(self.campaign, self.scheme_number)


def scheme_prefix(campaign: CampaignId, scheme_number: int) -> str:
    """Return the object name under which a scheme lies, without a slash at its end."""
    return f"{campaign}/{scheme_number}"


def file_name(campaign: CampaignId, scheme_number: int, slot: int, ticket_shard: int) -> str:
    prefix = scheme_prefix(campaign, scheme_number)
    return f"{prefix}/slot-{slot:02d}/tickets-{ticket_shard:04d}.hbt"


def amounts_name(campaign: CampaignId, scheme_number: int) -> str:
    return f"{scheme_prefix(campaign, scheme_number)}/amounts.bin"


def manifest_name(campaign: CampaignId, scheme_number: int) -> str:
    return f"{scheme_prefix(campaign, scheme_number)}/manifest.json"


def signature_name(campaign: CampaignId, scheme_number: int) -> str:
    return f"{scheme_prefix(campaign, scheme_number)}/manifest.sig"


def plan_key_uses(plan: MintPlan) -> tuple[KeyUse, ...]:
    """Return what each key guards, by the closed formulas, ordered by key id."""
    fen: Counter[KeyId] = Counter()
    packets: Counter[KeyId] = Counter()
    for batch in plan.batches:
        for index, key_id in enumerate(batch.key_ids):
            start, end = batch.key_start(index), batch.key_start(index + 1)
            fen[key_id] += batch.money_fen(end) - batch.money_fen(start)
            packets[key_id] += end - start
    return tuple(KeyUse(key, Fen(fen[key]), packets[key]) for key in sorted(packets))


def merkle_root(hashes: Sequence[str]) -> str:
    """Return the Merkle tree head (RFC 6962 §2.1) over hex leaves, in hex."""

    def head(leaves: Sequence[str]) -> bytes:
        if len(leaves) == 1:
            return hashlib.sha256(b"\0" + bytes.fromhex(leaves[0])).digest()
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + head(leaves[:split]) + head(leaves[split:])).digest()

    return (head(hashes) if hashes else hashlib.sha256().digest()).hex()


def pack_manifest(manifest: Manifest) -> bytes:
    """Return the canonical JSON: sorted keys, no blanks, one newline at the end."""
    shape = dataclasses.asdict(manifest) | {"format": FORMAT}
    for file in shape["files"]:
        file["ranges"] = [[part["batch"], part["start"], part["end"]] for part in file["ranges"]]
    return (json.dumps(shape, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")


def parse_manifest(data: bytes, signature: bytes, verify_key: bytes) -> Manifest:
    """Return the manifest if its Ed25519 signature is good. Raises Corrupt."""
    try:
        Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, data)
    except (InvalidSignature, ValueError) as error:
        raise Corrupt("manifest: the signature is not good") from error
    try:
        manifest = _shaped(json.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"manifest: signed, but not of this format ({error!r})") from error
    return manifest


def _shaped(shape: dict[str, Any]) -> Manifest:
    if shape.pop("format") != FORMAT:
        raise ValueError(f"format is not {FORMAT}")
    shape["batches"] = tuple(
        Batch(**batch | {"key_ids": tuple(batch["key_ids"])}) for batch in shape["batches"]
    )
    shape["files"] = tuple(
        MintedFile(**file | {"ranges": tuple(FileRange(*part) for part in file["ranges"])})
        for file in shape["files"]
    )
    shape["keys"] = tuple(KeyUse(**key) for key in shape["keys"])
    shape["amounts"] = AmountsTable(**shape["amounts"])
    return Manifest(**shape)


class Location(NamedTuple):
    """Is where one packet lies; `bit` is dense in the file, from 0."""

    file: FileIndex
    bit: int
    claims_shard: ShardId
    batch: Batch


@dataclass(frozen=True)
class Locations:
    """Is where many packets lie; where `known` is false the other columns mean nothing."""

    known: NDArray[np.bool_]
    file: NDArray[np.int64]
    bit: NDArray[np.int64]
    claims_shard: NDArray[np.int64]
    scheme_number: NDArray[np.int64]
    slot: NDArray[np.int64]
    sponsor: NDArray[np.int64]
    min_fen: NDArray[np.int64]
    max_fen: NDArray[np.int64]


class _Run(NamedTuple):
    serial: int
    end: int
    first_bit: int
    file: FileIndex
    claims_shard: ShardId
    batch: Batch
    scheme_number: int


class PacketIndex:
    """Finds packets of the given schemes. Raises Corrupt when two of them claim one serial."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        runs = sorted(
            (run for manifest in manifests for run in _runs(manifest)), key=lambda run: run.serial
        )
        for run, behind in pairwise(runs):
            if behind.serial < run.end:
                raise Corrupt(
                    f"serials [{behind.serial}, {min(run.end, behind.end)}) stand in file "
                    f"{run.file} and in file {behind.file}"
                )
        self._runs = runs
        self._serials = [run.serial for run in runs]
        self._columns = np.array(
            [
                (
                    run.serial,
                    run.end,
                    run.first_bit,
                    run.file,
                    run.claims_shard,
                    run.batch.batch,
                    run.scheme_number,
                    run.batch.slot,
                    run.batch.sponsor,
                    run.batch.min_fen,
                    run.batch.max_fen,
                )
                for run in runs
            ],
            dtype=np.int64,
        ).reshape(len(runs), 11)

    def locate(self, batch: int, serial: int) -> Location | None:
        """Return where the packet lies; None when no scheme has it in this batch."""
        place = bisect_right(self._serials, serial) - 1
        if place < 0:
            return None
        run = self._runs[place]
        if serial >= run.end or batch != run.batch.batch:
            return None
        return Location(run.file, run.first_bit + serial - run.serial, run.claims_shard, run.batch)

    def locate_many(self, batches: NDArray[np.integer], serials: NDArray[np.integer]) -> Locations:
        """Do the same for columns of batches and serials."""
        serials = serials.astype(np.int64)
        if not self._runs:
            nothing = np.zeros(len(serials), dtype=np.int64)
            return Locations(nothing.astype(np.bool_), *[nothing] * 8)
        place = np.searchsorted(self._columns[:, 0], serials, side="right") - 1
        start, end, first_bit, file, shard, batch, scheme, slot, sponsor, low, high = self._columns[
            place
        ].T
        return Locations(
            known=(place >= 0) & (serials < end) & (batches.astype(np.int64) == batch),
            file=file,
            bit=first_bit + serials - start,
            claims_shard=shard,
            scheme_number=scheme,
            slot=slot,
            sponsor=sponsor,
            min_fen=low,
            max_fen=high,
        )


def _runs(manifest: Manifest) -> list[_Run]:
    batches = {batch.batch: batch for batch in manifest.batches}
    return [run for file in manifest.files for run in _file_runs(file, batches, manifest)]


def _file_runs(file: MintedFile, batches: dict[BatchId, Batch], manifest: Manifest) -> list[_Run]:
    runs = []
    first_bit = 0
    for part in file.ranges:
        batch = batches[part.batch]
        base = batch.serial_base
        runs.append(
            _Run(
                base + part.start,
                base + part.end,
                first_bit,
                file.file,
                file.claims_shard,
                batch,
                manifest.scheme_number,
            )
        )
        first_bit += part.end - part.start
    return runs
