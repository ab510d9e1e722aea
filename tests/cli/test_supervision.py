"""Facts about keeping processes alive, with real processes that only sleep."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.supervisor import Supervisor
from hongbao.domain.errors import Transient

from tests.waiting import until

SPEC = ProcessSpec("sleeper-a-0", "sleeper", "a")


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return sleepers(tmp_path)


def sleepers(
    folder: Path,
    failures: list[Exception] | None = None,
    drain_fails: Exception | None = None,
) -> Supervisor:
    """Supervise `sleep` in place of a role; the first starts may fail before it, or every drain."""

    async def environ(_spec: ProcessSpec) -> Mapping[str, str]:
        if failures:
            raise failures.pop()
        return {}

    async def yes(_spec: ProcessSpec) -> bool:
        return True

    async def nothing(_spec: ProcessSpec) -> None:
        if drain_fails is not None:
            raise drain_fails

    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    return Supervisor(
        RunDir(folder),
        environ=environ,
        ready=yes,
        drain=nothing,
        monotonic_s=time.monotonic,
        command=lambda _run, _spec: sleep,
    )


async def test_a_killed_process_is_started_again(supervisor: Supervisor) -> None:
    await supervisor.start([SPEC])
    first = supervisor.pid(SPEC.process)
    supervisor.kill(SPEC.process)
    await until(lambda: supervisor.pid(SPEC.process) not in (None, first))
    assert supervisor.deaths == [(SPEC.process, -9)]
    await supervisor.drain([SPEC])


async def test_a_lost_process_stays_down_until_it_is_started(supervisor: Supervisor) -> None:
    await supervisor.start([SPEC])
    supervisor.lose([SPEC])
    await until(lambda: supervisor.pid(SPEC.process) is None)
    await asyncio.sleep(0.5)
    assert supervisor.pid(SPEC.process) is None
    await supervisor.start([SPEC])
    assert supervisor.pid(SPEC.process) is not None
    await supervisor.drain([SPEC])


async def test_a_drained_process_is_gone_and_does_not_come_back(supervisor: Supervisor) -> None:
    await supervisor.start([SPEC])
    pid = supervisor.pid(SPEC.process)
    await supervisor.drain([SPEC])
    assert supervisor.pid(SPEC.process) is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert supervisor.deaths == []


async def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    """A store that is away while an epoch is raised, a full disk: the keeper outlives both."""
    supervisor = sleepers(tmp_path, [Transient("no store"), OSError(28, "no space left")])
    await supervisor.start([SPEC])
    assert supervisor.pid(SPEC.process) is not None
    assert supervisor.deaths == []  # nothing lived yet
    await supervisor.drain([SPEC])


@pytest.mark.parametrize("error", [OSError("no answer"), TimeoutError()])
async def test_a_drain_that_fails_ends_its_process_and_the_others_all_the_same(
    tmp_path: Path, error: Exception
) -> None:
    """As found: Envoy gave no statistics, and neither it nor the other roles were ended."""
    supervisor = sleepers(tmp_path, drain_fails=error)
    specs = [SPEC, ProcessSpec("sleeper-b-0", "sleeper", "b")]
    await supervisor.start(specs)
    await supervisor.drain(specs)
    assert [supervisor.pid(spec.process) for spec in specs] == [None, None]


async def test_draining_one_process_leaves_the_others_supervised(supervisor: Supervisor) -> None:
    other = ProcessSpec("sleeper-b-0", "sleeper", "b")
    await supervisor.start([SPEC, other])
    await supervisor.drain([SPEC])
    first = supervisor.pid(other.process)
    supervisor.kill(other.process)
    await until(lambda: supervisor.pid(other.process) not in (None, first))
    assert supervisor.deaths == [(other.process, -9)]
    await supervisor.drain([other])


async def test_a_process_ends_when_its_supervisor_is_killed() -> None:
    """Else orphans would hold ports, leases and the store's lock against the next start."""
    child = (
        "import os, time; from hongbao.cli.role import end_with_supervisor; "
        "end_with_supervisor(); print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, stdout=asyncio.subprocess.PIPE
    )
    assert supervisor.stdout is not None
    pid = int(await supervisor.stdout.readline())
    supervisor.kill()
    await supervisor.wait()
    await until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in state_of(pid))


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
