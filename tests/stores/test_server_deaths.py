"""What a killed test run leaves behind (no server), and a killed server (no failed test)."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import postgres
from tests.servers import binaries, s3
from tests.servers.tikv import ServerDied, TikvCluster

ROOT = Path(__file__).parents[2]
GONE_S_MAX = 60.0
POSTGRES = """
from tests.postgres import started_cluster
with started_cluster() as cluster:
    pid = (cluster.folder / "data" / "postmaster.pid").read_text().split()[0]
    print(cluster.folder, pid, flush=True)
    input()
"""
S3 = """
import pathlib, sys
from tests.servers.s3 import running_s3
with running_s3(pathlib.Path(sys.argv[1])) as server:
    print(server.folder, server._process.pid, flush=True)
    input()
"""
ETCD = """
import pathlib, sys
from tests.servers.etcd import EtcdCluster
with EtcdCluster(pathlib.Path(sys.argv[1])) as cluster:
    print(sys.argv[1], cluster._processes[0].pid, flush=True)
    input()
"""
RERUN = """
import pytest
from tests.servers.tikv import TikvCluster

runs = []

@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with TikvCluster(tmp_path_factory.mktemp("tikv")) as made:
        yield made

async def test_fails_once(cluster):
    runs.append(1)
    assert not cluster.died_unseen()
    if len(runs) == 1:
        cluster._store(0).kill()
        cluster._store(0).wait()
        assert False
"""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        shutil.which("setpriv") is None, reason="no setpriv: apt install util-linux"
    ),
]


@pytest.mark.parametrize(
    ("program", "missing"),
    [
        pytest.param(POSTGRES, postgres.why_not(), id="postgres"),
        pytest.param(S3, s3.why_not(), id="s3"),
        pytest.param(ETCD, binaries.why_not(), id="etcd"),
    ],
)
def test_no_server_outlives_a_test_run_that_is_killed(
    tmp_path: Path, program: str, missing: str | None
) -> None:
    if missing:
        pytest.skip(missing)
    command = [sys.executable, "-c", program, str(tmp_path / "server")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder, pid = run.stdout.readline().split()
        family = family_of(int(pid))
        try:
            run.kill()
            run.wait()
            give_up_s = time.monotonic() + GONE_S_MAX
            while left := [one for one in family if postgres.lives(one)]:
                assert time.monotonic() < give_up_s, f"still there: {left}"
                time.sleep(0.05)
        finally:
            for one in filter(postgres.lives, family):
                os.kill(one, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def family_of(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *map(int, children.split())]


needs_tikv = pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not()))


@needs_tikv
def test_a_store_that_died_unseen_is_there_again_for_the_next_test(tmp_path: Path) -> None:
    with TikvCluster(tmp_path / "tikv") as cluster:
        died = cluster._store(0)
        died.kill()
        died.wait()
        assert cluster.died_unseen()
        cluster.heal()
        assert not cluster.died_unseen()
        assert cluster._store(0).pid != died.pid


@needs_tikv
def test_a_failure_beside_a_store_that_died_unseen_is_told_as_its_death(tmp_path: Path) -> None:
    def fail() -> None:
        with TikvCluster(tmp_path / "tikv") as cluster:
            cluster._store(0).kill()
            cluster._store(0).wait()
            pytest.fail("no call was answered")

    with pytest.raises(ServerDied):
        fail()


@needs_tikv
def test_a_test_that_fails_beside_a_store_that_died_unseen_is_run_again(tmp_path: Path) -> None:
    """The cluster that it shares with others is whole again by then."""
    (tmp_path / "test_it.py").write_text(RERUN)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml"]
    command += [f"--rootdir={ROOT}", f"--basetemp={tmp_path}/base", f"{tmp_path}/test_it.py"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "1 passed, 1 rerun" in ran.stdout, ran.stdout
