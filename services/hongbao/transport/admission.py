"""Owns the decision which calls a process that is behind does not take (R25, R27).

After DAGOR (Zhou et al., SoCC 2018): a call's key is its business priority and, below that,
the hash of its user; one threshold on the keys moves with the queueing time, so that what is
shed is always the least important, and one user is served or shed through a whole journey.

Three things differ. The signal is the least queueing time in a window, not the mean (CoDel,
RFC 8289): only a standing queue counts, and no slow caller can feign one. The queue that is
allowed is longer than inside a data centre: our callers are phones that wait. And at most
`refused_max` of the calls are refused, because a refusal is work too: measured on one core, in
shakes, Envoy's own 429 costs 0.36, a refusal before the body is read 0.63, after it 0.80. Rude
callers who come back at once would otherwise turn all capacity into refusals; obeying ones
stay away for the time they are told. What keeps goodput first are the limits of connections
and streams (envoy.GatewayLimits): there the excess waits at the caller and costs nothing.
"""

from dataclasses import dataclass
from typing import Final

from hongbao.domain.errors import Overloaded

PRIORITIES: Final = 8
USER_LEVELS: Final = 128
KEYS: Final = PRIORITIES * USER_LEVELS
SALT_S: Final = 3600.0
SMOOTHING: Final = 0.2
STRIDE: Final = 79  # odd: visits every user level, far ones in turn
GOLDEN: Final = 0x9E3779B97F4A7C15
MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Is when a process counts as behind, and how it reacts.

    `queue_s_max`: a standing queue above it sheds; 100 ms is what a user does not notice.
    `window_s`: time between two decisions. `calls_min`: fewer calls decide nothing.
    `step_down`: part of the admitted calls less per window; `levels_up`: user levels more per
    window when it keeps up, of 128 to a priority (down is faster than up, as in DAGOR).
    `refused_max`: part of the calls that may be refused, see above. `retry_s_min`,
    `retry_s_max`: what refused callers are told; it grows until refusals are only
    `refusals_wanted` of the calls, else the callers' returning would be a load itself (R14).
    """

    queue_s_max: float = 0.1
    window_s: float = 0.2
    calls_min: int = 20
    step_down: float = 0.05
    levels_up: int = 4
    refused_max: float = 0.5
    refusals_wanted: float = 0.1
    retry_s_min: float = 1.0
    retry_s_max: float = 30.0


@dataclass(frozen=True, slots=True)
class Window:
    """Is what one window saw: calls, those admitted by priority, the least queueing time.

    `refused_part` is the part of calls that was refused lately, smoothed over windows.
    """

    arrived: int
    admitted: tuple[int, ...]
    least_wait_s: float
    refused_part: float = 0.0

    def behind(self, limits: AdmissionLimits) -> bool:
        """Say whether a queue stood through the whole window."""
        return self.arrived >= limits.calls_min and self.least_wait_s > limits.queue_s_max


def next_threshold(threshold: int, window: Window, limits: AdmissionLimits) -> int:
    """Return the threshold for the next window: keys below it are admitted.

    Down by a part of what was admitted: users are even over the levels that were open, so the
    counts of admitted calls say where the new threshold lies. (Counts of all calls would not:
    shed users stay away.) Up by steps, and at once when hardly anybody calls.
    """
    if window.arrived < limits.calls_min:
        return KEYS
    if not window.behind(limits) or window.refused_part > limits.refused_max:
        return min(threshold + limits.levels_up, KEYS)
    wanted = sum(window.admitted) * (1 - limits.step_down)
    for priority, count in enumerate(window.admitted):
        if wanted < count:
            open_levels = min(threshold - priority * USER_LEVELS, USER_LEVELS)
            return max(1, priority * USER_LEVELS + int(wanted / count * open_levels))
        wanted -= count
    return threshold


def next_retry(retry_s: float, window: Window, limits: AdmissionLimits) -> float:
    """Return how long refused callers stay away: longer while refusals themselves are a load."""
    if window.refused_part > limits.refusals_wanted:
        return min(retry_s * (1 + limits.step_down), limits.retry_s_max)
    return max(retry_s / (1 + limits.step_down), limits.retry_s_min)


class Admission:
    """Measures one process and sheds by the threshold; used by one thread."""

    __slots__ = (
        "_admitted",
        "_arrived",
        "_ends_s",
        "_least_wait_s",
        "_limits",
        "_refused_part",
        "_salt",
        "_turn",
        "queue_s",
        "retry_s",
        "shedding",
        "threshold",
    )  # fmt: skip

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits: Final = limits or AdmissionLimits()
        self.threshold = KEYS
        self.shedding = False
        self.queue_s = 0.0
        self.retry_s = self._limits.retry_s_min
        self._refused_part = 0.0
        self._arrived = 0
        self._admitted = [0] * PRIORITIES
        self._least_wait_s = float("inf")
        self._ends_s = 0.0
        self._salt = 0
        self._turn = 0

    def observe(self, priority: int, waited_s: float, now_s: float) -> None:
        """Take note of one arrived call; `now_s` is any monotonic clock."""
        if now_s >= self._ends_s:
            self._close_window(now_s)
        self._arrived += 1
        self._admitted[priority] += 1
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
            self._admitted[priority] -= 1
            raise self._overloaded(level)

    def check_early(self, priority: int, now_s: float) -> None:
        """Raise Overloaded when every user's calls of this priority are shed.

        Needs no body, so it is asked first; calls that pass are observed and checked later.
        """
        if priority * USER_LEVELS < self.threshold:
            return
        if now_s >= self._ends_s:
            self._close_window(now_s)
        self._arrived += 1
        self._turn = (self._turn + STRIDE) % USER_LEVELS
        raise self._overloaded(self._turn)

    def _overloaded(self, level: int) -> Overloaded:
        """Spread the callers' return over the retry time, half of it to one and a half."""
        retry_after_s = self.retry_s * (0.5 + level / USER_LEVELS)
        return Overloaded("the process is behind", retry_after_s=retry_after_s)

    def _close_window(self, now_s: float) -> None:
        if self._ends_s:
            self.queue_s = 0.0 if self._least_wait_s == float("inf") else self._least_wait_s
            if self._arrived:
                refused = 1 - sum(self._admitted) / self._arrived
                self._refused_part += SMOOTHING * (refused - self._refused_part)
            window = Window(self._arrived, tuple(self._admitted), self.queue_s, self._refused_part)
            self.threshold = next_threshold(self.threshold, window, self._limits)
            self.shedding = self.threshold < KEYS
            self.retry_s = next_retry(self.retry_s, window, self._limits)
        self._arrived = 0
        self._admitted = [0] * PRIORITIES
        self._least_wait_s = float("inf")
        self._ends_s = now_s + self._limits.window_s
        self._salt = int(now_s // SALT_S) * GOLDEN & MASK
