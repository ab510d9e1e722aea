"""Owns the processes of a run: start, restart, kill, drain. Refuses to know what they do.

Each process writes `logs/<process>.log`. A process that dies is started again after a pause that
grows with each death in a row, unless its zone is held down.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from hongbao.cli.child_environ import child_environ
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.domain.errors import Transient

RESTART_PAUSE_S = (0.2, 0.5, 1.0, 2.0, 5.0)
LIVED_WELL_S = 10.0
DRAIN_S_MAX = 20.0
READY_S_MAX = 120.0

log = structlog.get_logger()

Command = Callable[[RunDir, ProcessSpec], list[str]]
Environ = Callable[[ProcessSpec], Awaitable[Mapping[str, str]]]
Drain = Callable[[ProcessSpec], Awaitable[None]]
Ready = Callable[[ProcessSpec], Awaitable[bool]]


class Supervisor:
    """Keeps the processes of one run alive."""

    def __init__(
        self,
        run: RunDir,
        *,
        environ: Environ,
        ready: Ready,
        drain: Drain,
        monotonic_s: Callable[[], float],
        command: Command,
    ) -> None:
        """Take what the roles need: secrets for a start, a readiness probe, a way to drain."""
        self._command = command
        self._run = run
        self._environ = environ
        self._ready = ready
        self._drain = drain
        self._monotonic_s = monotonic_s
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._held: set[str] = set()
        self.deaths: list[tuple[str, int]] = []  # (process, exit status) that nobody asked for

    def pid(self, process: str) -> int | None:
        """Return the pid while the process runs."""
        child = self._children.get(process)
        return child.pid if child and child.returncode is None else None

    async def start(self, specs: Sequence[ProcessSpec]) -> None:
        """Start processes and wait until each is ready. Raises Transient for one that is not."""
        for spec in specs:
            self._held.discard(spec.process)
            self._keepers[spec.process] = asyncio.create_task(self._keep(spec))
        await asyncio.gather(*(self.wait_ready(spec) for spec in specs))

    async def wait_ready(self, spec: ProcessSpec) -> None:
        """Wait until a process answers its readiness probe."""
        give_up_s = self._monotonic_s() + READY_S_MAX
        while not (self.pid(spec.process) and await self._ready(spec)):
            if self._monotonic_s() > give_up_s:
                raise Transient(
                    f"{spec.process} was not ready within {READY_S_MAX:.0f} s: "
                    f"see {self._run.logs / spec.process}.log"
                )
            await asyncio.sleep(0.05)

    def kill(self, process: str) -> None:
        """Kill a process as a crash would (SIGKILL); it is started again."""
        if pid := self.pid(process):
            os.kill(pid, signal.SIGKILL)

    def lose(self, specs: Sequence[ProcessSpec]) -> None:
        """Kill processes at once and hold them down, as when a zone is lost."""
        for spec in specs:
            self._held.add(spec.process)
            self._keepers[spec.process].cancel()
            self.kill(spec.process)

    async def drain(self, specs: Sequence[ProcessSpec]) -> None:
        """Stop processes gracefully: drain, then SIGTERM, then SIGKILL when that took too long."""
        await asyncio.gather(*(self._drain_one(spec) for spec in specs))

    async def _drain_one(self, spec: ProcessSpec) -> None:
        self._held.add(spec.process)
        if keeper := self._keepers.pop(spec.process, None):
            keeper.cancel()
        child = self._children.get(spec.process)
        if child is None or child.returncode is not None:
            return
        try:
            async with asyncio.timeout(DRAIN_S_MAX):
                await self._drain_calls(spec)
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
                await child.wait()
        except TimeoutError:
            log.warning("drain_timed_out", process=spec.process, waited_s=DRAIN_S_MAX)
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _drain_calls(self, spec: ProcessSpec) -> None:
        try:
            await self._drain(spec)
        except Exception:  # SIGTERM comes all the same, and others drain
            log.exception("drain_failed", process=spec.process)

    async def _keep(self, spec: ProcessSpec) -> None:
        deaths = 0
        while spec.process not in self._held:
            started_s = self._monotonic_s()
            status = await self._live_once(spec)
            if spec.process in self._held:
                return
            if status is not None:
                self.deaths.append((spec.process, status))
            lived_well = self._monotonic_s() - started_s > LIVED_WELL_S
            deaths = 0 if lived_well else deaths + 1
            pause_s = RESTART_PAUSE_S[min(deaths, len(RESTART_PAUSE_S) - 1)]
            log.warning("process_died", process=spec.process, status=status, restart_in_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _live_once(self, spec: ProcessSpec) -> int | None:
        """Start a process and return its exit status; None when it could not be started."""
        try:
            child = await self._spawn(spec)
        except Exception:  # a full disk, no store, no memory: the next try may succeed
            log.exception("process_not_started", process=spec.process)
            return None
        return await child.wait()

    async def _spawn(self, spec: ProcessSpec) -> asyncio.subprocess.Process:
        self._run.logs.mkdir(parents=True, exist_ok=True)
        environ = {
            **child_environ(os.environ, self._run, spec.role),
            **await self._environ(spec),
        }
        command = self._command(self._run, spec)
        with (self._run.logs / f"{spec.process}.log").open("ab") as output:
            # A session of its own: Ctrl-C reaches the supervisor alone, which drains in order.
            child = await asyncio.create_subprocess_exec(
                *command,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children[spec.process] = child
        return child


def role_command(run: RunDir, spec: ProcessSpec) -> list[str]:
    """Return what starts a process of a run."""
    place = ["--run", str(run.path), "--process", spec.process]
    return [sys.executable, "-m", "hongbao.cli.main", "role", spec.role, *place]
