"""Processes on a core of their own, and the packages that peers come from."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SERVER_CORE, LOAD_CORE = (
    sorted(os.sched_getaffinity(0))[:2] if len(os.sched_getaffinity(0)) > 1 else (0, 0)
)
READY_S_MAX = 20.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PACKAGES = {"nginx": "nginx-light", "redis-server": "redis-server", "h2load": "nghttp2-client"}


class Unavailable(Exception):
    """Says why a peer cannot be measured here."""


def require_program(name: str) -> str:
    """Return the program's path; installs its Debian package when root. Raises Unavailable."""
    if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return found
    package = PACKAGES[name]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Unavailable(f"{name} is missing: apt install {package}")
    # Only the program is wanted: policy-rc.d's exit 101 keeps Debian from starting a service.
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return found
    raise Unavailable(f"apt-get install {package} failed: {ended.stderr.strip()[-200:]}")


@contextmanager
def running(
    command: Sequence[str], *, core: int, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process on one core until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a port answers. Raises Unavailable with the end of the process's log."""
    give_up = time.monotonic() + READY_S_MAX
    while time.monotonic() < give_up and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise Unavailable(f"nothing listens on {port}: {log.read_text(errors='replace')[-400:]}")


def pin(pid: int, core: int) -> None:
    """Move a process with all its threads; threads that it starts later follow."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def cpu_s(pid: int) -> Counter[str]:
    """Return the processor time that a process has used: Envoy's workers, and the rest."""
    used = Counter[str]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            text = (task / "stat").read_text()
            fields = text[text.rindex(")") + 2 :].split()
            part = "Envoy" if "(wrk:" in text else "Python"
            used[part] += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return used


def private_mib(pid: int) -> tuple[float, float]:
    """Return (memory that is this process's alone, resident file pages that it maps), in MiB.

    Pages of a mapped file are page cache: they are counted as private by the kernel while only
    one process maps them, but they can be dropped at any time, so they are told apart.
    """
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) / 1024
    return values["Private_Dirty"] + values.get("Swap", 0.0), values["Private_Clean"]
