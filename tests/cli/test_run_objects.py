"""Facts about a run whose objects are elsewhere: what goes there, and what readers keep."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from hongbao.adapters.folder_objects import FolderObjects
from hongbao.cli.run_dir import RunDir
from hongbao.cli.run_objects import local_amounts, run_objects, upload_scheme
from hongbao.cli.settings import UpSettings
from hongbao.domain.errors import Rejected
from hongbao.domain.manifest import Manifest, manifest_name
from hongbao.settle.book import map_amounts

from tests.minted import MintedCampaign, tiny_campaign


@pytest.fixture
def minted(tmp_path: Path) -> MintedCampaign:
    (tmp_path / "run").mkdir()
    return tiny_campaign(tmp_path / "run")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def settings_of(objects_url: str | None) -> UpSettings:
    return UpSettings(campaign=Path("campaign.yaml"), objects_url=objects_url)


def names_of(manifest: Manifest) -> list[str]:
    folder = f"{manifest.campaign}/{manifest.scheme_number}"
    signed = [f"{folder}/manifest.json", f"{folder}/manifest.sig"]
    return sorted([*(file.name for file in manifest.files), manifest.amounts.name, *signed])


async def test_all_of_a_scheme_goes_to_a_remote_store_and_the_manifest_goes_last(
    run: RunDir, minted: MintedCampaign, tmp_path: Path
) -> None:
    remote, steps = tmp_path / "remote", []
    await upload_scheme(
        run, settings_of(str(remote)), minted.manifest, lambda *step: steps.append(step)
    )
    names = names_of(minted.manifest)
    assert await FolderObjects(remote).names("") == names
    for name in names:
        assert (remote / name).read_bytes() == (run.objects / name).read_bytes()
    assert steps[0] == (0, minted.manifest.packets)
    assert steps[-1] == (minted.manifest.packets, minted.manifest.packets)
    manifest = remote / manifest_name(minted.plan.campaign, minted.plan.scheme_number)
    assert manifest.stat().st_ctime_ns == max((remote / n).stat().st_ctime_ns for n in names)


async def test_an_upload_goes_on_behind_what_is_there(
    run: RunDir, minted: MintedCampaign, tmp_path: Path
) -> None:
    remote, settings = tmp_path / "remote", settings_of(str(tmp_path / "remote"))
    hidden = run.objects / minted.manifest.amounts.name
    moved = hidden.rename(tmp_path / "amounts.bin")
    with pytest.raises(FileNotFoundError):
        await upload_scheme(run, settings, minted.manifest)
    while len(list(remote.rglob("*.hbt"))) < len(minted.manifest.files):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    begun = {path: path.stat().st_ino for path in remote.rglob("*.hbt")}
    assert len(begun) == len(minted.manifest.files)
    moved.rename(hidden)
    await upload_scheme(run, settings, minted.manifest)
    assert {path: path.stat().st_ino for path in begun} == begun
    assert await FolderObjects(remote).names("") == names_of(minted.manifest)


async def test_another_mints_objects_are_not_replaced(
    run: RunDir, minted: MintedCampaign, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    await FolderObjects(remote).put_new(minted.manifest.files[0].name, b"another's")
    with pytest.raises(Rejected, match="other bytes"):
        await upload_scheme(run, settings_of(str(remote)), minted.manifest)
    assert manifest_name(minted.plan.campaign, 1) not in await FolderObjects(remote).names("")
    assert (remote / minted.manifest.files[0].name).read_bytes() == b"another's"


async def test_a_run_without_a_remote_store_reads_its_own_folder(
    run: RunDir, minted: MintedCampaign
) -> None:
    await upload_scheme(run, settings_of(None), minted.manifest)
    assert await run_objects(run, settings_of(None)).names("") == names_of(minted.manifest)
    path = await local_amounts(run, settings_of(None), minted.manifest)
    assert path == run.objects / minted.manifest.amounts.name


async def test_amounts_are_fetched_once_and_anew_when_the_copy_is_spoilt(
    run: RunDir, minted: MintedCampaign, tmp_path: Path
) -> None:
    remote, settings = tmp_path / "remote", settings_of(str(tmp_path / "remote"))
    await upload_scheme(run, settings, minted.manifest)
    sealed = (run.objects / minted.manifest.amounts.name).read_bytes()
    path = await local_amounts(run, settings, minted.manifest)
    assert path.read_bytes() == sealed
    first = path.stat().st_ino
    assert (await local_amounts(run, settings, minted.manifest)).stat().st_ino == first
    path.write_bytes(os.urandom(len(sealed)))
    assert (await local_amounts(run, settings, minted.manifest)).read_bytes() == sealed
    assert len(map_amounts(path, minted.manifest)) == minted.manifest.packets
    (remote / minted.manifest.amounts.name).unlink()
    assert await local_amounts(run, settings, minted.manifest) == path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == minted.manifest.amounts.sha256
