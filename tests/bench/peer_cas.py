"""The peer of opens on TiKV: one compare-and-swap for each claim, with the same client.

usage: python -m tests.bench.peer_cas PD SECONDS IN_FLIGHT      prints one JSON object

Kinder than a fair copy of ours: no call arrives, no token is verified, nothing is deciphered.
"""

import asyncio
import json
import os
import sys
import time

from tikv import AsyncRawClient

CLAIM_BYTES = 48


async def main(pd: str, seconds: float, in_flight: int) -> None:
    claim, run = os.urandom(CLAIM_BYTES), os.urandom(8)
    done = 0
    async with AsyncRawClient(pd, atomic=True) as client:
        ends = time.monotonic() + seconds

        async def write(writer: int) -> None:
            nonlocal done
            number = 0
            while time.monotonic() < ends:
                key = b"peer/%b/%d/%d" % (run, writer, number)
                number += 1
                swap = await client.compare_and_swap(key, None, claim)
                done += swap.swapped  # in a line of its own: `done` is read before an await in it

        began = time.monotonic()
        await asyncio.gather(*(write(writer) for writer in range(in_flight)))
        print(json.dumps({"per_s": done / (time.monotonic() - began)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
