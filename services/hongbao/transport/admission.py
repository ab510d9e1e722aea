"""Owns the decision which calls a process that is behind does not take (R25, R27).

After DAGOR (Zhou et al., SoCC 2018): a call's key is its business priority and, below that,
the hash of its user; one threshold on the keys moves with the queueing time, so that what is
shed is always the least important, and one user is served or shed through a whole journey.

Two things differ. The signal is the least queueing time in a window, not the mean (CoDel,
RFC 8289): only a standing queue counts, and no slow caller can feign one. And the queue that
is allowed is longer than inside a data centre: our callers are phones that wait, and what
waits costs nothing while a refusal costs most of a cheap call.
"""

from dataclasses import dataclass
from typing import Final

from hongbao.domain.errors import Overloaded

PRIORITIES: Final = 8
USER_LEVELS: Final = 128
KEYS: Final = PRIORITIES * USER_LEVELS
SALT_S: Final = 3600.0
STRIDE: Final = 79  # odd: visits every user level, far ones in turn
GOLDEN: Final = 0x9E3779B97F4A7C15
MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Is when a process counts as behind, and how it reacts.

    `queue_s_max`: a standing queue above it sheds; 100 ms is what a user does not notice.
    `window_s`: time between two decisions. `calls_min`: fewer calls decide nothing.
    `step_down`, `step_up`: change of the admitted calls per window; down is faster (DAGOR).
    """

    queue_s_max: float = 0.1
    window_s: float = 0.2
    calls_min: int = 20
    step_down: float = 0.1
    step_up: float = 0.03


@dataclass(frozen=True, slots=True)
class Window:
    """Is what one window saw: calls by priority, how many were admitted, the least wait."""

    arrived: tuple[int, ...]
    admitted: int
    least_wait_s: float


def next_threshold(threshold: int, window: Window, limits: AdmissionLimits) -> int:
    """Return the threshold for the next window: keys below it are admitted.

    Users are spread evenly over their levels, so counts by priority are enough to find the
    key below which the wanted number of calls lies.
    """
    total = sum(window.arrived)
    behind = total >= limits.calls_min and window.least_wait_s > limits.queue_s_max
    if not behind and threshold == KEYS:
        return KEYS
    factor = 1 - limits.step_down if behind else 1 + limits.step_up
    wanted = window.admitted * factor + (0 if behind else 1)
    for priority, arrived in enumerate(window.arrived):
        if wanted < arrived:
            levels = int(wanted / arrived * USER_LEVELS)
            if not behind:  # never stands still on the way back
                return max(threshold + 1, priority * USER_LEVELS + levels)
            return max(1, min(threshold - 1, priority * USER_LEVELS + levels))
        wanted -= arrived
    return KEYS


class Admission:
    """Measures one process and sheds by the threshold; used by one thread."""

    __slots__ = (
        "_admitted", "_arrived", "_ends_s", "_least_wait_s", "_limits", "_salt", "_turn",
        "queue_s", "shedding", "threshold",
    )  # fmt: skip

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits: Final = limits or AdmissionLimits()
        self.threshold = KEYS
        self.shedding = False
        self.queue_s = 0.0
        self._arrived = [0] * PRIORITIES
        self._admitted = 0
        self._least_wait_s = float("inf")
        self._ends_s = 0.0
        self._salt = 0
        self._turn = 0

    def observe(self, priority: int, waited_s: float, now_s: float) -> None:
        """Take note of one arrived call; `now_s` is any monotonic clock."""
        if now_s >= self._ends_s:
            self._close_window(now_s)
        self._arrived[priority] += 1
        self._admitted += 1
        if waited_s < self._least_wait_s:
            self._least_wait_s = waited_s

    def check(self, priority: int, user: int | None) -> None:
        """Raise Overloaded when the call just observed lies above the threshold."""
        if user is None:
            self._turn = (self._turn + STRIDE) % USER_LEVELS
            level = self._turn
        else:
            level = ((user ^ self._salt) * GOLDEN & MASK) >> 57
        if priority * USER_LEVELS + level >= self.threshold:
            self._admitted -= 1
            raise Overloaded("the process is behind", retry_after_s=0.5 + level / USER_LEVELS)

    def pass_fraction(self, priority: int) -> float:
        """Return which part of a priority's calls is admitted now: 1.0 is all of them."""
        levels = self.threshold - priority * USER_LEVELS
        return min(max(levels / USER_LEVELS, 0.0), 1.0)

    def _close_window(self, now_s: float) -> None:
        if self._ends_s:
            self.queue_s = 0.0 if self._least_wait_s == float("inf") else self._least_wait_s
            window = Window(tuple(self._arrived), self._admitted, self.queue_s)
            self.threshold = next_threshold(self.threshold, window, self._limits)
            self.shedding = self.threshold < KEYS
        self._arrived = [0] * PRIORITIES
        self._admitted = 0
        self._least_wait_s = float("inf")
        self._ends_s = now_s + self._limits.window_s
        self._salt = int(now_s // SALT_S) * GOLDEN & MASK
