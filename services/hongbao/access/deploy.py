"""Owns the way of a ticket file onto this pod: fetch, check everything, map (R6, F19).

A file that fails any check is never mapped for serving, and the message says which check.
Refuses to decide which files this pod should have, and cannot decipher any.
"""

import asyncio
import dataclasses
import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hongbao.domain import manifest as manifests
from hongbao.domain import ticket, ticket_file
from hongbao.domain.errors import Corrupt
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Manifest, MintedFile
from hongbao.domain.objects import ObjectStore
from hongbao.domain.ticket_file import FileHeader

HASH_CHUNK_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class TicketFile:
    """Is a checked ticket file, mapped read-only; records lie behind header and signature."""

    file: int
    scheme_number: int
    slot: int
    claims_shard: int
    count: int
    data: mmap.mmap | bytes


async def fetch_manifest(
    objects: ObjectStore, campaign: CampaignId, scheme_number: int, verify_key: bytes
) -> Manifest:
    """Fetch and check a scheme's manifest. Raises Corrupt, NotFound."""
    data = await objects.get(manifests.manifest_name(campaign, scheme_number))
    signature = await objects.get(manifests.signature_name(campaign, scheme_number))
    manifest = manifests.parse_manifest(data, signature, verify_key)
    if (manifest.campaign, manifest.scheme_number) != (campaign, scheme_number):
        raise Corrupt(
            f"manifest of scheme {scheme_number}: says {manifest.campaign}, "
            f"scheme {manifest.scheme_number}"
        )
    return manifest


async def deploy_file(
    objects: ObjectStore, manifest: Manifest, minted: MintedFile, verify_key: bytes, cache: Path
) -> TicketFile:
    """Return the file mapped from the cache folder, fetched before if need be.

    A cached copy that fails a check is fetched once more. Raises Corrupt with the failed check.
    """
    path = cache / f"{minted.file:08x}-{minted.sha256[:16]}.hbt"
    if await asyncio.to_thread(path.exists):
        try:
            return await asyncio.to_thread(open_file, path, manifest, minted, verify_key)
        except Corrupt:
            await asyncio.to_thread(path.unlink)
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    await objects.fetch(minted.name, path)
    try:
        return await asyncio.to_thread(open_file, path, manifest, minted, verify_key)
    except Corrupt:
        await asyncio.to_thread(path.unlink)
        raise


def open_file(path: Path, manifest: Manifest, minted: MintedFile, verify_key: bytes) -> TicketFile:
    """Check a local ticket file against its own header, its signature and the manifest; map it.

    Raises Corrupt with the failed check.
    """
    name = minted.name
    with path.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise Corrupt(f"{name}: empty file") from error
    try:
        header = _checked_header(data, manifest, minted, verify_key)
        _check_records(name, data, header)
    except Corrupt:
        data.close()
        raise
    return TicketFile(
        header.file, header.scheme_number, header.slot, header.claims_shard, header.count, data
    )


def _checked_header(
    data: mmap.mmap, manifest: Manifest, minted: MintedFile, verify_key: bytes
) -> FileHeader:
    name, head = minted.name, data[: ticket.FILE_RECORDS_AT]
    try:
        header = ticket_file.unpack_header(head)
    except Corrupt as error:
        raise Corrupt(f"{name}: header: {error}") from error
    try:
        key = Ed25519PublicKey.from_public_bytes(verify_key)
        key.verify(ticket_file.signature_of(head), head[: ticket.FILE_HEADER.size])
    except (InvalidSignature, ValueError) as error:
        raise Corrupt(f"{name}: signature: the header is not signed by the mint's key") from error
    promised = FileHeader(
        ticket.campaign_hash(manifest.campaign),
        manifest.scheme_number,
        minted.slot,
        minted.ticket_shard,
        minted.claims_shard,
        minted.file,
        minted.count,
        bytes.fromhex(minted.sha256),
    )
    for field in dataclasses.fields(FileHeader):
        _check_promise(name, field.name, header, promised)
    return header


def _check_promise(name: str, field: str, header: FileHeader, promised: FileHeader) -> None:
    found, wanted = getattr(header, field), getattr(promised, field)
    if found != wanted:
        found, wanted = (v.hex() if isinstance(v, bytes) else v for v in (found, wanted))
        raise Corrupt(f"{name}: manifest: {field} is {found} in the file, {wanted} in the manifest")


def _check_records(name: str, data: mmap.mmap, header: FileHeader) -> None:
    if len(data) != header.file_bytes:
        raise Corrupt(
            f"{name}: count: {len(data)} bytes, but {header.count} records make {header.file_bytes}"
        )
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for start in range(ticket.FILE_RECORDS_AT, len(data), HASH_CHUNK_BYTES):
            digest.update(view[start : start + HASH_CHUNK_BYTES])
    if digest.digest() != header.sha256:
        raise Corrupt(f"{name}: sha256: the records are not those that were minted")
    data.madvise(mmap.MADV_DONTNEED)  # clean pages: the page cache keeps them, this process not
