"""Owns the numbers that a shard's owner may give out: ranges, taken through Coordination.

A number is in one range at most, whatever is lost and whoever races; numbers may be skipped. Where
the key was deleted, or restored from a backup, only the shard's log still knows what was given out.
The caller to come is the owner of message streams (design §5), which are not built yet.
"""

import re
from typing import Final

from hongbao.domain.errors import Ambiguous, Corrupt, Rejected, Transient
from hongbao.shards.block import ShardKey
from hongbao.shards.ports import Coordination, Versioned

FIRST_NUMBER: Final = 1
"""So that zero stands before every number (`Sync(after_seq)`)."""
STEP_NUMBERS: Final = 10_000
"""One write to Coordination for so many numbers; a crash skips so many at most."""
END_NUMBER_MAX: Final = (1 << 63) - 1
"""Numbers stay within an int64 of every protocol and database."""
TRIES_MAX: Final = 16
"""A try fails when another taker was quicker, or when its outcome is unknown."""
_END: Final = re.compile(rb"[1-9][0-9]{0,18}")


async def take_range(
    coordination: Coordination, shard: ShardKey, *, count: int = STEP_NUMBERS
) -> range:
    """Return the next `count` numbers of a shard's sequence, above all that were ever taken.

    Raises Transient when none were got: whoever repeats it may skip numbers, never repeat them.
    Raises Corrupt when what is stored is no end of a range, Rejected for a count below one.
    """
    if count < 1:
        raise Rejected(f"a range of {count} numbers", field="count")
    key = f"seq/{shard}"
    for _ in range(TRIES_MAX):
        known = await coordination.read(key)
        taken = range_behind(known, count)
        try:
            if await coordination.compare_and_put(key, b"%d" % taken.stop, revision=known.revision):
                return taken
        except Ambiguous:
            # Ours, perhaps. The next try begins above it if it was written; if it arrives later
            # still, one of the two finds another revision than it expects.
            continue
    raise Transient(f"{key}: no range in {TRIES_MAX} tries")


def range_behind(known: Versioned, count: int) -> range:
    """Return the range that follows from what is stored: the end of all ranges, not included.

    Raises Corrupt when that is no such number, or leaves no room.
    """
    if not known.revision:
        return range(FIRST_NUMBER, FIRST_NUMBER + count)
    end = int(known.value) if _END.fullmatch(known.value) else END_NUMBER_MAX
    if end + count > END_NUMBER_MAX:
        raise Corrupt(f"{known.key} holds {known.value[:40]!r}, not the end of a range of numbers")
    return range(end, end + count)
