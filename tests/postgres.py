"""Runs a PostgreSQL cluster of its own for tests, where the binaries are on the machine.

The server is our own child (pg_ctl would give it away), so it dies with us.
"""

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

import psycopg

from tests.servers import started

BINARIES = Path("/usr/lib/postgresql")
START_S_MAX = 60
STOP_S_MAX = 30
POLL_S = 0.02


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
    port: int = field(default_factory=started.free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://hongbao@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Serve; returns once it takes connections, after whatever recovery a kill made needed."""
        binaries, log = find_binaries(), self.folder / "log"
        assert binaries is not None
        place = ("-D", str(self.folder / "data"), "-k", str(self.folder))
        options = ("-h", "127.0.0.1", "-p", str(self.port), "-c", "fsync=off")
        command = [str(binaries / "postgres"), *place, *options]
        self._process = started.start(command, log, user=self.user)
        give_up_s = time.monotonic() + START_S_MAX
        while not self._serves():
            died = self._process.poll()
            assert died is None, f"PostgreSQL ended with {died}: {log.read_text()}"
            assert time.monotonic() < give_up_s, f"not served in {START_S_MAX} s: {log.read_text()}"
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it at once, and wait until it has taken its backends along."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_S_MAX)
            self._process = None

    def kill(self) -> None:
        """Kill -9 the server and every backend at once.

        What was committed outlives it even without fsync, because the machine stays up.
        """
        assert self._process is not None
        pid = self._process.pid
        children = [int(one) for one in _children(pid)]
        for each in (pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._process.wait(STOP_S_MAX)
        self._process = None
        while any(map(lives, children)):  # else the next start finds its memory in use
            time.sleep(POLL_S)

    def _serves(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=STOP_S_MAX).close()
        except psycopg.OperationalError:
            return False
        return True


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
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def lives(pid: int) -> bool:
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
        timeout=START_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _unprivileged() -> str | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None
