"""Owns the only place that reads the machine's clocks."""

import time


class SystemClock:
    """Reads the wall clock (for people) and the monotonic clock (for leases and waits)."""

    def wall_ms(self) -> int:
        """Return unix time in milliseconds; may jump."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Return seconds that never jump and go on while the process is stopped."""
        return time.monotonic()
