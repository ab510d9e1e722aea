"""Finds, or builds, the store servers that tests run against; says plainly why there are none.

A folder of binaries may be named in the environment; else they are built from the Go modules that
lie beside the project, once for each version of those, and kept in the user's cache.
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

BINARIES_VARIABLE = "HONGBAO_SERVERS_BIN"
"""Names a folder with pd-server, rawstore, etcd and etcdctl."""
NAMES = ("pd-server", "rawstore", "etcd", "etcdctl")
SOURCES = Path(__file__).resolve().parents[2].parent / "shared" / "stores"
BUILD_S_MAX = 1500


def why_not() -> str | None:
    """Return why no store server can be started here, None when they can."""
    if found_folder() is not None:
        return None
    if not SOURCES.is_dir():
        return f"no store servers: {BINARIES_VARIABLE} is not set and {SOURCES.name}/ is not there"
    if shutil.which("go") is None:
        return f"no store servers: {BINARIES_VARIABLE} is not set and there is no go to build them"
    return "the store servers are not built: run `make servers`"


def folder() -> Path:
    """Return where the binaries are; call only when `why_not` has nothing to say."""
    found = found_folder()
    assert found is not None, why_not()
    return found


def found_folder() -> Path | None:
    """Return the folder that holds all binaries, None where some are missing."""
    named = os.environ.get(BINARIES_VARIABLE)
    candidate = Path(named) if named else _cache()
    if candidate is None or not all((candidate / name).exists() for name in NAMES):
        return None
    return candidate


def build(say: Callable[[str], None]) -> None:
    """Build what is missing; say what is done, or why it cannot be."""
    reason, cache = why_not(), _cache()
    if reason is None:
        say(f"store servers: {folder()}")
        return
    if cache is None or shutil.which("go") is None:
        say(f"skipped: {reason}")
        return
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found_folder() is None:
            say("building PD, the TiKV-protocol store and etcd: some minutes, once")
            script = ["sh", str(SOURCES / "build.sh"), str(cache)]
            subprocess.run(script, check=True, timeout=BUILD_S_MAX)
    say(f"store servers: {folder()}")


@functools.cache
def _cache() -> Path | None:
    """Return the folder for binaries of just these sources."""
    if not SOURCES.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hongbao-servers" / digest.hexdigest()[:16]
