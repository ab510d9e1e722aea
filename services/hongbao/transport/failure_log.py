"""Owns the log line of a call that failed by our fault; refuses to write one for each of many.

During a fail-over every call may fail alike: 16,000 lines say no more than one with a count.
"""

from dataclasses import dataclass, field
from time import monotonic
from typing import Final

import structlog

from hongbao.transport.errors import Failure

PERIOD_S: Final = 1.0
"""Between two lines of one method and code."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Line:
    at_s: float
    suppressed: int = 0


@dataclass
class FailureLog:
    """Writes the first failure of a method with a code, then one line a second with the count."""

    _last: dict[tuple[str, int], _Line] = field(default_factory=dict)

    def write(self, path: str, failure: Failure, error: BaseException, now_s: float) -> None:
        """Write the canonical line, or count it for the next one."""
        last = self._last.get((path, failure.code))
        if last is not None and now_s - last.at_s < PERIOD_S:
            last.suppressed += 1
            return
        self._last[path, failure.code] = _Line(now_s)
        unknown = failure.message == "internal error"
        (log.error if unknown else log.warning)(
            "call_failed",
            method=path,
            code=failure.code,
            error=repr(error),
            exc_info=unknown and error,
            suppressed=last.suppressed if last is not None else 0,
        )


_LOG: Final = FailureLog()


def log_failure(path: str, failure: Failure, error: BaseException) -> None:
    """Log a call of this process that failed by our fault."""
    _LOG.write(path, failure, error, monotonic())
