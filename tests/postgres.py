"""Runs a PostgreSQL cluster of its own for tests, where the binaries are on the machine."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.started import free_port

BINARIES = Path("/usr/lib/postgresql")
START_S_MAX = 30


def find_binaries() -> Path | None:
    """Return the folder of the newest server, None where there is none."""
    found = sorted(BINARIES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def why_not() -> str | None:
    """Return why no cluster can run here."""
    if find_binaries() is None:
        return f"no PostgreSQL server below {BINARIES}"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "running as root, and there is no user postgres or nobody to run a server as"
    return None


@dataclass
class Cluster:
    """Is a PostgreSQL server on a folder of its own, on a port that it keeps over restarts."""

    folder: Path
    user: str | None
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"postgresql://hongbao@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Serve; returns once it takes connections, after whatever recovery a kill made needed."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._control("-o", options, "-l", self.folder / "log", "-t", START_S_MAX, "-w", "start")

    def stop(self) -> None:
        self._control("-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """Kill -9 the server and every backend at once.

        What was committed outlives it even without fsync, because the machine stays up.
        """
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        while _lives(pid):
            time.sleep(0.01)

    def _control(self, *options: object) -> None:
        binaries = find_binaries()
        assert binaries is not None
        _run(self.user, binaries / "pg_ctl", "-D", self.folder / "data", *options)


@contextlib.contextmanager
def running_cluster() -> Iterator[str]:
    """Yield the URL of a fresh cluster on a loopback port; stop and remove it afterwards."""
    with started_cluster() as cluster:
        yield cluster.url


@contextlib.contextmanager
def started_cluster() -> Iterator[Cluster]:
    """Yield a fresh cluster that a test may kill and start; stop and remove it afterwards."""
    binaries = find_binaries()
    assert binaries is not None
    user = _unprivileged() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="hongbao-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        _run(user, binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "hongbao", "-N")
        cluster = Cluster(folder, user)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    """Say whether a process still runs: a zombie does not, whoever its parent is."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _run(user: str | None, *command: object) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        user=user,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=2 * START_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _unprivileged() -> str | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None
