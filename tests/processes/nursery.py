"""Starts many real processes cheaply: one process imports a module once and forks the rest.

    python -m tests.processes.nursery MODULE

Each line on standard input is the argument (JSON) of `MODULE.main` in a child of its own. The
nursery prints `born PID`, then what the child prints, then `dead STATUS`. One child at a time.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Self

from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]


class Nursery:
    """Is the parent's side. Use it as an async context manager."""

    def __init__(self, module: str, log: Path) -> None:
        self._module = module
        self._log = log
        self.lines: list[list[str]] = []
        """The words of each line that children printed."""
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, self._module),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        for words in reversed(self.lines):
            if words[0] == "dead":
                break
            if words[0] == "born":
                os.kill(int(words[1]), signal.SIGKILL)
                break
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reading

    async def bear(self, argument: dict[str, Any]) -> int:
        """Start a child; return its pid."""
        assert self._process.stdin is not None
        before = len(self.lines)
        self._process.stdin.write(json.dumps(argument).encode() + b"\n")
        return int((await self.wait("born", before))[1])

    async def kill(self, pid: int) -> None:
        """Kill the child (SIGKILL) and wait until it is dead."""
        before = len(self.lines)
        os.kill(pid, signal.SIGKILL)
        await self.wait("dead", before)

    async def wait(self, kind: str, start: int) -> list[str]:
        """Wait for a line of a kind behind the first `start` lines."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    for words in self.lines[start:]:
                        if words[0] == kind:
                            return words
                        assert words[0] != "dead", f"a child died: see {self._log}"
                    start = len(self.lines)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no child said {kind!r}: see {self._log}") from None

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.lines.append(line.decode().split())
            self._news.set()


def say(*words: object) -> None:
    """Print one line at once and whole, whatever happens to the process next."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def _serve(module: str) -> None:
    main = importlib.import_module(module).main
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            say("born", os.getpid())
            status = 1
            try:
                main(json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        say("dead", status)


if __name__ == "__main__":
    _serve(sys.argv[1])
