"""Ticket files: checked whole before they are served, refused with the failed check (F19, R54)."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hongbao.access.deploy import TicketFile, deploy_file, fetch_manifest
from hongbao.domain import manifest as manifests
from hongbao.domain import ticket, ticket_file
from hongbao.domain.errors import Corrupt
from hongbao.domain.manifest import Manifest

from tests.access.rain import CAMPAIGN, VERIFY_KEY, MemoryObjects, mint_fake, sealed

AT = ticket.FILE_RECORDS_AT
HEAD = ticket.FILE_HEADER.size


async def deployed(objects: MemoryObjects, manifest: Manifest, cache: Path) -> TicketFile:
    return await deploy_file(objects, manifest, manifest.files[0], VERIFY_KEY, cache)


def flipped(data: bytes, byte: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :]


def swapped(data: bytes) -> bytes:
    """Swap two chunks of records."""
    a, b, size = AT + 26 * 10, AT + 26 * 200, 26 * 50
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


def resealed(**changes: object) -> Callable[[bytes], bytes]:
    """Sign another header over the same records, as a mint of another file would."""

    def change(data: bytes) -> bytes:
        header = dataclasses.replace(ticket_file.unpack_header(data[:AT]), **changes)
        return sealed(header, data[AT:])

    return change


def rehashed(data: bytes) -> bytes:
    """Change a record and sign a header that agrees: only the manifest can tell."""
    records = flipped(data, AT + 5)[AT:]
    header = ticket_file.unpack_header(data[:AT])
    digest = hashlib.sha256(records).digest()
    return sealed(dataclasses.replace(header, sha256=digest), records)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "first record's bit": (lambda data: flipped(data, AT), "sha256"),
    "last record's bit": (lambda data: flipped(data, len(data) - 1), "sha256"),
    "swapped chunks": (swapped, "sha256"),
    "one record less": (lambda data: data[:-26], "count"),
    "half a record less": (lambda data: data[:-13], "count"),
    "records cut off": (lambda data: data[:AT], "count"),
    "trailing bytes": (lambda data: data + b"x", "count"),
    "a record more": (lambda data: data + data[-26:], "count"),
    "half a header": (lambda data: data[: HEAD // 2], "header"),
    "empty": (lambda data: b"", "empty"),
    "magic": (lambda data: flipped(data, 0), "magic"),
    "version": (lambda data: flipped(data, 5), "version"),
    "header's bit": (lambda data: flipped(data, 20), "signature"),
    "signature's bit": (lambda data: flipped(data, HEAD + 3), "signature"),
    "other campaign": (resealed(campaign_hash=bytes(16)), "campaign_hash"),
    "other scheme": (resealed(scheme_number=2), "scheme_number"),
    "other slot": (resealed(slot=2), "slot"),
    "other ticket shard": (resealed(ticket_shard=9), "ticket_shard"),
    "other claims shard": (resealed(claims_shard=9), "claims_shard"),
    "other file": (resealed(file=9), "file"),
    "other count": (resealed(count=499), "count"),
    "other records, signed": (rehashed, "sha256"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_file_is_refused_and_the_message_says_which_check(
    name: str, tmp_path: Path
) -> None:
    """F19."""
    objects = MemoryObjects()
    manifest = mint_fake(objects)
    spoil, check = BROKEN[name]
    stored = manifest.files[0].name
    objects.broken[stored] = spoil(objects.objects[stored])
    with pytest.raises(Corrupt, match=rf"{stored}: .*{check}"):
        await deployed(objects, manifest, tmp_path)
    assert os.listdir(tmp_path) == []


async def test_every_flipped_bit_of_the_head_is_refused(tmp_path: Path) -> None:
    """F19."""
    objects = MemoryObjects()
    manifest = mint_fake(objects, records=20)
    stored = manifest.files[0].name
    good = objects.objects[stored]
    for bit in range(AT * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        objects.broken[stored] = bytes(bad)
        with pytest.raises(Corrupt):
            await deployed(objects, manifest, tmp_path)


async def test_a_file_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    objects = MemoryObjects()
    manifest = mint_fake(objects)
    with pytest.raises(Corrupt, match="signature"):
        await deploy_file(objects, manifest, manifest.files[0], bytes(31) + b"\1", tmp_path)


async def test_a_good_file_is_mapped_with_all_its_records(tmp_path: Path) -> None:
    objects = MemoryObjects()
    manifest = mint_fake(objects)
    file = await deployed(objects, manifest, tmp_path)
    assert (file.file, file.slot, file.claims_shard, file.count) == (100, 1, 0, 500)
    assert bytes(file.data) == objects.objects[manifest.files[0].name]


async def test_a_good_copy_in_the_cache_is_not_fetched_again(tmp_path: Path) -> None:
    objects = MemoryObjects()
    manifest = mint_fake(objects)
    await deployed(objects, manifest, tmp_path)
    await deployed(objects, manifest, tmp_path)
    assert objects.fetched == [manifest.files[0].name]


async def test_a_copy_that_rotted_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    objects = MemoryObjects()
    manifest = mint_fake(objects)
    await deployed(objects, manifest, tmp_path)
    (copy,) = (tmp_path / name for name in os.listdir(tmp_path))
    copy.write_bytes(flipped(copy.read_bytes(), AT + 1))
    file = await deployed(objects, manifest, tmp_path)
    assert bytes(file.data) == objects.objects[manifest.files[0].name]


async def test_a_manifest_of_another_scheme_is_refused() -> None:
    objects = MemoryObjects()
    mint_fake(objects, 1)
    for name in (manifests.manifest_name, manifests.signature_name):
        objects.objects[name(CAMPAIGN, 2)] = objects.objects[name(CAMPAIGN, 1)]
    with pytest.raises(Corrupt, match="scheme 2"):
        await fetch_manifest(objects, CAMPAIGN, 2, VERIFY_KEY)


async def test_a_manifest_that_was_changed_is_refused() -> None:
    objects = MemoryObjects()
    mint_fake(objects)
    name = manifests.manifest_name(CAMPAIGN, 1)
    objects.broken[name] = objects.objects[name].replace(b'"packets":', b'"packets": ')
    with pytest.raises(Corrupt, match="signature"):
        await fetch_manifest(objects, CAMPAIGN, 1, VERIFY_KEY)
