"""Owns how many packets one user may win: counters of fixed memory that never count too few.

A count-min sketch with conservative update (Estan and Varghese 2002): a user's count is the
least of its counters, every one of which is at least the true count. So the cap is never
exceeded; a few users may reach it early. With 2^23 counters a row, 4 rows and 10M winners it
stops under 1 user in 5,000 early (cap 3), in 32 MiB. It counts what this process has issued since
it started: a user may win as much again at every other process, and after every restart.
"""

from typing import Final

ROWS: Final = 4
COLUMNS_LOG2: Final = 23
CAP_MAX: Final = 255  # a counter is one byte

_MASK: Final = (1 << 64) - 1
_MIX_1: Final = 0xBF58476D1CE4E5B9  # SplitMix64 (Steele, Lea and Flood 2014)
_MIX_2: Final = 0x94D049BB133111EB


class UserCap:
    """Counts packets by user."""

    __slots__ = ("_cap", "_column_mask", "_rows")

    def __init__(self, packets_max: int, *, columns_log2: int = COLUMNS_LOG2) -> None:
        assert 4 <= columns_log2 <= 28
        assert 1 <= packets_max <= CAP_MAX
        self._cap = packets_max
        self._column_mask = (1 << columns_log2) - 1
        self._rows = tuple(bytearray(1 << columns_log2) for _ in range(ROWS))

    def reached(self, user: int) -> bool:
        """Say whether the user may win no more (or, rarely, seems to)."""
        mask, cap = self._column_mask, self._cap
        column, step = _mixed(user)
        for row in self._rows:  # most users have an empty counter in the first row
            if row[column & mask] < cap:
                return False
            column += step
        return True

    def add(self, user: int) -> None:
        """Count one packet of a user who has not reached the cap."""
        mask = self._column_mask
        column, step = _mixed(user)
        first, second, third, fourth = self._rows  # unrolled: a loop takes twice the time
        at_1, at_2 = column & mask, column + step & mask
        at_3, at_4 = column + 2 * step & mask, column + 3 * step & mask
        least = min(first[at_1], second[at_2], third[at_3], fourth[at_4])
        if least == CAP_MAX:
            return
        if first[at_1] == least:
            first[at_1] = least + 1
        if second[at_2] == least:
            second[at_2] = least + 1
        if third[at_3] == least:
            third[at_3] = least + 1
        if fourth[at_4] == least:
            fourth[at_4] = least + 1


def _mixed(user: int) -> tuple[int, int]:
    """Return the first column and the odd step to the next rows' columns."""
    mixed = ((user ^ (user >> 30)) * _MIX_1) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * _MIX_2) & _MASK
    mixed ^= mixed >> 31
    return mixed, (mixed >> 32) | 1
