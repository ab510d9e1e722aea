"""An asyncio loop whose time is virtual, and processes on it that can be paused and killed.

Nothing here waits: when no callback is ready, the clock jumps to the next timer. A callback
belongs to the process in whose context it was scheduled, so a paused process does nothing at all
(as after SIGSTOP), and a killed one never does anything again (as after SIGKILL).
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class Stuck(Exception):
    """Says that nothing can ever happen again."""


class Process:
    """Is what a real process would be: a set of tasks that stop and go together."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self._loop = loop
        self._held: list[tuple[Due, contextvars.Context]] = []
        self._context = contextvars.Context()
        self._context.run(_PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task in this process."""
        return self._loop.create_task(work, context=self._context.copy())

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """Let everything happen, in order, that was due meanwhile."""
        if not self.alive:
            return
        self.release()

    def kill(self) -> None:
        self.alive = False
        self.paused = True

    def release(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        for due, context in held:
            self._loop.call_soon(due.run, context=context)

    def run(self, due: "Due") -> None:
        """Run a callback of this process, now or when it is resumed."""
        if self.paused:
            self._held.append((due, contextvars.copy_context()))
        else:
            due.run()


class Due:
    """Is a callback that may be cancelled until it runs, even while its process is stopped."""

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.handle: asyncio.Handle | None = None
        self._callback = callback
        self._arguments = arguments

    def run(self) -> None:
        if self.handle is None or not self.handle.cancelled():
            self._callback(*self._arguments)


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)
OUTSIDE = contextvars.Context()
"""The context of the network and the store: no process, never paused."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in a fixed order under a clock that only they move."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._clock_resolution = 1e-9
        self._selector = self  # BaseEventLoop asks it to wait

    def time(self) -> float:
        return self._now_s

    def select(self, timeout: float | None) -> list[Any]:
        """Jump to the next timer instead of waiting for it."""
        if timeout is None:
            raise Stuck(f"nothing can happen after {self._now_s} s")
        self._now_s += timeout
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        due = Due(callback, args)
        due.handle = super().call_soon(process.run, due, context=context)
        return due.handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        due = Due(callback, args)
        due.handle = timer = super().call_at(when, process.run, due, context=context)
        return timer
