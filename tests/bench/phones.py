"""The load of phones that obey: five times as many as can be served shake, and wait when told.

usage: python -m tests.bench.phones JSON      (see Crowd; prints one JSON object)

Each phone shakes, then waits as long as the reply or the refusal says (R14); a call that fails
without an order makes it wait twice as long each time. Demand is what the phones want, a shake
each `interval_s`; goodput is what they get, within a second from when each call was due.
"""

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from hongbao.client.status import OK, Answer
from hongbao.client.wire import Wire
from hongbao.proto.v1 import access_pb2

from tests.bench.drive import GOOD_S, NO_STREAM, Drive, Driver
from tests.bench.pinned import LOAD_CORE

SLOT_S = 0.001
SLOTS = 65_536  # 65 s: longer than any order to wait
BACKOFF_S, BACKOFF_S_MAX = 1.0, 30.0


@dataclass(frozen=True)
class Crowd:
    """Is how many phones shake, over how many connections, for how long."""

    port: int
    path: str
    requests: str
    phones: int
    warm_s: float
    seconds: float
    connections: int = 64
    interval_s: float = 1.0


def crowd(plan: Crowd) -> dict[str, Any]:
    """Run the phones on the load core and return what was counted behind `warm_s`."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "tests.bench.phones"]
    ended = subprocess.run(
        [*command, json.dumps(asdict(plan))], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"the phones failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


class Phones(Driver):
    """Is all phones, on a timing wheel."""

    def __init__(self, plan: Crowd) -> None:
        drive = Drive(plan.port, plan.path, plan.requests, plan.seconds, plan.connections)
        super().__init__(drive)
        self._crowd = plan
        self._wheel: list[list[int]] = [[] for _ in range(SLOTS)]
        self._failures = [0] * plan.phones

    async def run(self) -> dict[str, Any]:
        plan = self._crowd
        self._loop = asyncio.get_running_loop()
        wires = [await self._connect() for _ in range(plan.connections)]
        await asyncio.sleep(0.1)
        shaking = asyncio.create_task(self._shake(wires))
        await asyncio.sleep(plan.warm_s)
        self._outcomes.clear()
        before, began = self._snapshot(), self._loop.time()
        await asyncio.wait([shaking], timeout=plan.seconds)
        after, took_s = self._snapshot(), self._loop.time() - began
        self._over = True
        shaking.cancel()
        if shaking.done() and not shaking.cancelled():
            shaking.result()
        answers, good, sent = (b - a for a, b in zip(before, after, strict=True))
        return {
            "per_s": answers / took_s,
            "good_per_s": good / took_s,
            "sent_per_s": sent / took_s,
            "outcomes": dict(self._outcomes),
            "p99_ms": self._latency.percentile_ms(99),
        }

    async def _shake(self, wires: list[Wire]) -> None:
        for phone in range(self._crowd.phones):
            share = phone / self._crowd.phones
            self._wheel[int(share * self._crowd.interval_s / SLOT_S)].append(phone)
        start, turned = self._loop.time(), 0
        while not self._over:
            await asyncio.sleep(SLOT_S)
            now = self._loop.time()
            self._turned = int((now - start) / SLOT_S)
            for slot in range(turned, self._turned):
                due, self._wheel[slot % SLOTS] = self._wheel[slot % SLOTS], []
                for phone in due:
                    self._send(phone, wires[phone % len(wires)], now)
            turned = self._turned
            for wire in wires:
                wire.expire(now, 5.0)

    def _send(self, phone: int, wire: Wire, now: float) -> None:
        """Shake; a phone whose connection takes no more calls gives up and backs off."""
        if not wire.has_free_stream:
            self._outcomes[NO_STREAM] += 1
            self._come_back(phone, None)
            return
        self._sent += 1
        message = self._messages[phone % len(self._messages)]
        wire.call(self._block, message, GOOD_S, partial(self._on_reply, phone, now))

    def _on_reply(self, phone: int, due_at: float, answer: Answer, body: bytes) -> None:
        if self._over:
            return
        now = self._loop.time()
        self._latency.record(now - due_at)
        self._outcomes[self._outcome(answer, body)] += 1
        if answer.code == OK:
            self._good += now - due_at <= GOOD_S
            self._failures[phone] = 0
            wait_ms = access_pb2.ShakeReply.FromString(body).retry_after_ms
            self._come_back(phone, max(wait_ms / 1000, self._crowd.interval_s))
        else:
            self._come_back(phone, answer.retry_after_s)

    def _come_back(self, phone: int, wait_s: float | None) -> None:
        if wait_s is None:
            self._failures[phone] += 1
            wait_s = min(BACKOFF_S * 2 ** min(self._failures[phone] - 1, 10), BACKOFF_S_MAX)
            wait_s *= 0.5 + (phone * 7919 % 1024) / 1024
        slot = self._turned + max(1, int(wait_s / SLOT_S))
        self._wheel[slot % SLOTS].append(phone)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Phones(Crowd(**json.loads(sys.argv[1]))).run())))
