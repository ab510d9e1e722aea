"""F9: wall clocks that jump by an hour move no lease on etcd.

The clock that jumps is the holder's, under the shim of the process tests. etcd's own cannot be
moved here: it is a static Go program, which asks the kernel and not libc, so nothing that is
preloaded (libfaketime) reaches it. Its leases run on Go's monotonic clock.
"""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.stores.etcd_holder import TTL_S

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "processes" / "preload.c"
HOUR_S = 3600

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("etcd-faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=str(binaries.why_not())),
]


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """Give the compiled shim, or skip where nothing compiles it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the fault shim: apt install gcc")
    library = tmp_path / "preload.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the fault shim does not compile here: {built.stderr[:200]}")
    return library


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "etcd") as made:
        yield made


async def test_a_holder_keeps_its_lease_while_its_wall_clock_jumps_an_hour(
    cluster: EtcdCluster, shim: Path, tmp_path: Path
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.stores.etcd_holder"),
        *(f"{secrets.token_hex(6)}/", *cluster.endpoints),
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(shim), "HONGBAO_FAULTS": str(faults)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        assert (await asyncio.wait_for(holder.stdout.readline(), 20)).startswith(b"held ")
        for offset_s in (HOUR_S, -HOUR_S, 0):
            new = faults / "new"
            new.write_text(str(offset_s))
            new.rename(faults / "wall_offset")
            await asyncio.sleep(1.5 * TTL_S)
    finally:
        holder.kill()
    lines = (await holder.stdout.read()).decode().splitlines()
    await holder.wait()
    assert len(lines) > 40
    assert {line.split()[0] for line in lines} == {"held"}
    assert len(set(lines)) == 1, "the epoch changed"
