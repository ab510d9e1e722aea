"""Runs a PostgreSQL cluster of its own for tests, where the binaries are on the machine."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@contextlib.contextmanager
def running_cluster() -> Iterator[str]:
    """Yield the URL of a fresh cluster on a loopback port; stop and remove it afterwards."""
    binaries = find_binaries()
    assert binaries is not None
    user = _unprivileged() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="hongbao-pg-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        _run(user, binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "hongbao", "-N")
        port = _free_port()
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        control = (binaries / "pg_ctl", "-D", folder / "data")
        _run(user, *control, "-o", options, "-l", folder / "log", "-t", START_S_MAX, "-w", "start")
        try:
            yield f"postgresql://hongbao@127.0.0.1:{port}/postgres"
        finally:
            _run(user, *control, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
