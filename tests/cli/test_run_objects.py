"""Facts about a run whose objects are elsewhere: what goes there, and what readers keep."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hongbao.adapters.folder_objects import FolderObjects
from hongbao.adapters.obstore import PROBE
from hongbao.cli.run_dir import RunDir
from hongbao.cli.run_objects import local_amounts, run_objects, upload_scheme
from hongbao.cli.settings import UpSettings
from hongbao.domain.errors import Rejected
from hongbao.domain.manifest import Manifest, manifest_name
from hongbao.settle.book import map_amounts

from tests.minted import MintedCampaign, tiny_campaign
from tests.servers import s3


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


class Overwriting(BaseHTTPRequestHandler):
    """Speaks as much S3 as a PUT needs, and does not know If-None-Match."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes]

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.kept else 404)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def overwriting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes]]]:
    kept: dict[str, bytes] = {}
    handler = type("Handler", (Overwriting,), {"kept": kept})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        yield f"http://127.0.0.1:{server.server_port}", kept
        server.shutdown()
        serving.join()


async def test_a_store_that_overwrites_gets_no_scheme(
    run: RunDir, minted: MintedCampaign, overwriting: tuple[str, dict[str, bytes]]
) -> None:
    endpoint, kept = overwriting
    settings = settings_of("s3://rain/evening").model_copy(update={"objects_endpoint": endpoint})
    for _ in range(2):
        with pytest.raises(Rejected, match="ignores If-None-Match") as refused:
            await upload_scheme(run, settings, minted.manifest)
        assert refused.value.field == "objects_url"
    assert list(kept) == ["/rain/evening/create-only/probe"]


@pytest.mark.skipif(s3.why_not() is not None, reason=str(s3.why_not()))
async def test_a_store_that_refuses_to_overwrite_is_asked_once(
    run: RunDir, minted: MintedCampaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.running_s3(tmp_path / "s3", "rain") as server:
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        settings, probe = settings_of("s3://rain"), server.stored("rain", PROBE)
        await upload_scheme(run, settings, minted.manifest)
        assert probe.read_bytes() == b"first"
        probe.unlink()
        await upload_scheme(run, settings, minted.manifest)
        assert not probe.exists()
