"""F9, F18: a disk that errs, is full, is slow, and wall clocks that jump, under load.

One evening is shared. A shim (preload.c) stands between the store and settle processes and the
kernel; a file in a folder switches each fault on and off while they run.
"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from hongbao.cli.run_dir import ProcessSpec

from tests.processes import checkers
from tests.processes.rainy import Evening, Plot, Stage, play_evening, query, short_folder
from tests.stalls import Stalls, undisturbed

SHIM = Path(__file__).with_name("preload.c")
SHIMMED = ("store", "settle")
HOUR_S = 3600
REFUSED_S = 1.2
SLOW_S = 3.0
RESUMED_S_MAX = 4.0
CALM_S = 1.0

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.xdist_group("faults")]


class Faults:
    """Switches the faults of the processes of one role."""

    def __init__(self, folder: Path, stage: Stage) -> None:
        self._folder = folder
        self._stage = stage

    @asynccontextmanager
    async def fault(self, role: str, name: str, value: int = 1) -> AsyncIterator[None]:
        """Hold a fault; note from when to when it surely held."""
        wall_ms = self._stage.up.clock.wall_ms
        file = self._folder / role / name
        file.with_suffix(".new").write_text(str(value))
        file.with_suffix(".new").rename(file)
        from_ms = wall_ms()
        try:
            yield
        finally:
            self._stage.notes.facts[f"{role} {name} {value}"] = (from_ms, wall_ms())
            file.unlink()


async def break_disk_and_clock(stage: Stage) -> None:
    """Do one fault after another, each with a while of calm behind it."""
    faults = Faults(stage.up.run.path / "faults", stage)
    await stage.at(0, 0.12)
    for role, name in (("store", "fsync_error"), ("store", "disk_full"), ("settle", "fsync_error")):
        async with faults.fault(role, name):
            await asyncio.sleep(REFUSED_S + 0.5 * stage.draw())
        await asyncio.sleep(CALM_S + 1.0)
    async with faults.fault("store", "slow_disk", 100):
        await asyncio.sleep(SLOW_S)
    await asyncio.sleep(CALM_S)
    await jump_clocks(stage, faults)


async def jump_clocks(stage: Stage, faults: Faults) -> None:
    """Let the wall clocks jump by an hour, forth and back; note every lease before and after."""
    facts = stage.notes.facts
    facts["leases"] = [await leases(stage)]
    for offset_s in (HOUR_S, -HOUR_S):
        async with (
            faults.fault("store", "wall_offset", offset_s),
            faults.fault("settle", "wall_offset", offset_s),
        ):
            await asyncio.sleep(2.0 * stage.plot.lease_ttl_s)
            facts["leases"].append(await leases(stage))
    await asyncio.sleep(CALM_S)
    facts["leases"].append(await leases(stage))


async def leases(stage: Stage) -> dict[str, int]:
    """Return the revision that granted each lease: its epoch."""
    held = await stage.up.stores.coordination.read_prefix("lease/")
    return {one.key: one.revision for one in held if one.value}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the compiled shim, or skip where nothing compiles it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for the fault shim: apt install gcc")
    library = tmp_path_factory.mktemp("shim") / "preload.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the fault shim does not compile here: {built.stderr[:200]}")
    return library


@pytest.fixture(scope="module")
def evening(seed: int, shim: Path, stalls: Stalls) -> Iterator[Evening]:
    with undisturbed(stalls, partial(played, seed, shim)) as evening:
        yield evening


@contextmanager
def played(seed: int, shim: Path) -> Iterator[Evening]:
    with short_folder() as folder:

        def environ(spec: ProcessSpec) -> Mapping[str, str]:
            if spec.role not in SHIMMED:
                return {}
            faults = folder / "run" / "faults" / spec.role
            faults.mkdir(parents=True, exist_ok=True)
            return {"LD_PRELOAD": str(shim), "HONGBAO_FAULTS": str(faults)}

        plot = Plot(seed, seconds=26.0, slots=1, packets_a_slot=48_000, rate=400.0, environ=environ)
        yield play_evening(folder, plot, break_disk_and_clock)


@pytest.mark.parametrize("fault", ["store fsync_error 1", "store disk_full 1"])
def test_nothing_is_acknowledged_that_is_not_durable(evening: Evening, fault: str) -> None:
    """F18: refuse rather than lie."""
    from_ms, until_ms = evening.notes.facts[fault]
    checkers.check_silence(evening.acknowledged, evening.claims, from_ms, until_ms)
    assert sum(from_ms - 1000 < one.at_ms < from_ms for one in evening.acknowledged) > 10
    assert "store_commit_failed" in {line["event"] for line in evening.log_of("store")}


@pytest.mark.parametrize(
    "fault", ["store fsync_error 1", "store disk_full 1", "store slow_disk 100"]
)
def test_service_resumes_when_the_disk_has_healed(evening: Evening, fault: str) -> None:
    """F18."""
    _, until_ms = evening.notes.facts[fault]
    late_ms = until_ms + int(RESUMED_S_MAX * 1000)
    assert sum(until_ms < one.at_ms < late_ms for one in evening.acknowledged) > 50


def test_a_slow_disk_slows_and_does_not_stop(evening: Evening) -> None:
    """F18."""
    from_ms, until_ms = evening.notes.facts["store slow_disk 100"]
    assert sum(from_ms < one.at_ms < until_ms for one in evening.acknowledged) > 50


def test_the_wall_clocks_jumped_as_settlement_saw_them(evening: Evening) -> None:
    """F9: else the tests of the jump would prove nothing; access and redeem keep the true time."""
    sql = "SELECT opened_at_ms, credited_at_ms FROM transfers WHERE credited_at_ms > 0"
    late_s = [(credited - opened) / 1000 for opened, credited in query(evening.run, sql)]
    assert {round(one / HOUR_S) for one in late_s} == {-1, 0, 1}


def test_no_lease_moves_when_wall_clocks_jump_an_hour(evening: Evening) -> None:
    """F9: leases run on the monotonic clock; every holder keeps its epoch."""
    before, *later = evening.notes.facts["leases"]
    assert len([key for key in before if key.startswith("lease/claims/")]) == 4
    for seen in later:
        assert seen == before


def test_opens_go_on_while_wall_clocks_are_wrong(evening: Evening) -> None:
    """F9."""
    for offset_s in (HOUR_S, -HOUR_S):
        from_ms, until_ms = evening.notes.facts[f"store wall_offset {offset_s}"]
        assert sum(from_ms < one.at_ms < until_ms for one in evening.acknowledged) > 50


def test_every_promise_of_the_evening_is_kept_and_paid_once(evening: Evening) -> None:
    assert len(evening.acknowledged) > 1000
    checkers.check_promises_kept(evening.acknowledged, evening.claims)
    checkers.check_claimed_once(evening.claims)
    checkers.check_settled_once(evening.claims, evening.transfers)
    assert evening.audit["equations"] == "hold"
