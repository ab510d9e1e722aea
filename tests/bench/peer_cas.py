"""The peers of opens on TiKV: one compare-and-swap for each claim, with the same client.

usage: python -m tests.bench.peer_cas loop PD SECONDS IN_FLIGHT     prints one JSON object
       python -m tests.bench.peer_cas serve PD PORT                 answers opens by grpcio

`loop` is the bare client: no call arrives. `serve` is the service that one would write: a call, a
swap, a reply. Both are kinder than a fair copy of ours: no token is verified or deciphered, and
nobody who comes twice is told what he got.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from hongbao.proto.v1 import redeem_pb2
from tikv import AsyncRawClient

from tests.bench.serve_opens import serve_opens

CLAIM_BYTES = 48


async def loop(pd: str, seconds: float, in_flight: int) -> None:
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


async def serve(pd: str, port: int) -> None:
    claim, run = os.urandom(CLAIM_BYTES), os.urandom(8)
    async with AsyncRawClient(pd, atomic=True) as client:

        async def open_packet(request: Any, context: Any) -> Any:
            key = b"peer/%b/%b" % (run, request.claim_token)
            swap = await client.compare_and_swap(key, None, claim)
            opened = redeem_pb2.OPENED if swap.swapped else redeem_pb2.ALREADY_OPENED
            return redeem_pb2.OpenReply(outcome=opened, amount_fen=1)

        await serve_opens(open_packet, port)


if __name__ == "__main__":
    mode, endpoint, *rest = sys.argv[1:]
    if mode == "loop":
        asyncio.run(loop(endpoint, float(rest[0]), int(rest[1])))
    else:
        asyncio.run(serve(endpoint, int(rest[0])))
