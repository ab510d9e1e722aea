"""F9: wall clocks that jump by an hour move no lease on etcd.

The clock that jumps is the holder's, under the shim of the process tests. etcd's own cannot be
moved here: it is a static Go program, which asks the kernel and not libc, so nothing that is
preloaded (libfaketime) reaches it. Its leases run on Go's monotonic clock. Which way and how far
the clock jumps, and when, is drawn: HONGBAO_SEED repeats a run.
"""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hongbao.adapters.clock import SystemClock

from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.sim.dice import Dice
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "processes" / "preload.c"
HOUR_S = 3600
TTLS_S = (6.0, 18.0)
"""80 % of them are relied on: a busy machine may keep a renewal waiting for seconds. Then it is
tried once more, with a longer lease."""
WALL_SLACK_S = 300.0
"""The test is over by then; any two of the jumps lie further apart."""


@dataclass(frozen=True)
class Jump:
    """Is how far the wall clock is off from then on, and how long it stays so."""

    offset_s: int
    stays_s: float


pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
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


def draw_jumps(dice: Dice, ttl_s: float) -> list[Jump]:
    """Draw a jump forth and one back, in either order, and one to somewhere between."""
    sign = dice.choose((1, -1))
    far = [int(HOUR_S * dice.between(0.5, 1.5)) for _ in range(2)]
    near = dice.choose((1, -1)) * int(HOUR_S * dice.between(0.1, 0.4))
    offsets = (sign * far[0], -sign * far[1], near)
    # Each stays longer than a lease lives without renewals, and ends anywhere between two of them.
    return [Jump(offset_s, dice.between(1.3, 1.7) * ttl_s) for offset_s in offsets]


async def test_a_holder_keeps_its_lease_while_its_wall_clock_jumps_about_an_hour(
    cluster: EtcdCluster, shim: Path, tmp_path: Path, seed: int
) -> None:
    for ttl_s in TTLS_S:
        jumps = draw_jumps(Dice(seed), ttl_s)
        print(f"drawn from seed {seed}: {jumps}")
        faults = tmp_path / f"faults-{ttl_s}"
        faults.mkdir()
        told = await hold_while_clocks_jump(cluster, shim, faults, ttl_s, jumps)
        if len(told) == 1:
            return
    raise AssertionError(f"the lease was lost, or a write failed, both times: {told}")


async def hold_while_clocks_jump(
    cluster: EtcdCluster, shim: Path, faults: Path, ttl_s: float, jumps: list[Jump]
) -> set[str]:
    """Let another process hold a lease; return what it told and with which epochs."""
    began_s = SystemClock().wall_ms() // 1000
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.stores.etcd_holder"),
        *(f"{secrets.token_hex(6)}/", f"{ttl_s}", *cluster.endpoints),
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(shim), "HONGBAO_FAULTS": str(faults)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        first = await asyncio.wait_for(holder.stdout.readline(), LIMIT_S)
        assert first.startswith(b"held ")
        for jump in jumps:
            new = faults / "new"
            new.write_text(str(jump.offset_s))
            new.rename(faults / "wall_offset")
            await asyncio.sleep(jump.stays_s)
    finally:
        holder.kill()
    lines = (await holder.stdout.read()).decode().splitlines()
    await holder.wait()
    assert len(lines) > 40
    held = [line.split() for line in lines if line.startswith("held ")]
    check_jumped([int(wall_s) - began_s for _, _, wall_s in held], jumps)
    return {" ".join(line.split()[:2]) for line in lines}


def check_jumped(shown_s: list[int], jumps: list[Jump]) -> None:
    """The holder's clock was off as drawn: without that the test would say nothing."""
    for jump in jumps:
        assert any(0 <= shown - jump.offset_s < WALL_SLACK_S for shown in shown_s), jump
