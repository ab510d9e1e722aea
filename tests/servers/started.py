"""Starts store servers that never outlive us, on ports that stay theirs while they are down."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORKERS_MAX = 4
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS_MAX
PORTS = range(12_000 + WORKER, 32_000, WORKERS_MAX)
"""Below those that the kernel lends to callers: a server that restarts finds its port free.

No other worker of a test run picks from them what we have picked, while nothing listens there.
"""
STOP_S_MAX = 60.0

# The kernel kills a child when the thread that started it ends, so one thread that lives as long
# as the process starts them all.
_STARTER = ThreadPoolExecutor(1, "servers")
_given: set[int] = set()


def free_port() -> int:
    """Return a port of this machine on which nothing listens; never the same one again."""
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port


def start(
    command: Sequence[str],
    log: Path,
    *,
    environ: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server; it is killed when this process ends, however that happens.

    `environ` takes the place of our own environment. A `user` other than ours may not be let into
    our folder, so it works in the root.
    """
    found = shutil.which("setpriv")
    guard = [found, "--pdeathsig", "KILL", "--"] if found else []
    with log.open("ab") as output:
        return _STARTER.submit(
            subprocess.Popen,
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
            user=user,
            cwd=None if user is None else "/",
        ).result()


def pause(process: subprocess.Popen[bytes]) -> None:
    """Stop a server (SIGSTOP): it keeps its connections and answers nobody, until `resume`.

    On a busy machine its threads go on for a moment: returns when all of them stand.
    """
    process.send_signal(signal.SIGSTOP)
    give_up_s = time.monotonic() + STOP_S_MAX
    while time.monotonic() < give_up_s:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        if all(_stands(task / "stat") for task in tasks):
            return
        time.sleep(0.005)
    raise TimeoutError(f"process {process.pid} did not stop within {STOP_S_MAX:g} s")


def resume(process: subprocess.Popen[bytes]) -> None:
    """Let a paused server go on."""
    process.send_signal(signal.SIGCONT)


def _stands(stat: Path) -> bool:
    """Tell whether a thread is stopped, or gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server as a power cut would, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait(STOP_S_MAX)
