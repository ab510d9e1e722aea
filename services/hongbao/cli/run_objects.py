"""Owns where a run's objects are: its own folder, or a store that all machines of a run reach.

Minting and verifying always work in the run's folder; a remote store gets what is minted there, and
readers keep local copies of what they must map.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hongbao.adapters.cached_objects import CachedObjects
from hongbao.adapters.folder_objects import FolderObjects
from hongbao.adapters.obstore import S3Objects, open_objects
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.domain import manifest as manifests
from hongbao.domain.errors import NotFound, Rejected
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Manifest
from hongbao.domain.objects import ObjectStore

HASH_CHUNK_BYTES: Final = 1 << 20
MANIFEST_END: Final = "/manifest.json"
UPLOADS_MAX: Final = 4
"""Objects on their way at once: a store gives one stream less than a network can carry."""


def run_objects(run: RunDir, settings: UpSettings) -> ObjectStore:
    """Open the objects of a run; connects lazily."""
    if settings.objects_url is None:
        return FolderObjects(run.objects)
    remote = open_objects(settings.objects_url, settings.objects_endpoint)
    return CachedObjects(remote, run.cache("objects"))


async def upload_scheme(
    run: RunDir,
    settings: UpSettings,
    manifest: Manifest,
    progress: Callable[[int, int], None] = lambda done, whole: None,
) -> None:
    """Bring a scheme that is minted in the run's folder to a remote store; a no-op without one.

    Safe to repeat: what is there stays and is not sent again. The manifest goes last: where it
    stands, everything it names stands too. Raises Rejected when other bytes are there, or when
    the store could overwrite them. `progress` receives (packets there, packets in all).
    """
    if settings.objects_url is None:
        return
    objects = open_objects(settings.objects_url, settings.objects_endpoint)
    if isinstance(objects, S3Objects):
        await objects.prove_create_only()
    slots, done = asyncio.Semaphore(UPLOADS_MAX), 0

    async def upload(name: str, packets: int = 0) -> None:
        nonlocal done
        async with slots:
            await objects.put_file_new(name, run.objects / name)
        done += packets
        progress(done, manifest.packets)

    progress(0, manifest.packets)
    files = [upload(file.name, file.count) for file in manifest.files]
    await asyncio.gather(*files, upload(manifest.amounts.name))
    await upload(manifests.signature_name(manifest.campaign, manifest.scheme_number))
    await upload(manifests.manifest_name(manifest.campaign, manifest.scheme_number))


async def any_minted(run: RunDir, settings: UpSettings, campaign: CampaignId) -> bool:
    """Say whether a scheme of the campaign is minted, here or in the remote store."""
    stores = [FolderObjects(run.objects), run_objects(run, settings)]
    names = [name for store in stores for name in await store.names(campaign)]
    return any(name.endswith(MANIFEST_END) for name in names)


async def check_no_objects(settings: UpSettings, campaign: CampaignId) -> None:
    """Raise Rejected where the remote store holds a campaign that was minted with other keys."""
    if settings.objects_url is None:
        return
    objects = open_objects(settings.objects_url, settings.objects_endpoint)
    if any(name.endswith(MANIFEST_END) for name in await objects.names(campaign)):
        raise Rejected(
            f"{settings.objects_url} holds {campaign} of another run: choose another prefix",
            field="objects_url",
        )


async def minted_here(
    run: RunDir, campaign: CampaignId, scheme_number: int, verify_key: bytes
) -> Manifest | None:
    """Return the verified manifest of a scheme in the run's own folder. Raises Corrupt."""
    here = FolderObjects(run.objects)
    try:
        data = await here.get(manifests.manifest_name(campaign, scheme_number))
        signature = await here.get(manifests.signature_name(campaign, scheme_number))
    except NotFound:
        return None
    return manifests.parse_manifest(data, signature, verify_key)


async def local_amounts(run: RunDir, settings: UpSettings, manifest: Manifest) -> Path:
    """Return a local path of a scheme's amounts, fetched when needed; readers check its hash.

    A copy that is not what was minted is fetched once more. Raises NotFound, Transient, Corrupt.
    """
    table = manifest.amounts
    if settings.objects_url is None:
        return run.objects / table.name
    path = run.cache("amounts") / f"{manifest.scheme_number}-{table.sha256[:16]}.bin"
    if not await asyncio.to_thread(_has_hash, path, table.sha256):
        await run_objects(run, settings).fetch(table.name, path)
    return path


def _has_hash(path: Path, sha256: str) -> bool:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256
