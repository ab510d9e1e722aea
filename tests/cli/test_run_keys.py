"""Facts about the key files of a run: a whole set or none, and never a foreign one (R44)."""

import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hongbao.cli import prepare
from hongbao.cli.campaign_input import require_campaign
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import UpSettings
from hongbao.domain.errors import Rejected

from tests.processes.rainy import Plot, write_campaign

PASSPHRASE = "correct horse battery"
FILES = {"mint.keys", "redeem.keys", "access.keys"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> UpSettings:
    folder = tmp_path_factory.mktemp("prepared")
    campaign = write_campaign(folder / "campaign", Plot(seed=1, slots=1, packets_a_slot=40))
    return UpSettings(campaign=campaign, run_dir=folder / "run", claims_shards=2, ticket_shards=2)


@pytest.fixture(scope="module")
def prepared(settings: UpSettings) -> UpSettings:
    """Prepare a run once; tests break copies of it."""
    prepare_again(settings)
    return settings


@pytest.fixture
def copy(prepared: UpSettings, tmp_path: Path) -> UpSettings:
    shutil.copytree(prepared.run_dir, tmp_path / "run")
    return prepared.model_copy(update={"run_dir": tmp_path / "run"})


def prepare_again(settings: UpSettings) -> prepare.Prepared:
    campaign = require_campaign(settings.campaign)
    return prepare.prepare(RunDir(settings.run_dir), settings, campaign, lambda *_: None)


def settle(settings: UpSettings, folder: Path) -> set[str]:
    run = RunDir(folder)
    prepare.settle_keys(run, settings, require_campaign(settings.campaign), [])
    return {path.name for path in run.keys.iterdir()} - {"passphrase"}


def test_a_fresh_folder_takes_the_operators_passphrase(
    settings: UpSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(prepare.PASSPHRASE_VARIABLE, PASSPHRASE)
    assert settle(settings, tmp_path / "run") == FILES
    assert prepare.role_keyring(RunDir(tmp_path / "run"), "redeem").token_root


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow past 64 KiB: a key file with its 4,095 masters breaks off."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_start_that_broke_off_while_it_made_keys_leaves_none_in_place(
    settings: UpSettings, tmp_path: Path, small_disk: None
) -> None:
    with pytest.raises(OSError, match="too large"):
        settle(settings, tmp_path)
    assert not FILES & {path.name for path in RunDir(tmp_path).keys.iterdir()}


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_start_killed_among_the_key_files_makes_a_whole_new_set(
    settings: UpSettings, tmp_path: Path, written: int
) -> None:
    partial = RunDir(tmp_path).keys / prepare.PARTIAL_KEYS
    partial.mkdir(parents=True)
    for name in sorted(FILES)[:written]:
        (partial / name).write_text("foreign")
    assert settle(settings, tmp_path) == FILES
    keys = [prepare.role_keyring(RunDir(tmp_path), role) for role in prepare.ROLES]
    assert len({keyring.verify_key for keyring in keys}) == 1


def test_a_start_killed_while_a_whole_set_is_put_in_place_keeps_that_set(
    settings: UpSettings, tmp_path: Path
) -> None:
    settle(settings, tmp_path)
    keys = RunDir(tmp_path).keys
    before = {name: (keys / name).read_bytes() for name in FILES}
    (keys / prepare.NEW_KEYS).mkdir()
    (keys / "redeem.keys").rename(keys / prepare.NEW_KEYS / "redeem.keys")
    assert settle(settings, tmp_path) == FILES
    assert {name: (keys / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize("lost", ["redeem.keys", "access.keys"])
def test_a_lost_key_file_is_named_and_nothing_is_made_in_its_place(
    copy: UpSettings, lost: str
) -> None:
    (copy.run_dir / "keys" / lost).unlink()
    with pytest.raises(Rejected, match=f"lacks {lost}"):
        prepare_again(copy)
    assert not (copy.run_dir / "keys" / lost).exists()


def test_losing_all_key_files_of_minted_packets_is_refused(copy: UpSettings) -> None:
    for name in FILES:
        (copy.run_dir / "keys" / name).unlink()
    with pytest.raises(Rejected, match=r"mint\.keys, redeem\.keys, access\.keys"):
        prepare_again(copy)


def test_the_mints_keys_may_lie_offline_once_all_is_minted_and_verified(
    copy: UpSettings, prepared: UpSettings
) -> None:
    (copy.run_dir / "keys" / "mint.keys").unlink()
    assert prepare_again(copy) == prepare_again(prepared)
    assert not (copy.run_dir / "keys" / "mint.keys").exists()


def remove_manifest(scheme: Path) -> None:
    (scheme / ".verified").unlink()
    (scheme / "manifest.json").unlink()


def remove_stamp(scheme: Path) -> None:
    (scheme / ".verified").unlink()


@pytest.mark.parametrize("break_", [remove_manifest, remove_stamp])
def test_the_mints_keys_are_asked_for_while_a_scheme_is_not_minted_and_verified(
    copy: UpSettings, break_: Callable[[Path], None]
) -> None:
    (copy.run_dir / "keys" / "mint.keys").unlink()
    break_(next((copy.run_dir / "objects").glob("*/1")))
    with pytest.raises(Rejected, match=r"lacks mint\.keys"):
        prepare_again(copy)
