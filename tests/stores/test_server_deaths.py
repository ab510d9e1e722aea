"""Facts about what a test run that is killed -9 leaves behind: no store server."""

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
