"""Finds, or builds, the store servers that tests run against; says plainly why there are none.

A folder of binaries may be named in the environment; else they are built from Go modules, once for
each version of those, and kept in the user's cache. The modules of PD, the TiKV-protocol store and
etcd lie beside the project, that of the S3 server lies here: one can be missing without the other.
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
"""Names a folder with pd-server, rawstore, etcd, etcdctl, and versitygw for S3."""
NAMES = ("pd-server", "rawstore", "etcd", "etcdctl")
SOURCES = Path(__file__).resolve().parents[2].parent / "shared" / "stores"
S3_NAME = "versitygw"
S3_SOURCES = Path(__file__).resolve().parent / "s3"
S3_PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
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


def why_no_s3() -> str | None:
    """Return why no S3 server can be started here, None when one can."""
    if _s3_place().exists():
        return None
    if named := os.environ.get(BINARIES_VARIABLE):
        return f"no S3 server: {BINARIES_VARIABLE}={named} holds no {S3_NAME}"
    if shutil.which("go") is None:
        return f"no S3 server: {BINARIES_VARIABLE} is not set and there is no go to build it"
    return "the S3 server is not built: run `make servers`"


def s3_binary() -> Path:
    """Return the S3 server; call only when `why_no_s3` has nothing to say."""
    assert (reason := why_no_s3()) is None, reason
    return _s3_place()


def build(say: Callable[[str], None]) -> None:
    """Build what is missing; say what is done, or why it cannot be: the tests are skipped then."""
    for what in (_build_stores, _build_s3):
        try:
            what(say)
        except (subprocess.SubprocessError, OSError) as error:  # no network, go too old, no disk
            say(f"skipped: the build failed: {error}")


def _build_s3(say: Callable[[str], None]) -> None:
    place, reason = _s3_place(), why_no_s3()
    if reason is not None and (os.environ.get(BINARIES_VARIABLE) or shutil.which("go") is None):
        say(f"skipped: {reason}")
        return
    if reason is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.exists():
                say("building the S3 server: some minutes, once")
                partial = place.with_name(f".{S3_NAME}")  # a build that was killed is not used
                command = ["go", "build", "-o", str(partial), S3_PACKAGE]
                subprocess.run(command, cwd=S3_SOURCES, check=True, timeout=BUILD_S_MAX)
                partial.rename(place)
    say(f"S3 server: {place}")


def _build_stores(say: Callable[[str], None]) -> None:
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


def _s3_place() -> Path:
    """Return where the S3 server is, or would be once it is built."""
    named = os.environ.get(BINARIES_VARIABLE)
    return (Path(named) if named else _cache_of(S3_SOURCES)) / S3_NAME


def _cache() -> Path | None:
    return _cache_of(SOURCES) if SOURCES.is_dir() else None


@functools.cache
def _cache_of(sources: Path) -> Path:
    """Return the folder for binaries of just these sources."""
    digest = hashlib.sha256()
    for path in sorted(path for path in sources.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(sources)}\n".encode() + path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hongbao-servers" / digest.hexdigest()[:16]
