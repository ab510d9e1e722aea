"""Facts about who may run a folder: one supervisor at a time."""

import multiprocessing
import os
from pathlib import Path

import pytest
import yaml
from hongbao.cli import demo, up
from hongbao.cli.run_dir import LOCK_NAME, RunDir
from hongbao.domain.errors import Rejected

from tests.waiting import LIMIT_S


def settings_file(folder: Path) -> Path:
    path = folder / "up.yaml"
    path.write_text(yaml.safe_dump({"campaign": "none.yaml", "run_dir": str(folder / "run")}))
    return path


def test_a_second_up_is_refused_before_it_touches_the_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with (
        run.supervised(),
        pytest.raises(Rejected, match=f"already running, pid {os.getpid()}"),
    ):
        up.up(settings_file(tmp_path), rehearsal=0.0, start_in=0.0)
    assert [path.name for path in run.path.iterdir()] == [LOCK_NAME]


def test_a_demo_empties_no_folder_that_is_running(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.supervised():
        (run.path / "run.json").write_text("{}")
        with pytest.raises(Rejected, match="already running"):
            demo.demo(settings_file(tmp_path))
    assert (run.path / "run.json").exists()


def _hold_and_die(path: Path) -> None:
    with RunDir(path).supervised():
        os._exit(9)


def test_a_run_is_free_again_when_its_supervisor_was_killed(tmp_path: Path) -> None:
    held = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(tmp_path,))
    held.start()
    held.join(LIMIT_S)
    assert held.exitcode == 9
    with RunDir(tmp_path).supervised():
        assert (tmp_path / LOCK_NAME).read_text().strip() == str(os.getpid())


def test_a_demo_leaves_its_own_lock_in_place(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.supervised():
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "store").mkdir()
        demo._empty(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
