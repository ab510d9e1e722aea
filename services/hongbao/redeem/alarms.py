"""Owns when failures become a person's business; refuses to block anything by itself.

Only failures behind a good MAC are counted, so a stranger's noise cannot raise an alarm in the
name of a key or pod: whoever causes these has a pod's binding key, or a ticket key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

SUBJECTS_MAX: Final = 8192

log = structlog.get_logger()


@dataclass(slots=True)
class _Window:
    ends_at_s: float
    failures: int = 0


class FailureAlarms:
    """Counts failures by subject in fixed windows and logs one error per subject and window."""

    def __init__(
        self, *, failures_alarm: int, window_s: float, monotonic_s: Callable[[], float]
    ) -> None:
        self._failures_alarm: Final = failures_alarm
        self._window_s: Final = window_s
        self._monotonic_s: Final = monotonic_s
        self._windows: dict[tuple[str, int], _Window] = {}
        self.raised = 0

    def count(self, kind: str, subject: int, cause: str) -> None:
        """Count one failure of a subject, for instance of key 17."""
        now_s = self._monotonic_s()
        window = self._windows.get((kind, subject))
        if window is None or now_s >= window.ends_at_s:
            window = self._begin(kind, subject, now_s)
        window.failures += 1
        if window.failures == self._failures_alarm:
            self.raised += 1
            log.error(
                "failures_alarm",
                kind=kind,
                subject=subject,
                cause=cause,
                failures=window.failures,
                window_s=self._window_s,
            )

    def failures(self, kind: str, subject: int) -> int:
        """Return the failures of a subject in its last window."""
        window = self._windows.get((kind, subject))
        return window.failures if window else 0

    def _begin(self, kind: str, subject: int, now_s: float) -> _Window:
        if len(self._windows) >= SUBJECTS_MAX:
            self._windows.pop(next(iter(self._windows)))
        window = self._windows[kind, subject] = _Window(now_s + self._window_s)
        return window
