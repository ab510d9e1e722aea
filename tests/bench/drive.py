"""The load generator of the bench, one process on the load core: prebuilt requests, raw HTTP/2.

usage: python -m tests.bench.drive JSON      (see Drive; prints one JSON object)

Closed loop (`in_flight`) finds capacity, as h2load does but with distinct requests. Open loop
(`per_s`) sends by the clock whatever the server does, each call with a deadline of one second; a
call that the server's limit of streams holds back fails at once and counts as offered.
"""

import asyncio
import json
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hongbao.client import hpack
from hongbao.client.histogram import Histogram
from hongbao.client.status import ANSWER_LOST, OK, Answer
from hongbao.client.wire import Wire, request_headers
from hongbao.proto.v1 import access_pb2, redeem_pb2

from tests.bench.pinned import LOAD_CORE

SIZE = struct.Struct(">I")
WARM_S = 0.5
GOOD_S = 1.0
TICK_S = 0.002
NO_STREAM = "not sent, the stream limit"


@dataclass(frozen=True)
class Drive:
    """Is what to send, how and for how long."""

    port: int
    path: str
    requests: str
    """File of length-prefixed bodies (`write_requests`)."""
    seconds: float
    connections: int = 4
    in_flight: int = 128
    per_s: float = 0.0
    """Above 0: open loop at this rate; `in_flight` is then not used."""
    repeat: bool = True
    """Start again behind the last request; else stop there."""
    as_json: bool = False


def drive(plan: Drive) -> dict[str, Any]:
    """Run the generator on the load core and return what it printed."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "tests.bench.drive"]
    ended = subprocess.run(
        [*command, json.dumps(asdict(plan))], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise RuntimeError(f"the generator failed: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout)  # type: ignore[no-any-return]


def write_requests(path: Path, messages: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for message in messages:
            file.write(SIZE.pack(len(message)) + message)


def read_requests(path: Path, *, framed: bool) -> list[bytes]:
    data = path.read_bytes()
    messages, position = [], 0
    while position < len(data):
        (size,) = SIZE.unpack_from(data, position)
        prefix = b"\0" + data[position : position + 4] if framed else b""
        messages.append(prefix + data[position + 4 : position + 4 + size])
        position += 4 + size
    return messages


class JsonWire(Wire):
    """Speaks plain JSON over the same connection: the HTTP status decides."""

    def _learn(self, block: bytes) -> Answer | None:
        if block in self._statuses:
            return None
        status = hpack.decode_block(block).get(":status")
        answer = None if status is None else Answer(OK if status == "200" else int(status))
        self._statuses[block] = answer
        return answer

    def _finish(self, call: Any, answer: Answer) -> None:
        done, call.done = call.done, None
        if done is not None:
            done(answer, call.body)


class Driver:
    """Is one run of a plan."""

    def __init__(self, plan: Drive) -> None:
        self._plan = plan
        self._messages = read_requests(Path(plan.requests), framed=not plan.as_json)
        self._next = 0
        self._outcomes: Counter[str] = Counter()
        self._latency = Histogram()
        self._good = self._sent = 0
        self._over = False
        opening = plan.path.endswith("/Open")
        outcomes = redeem_pb2.OpenOutcome if opening else access_pb2.ShakeOutcome
        self._names = {number: name for name, number in outcomes.items()}
        if plan.as_json:
            headers = [(":method", "POST"), (":scheme", "http"), (":path", plan.path)]
            headers += [(":authority", "bench"), ("content-type", "application/json")]
            self._block = hpack.encode_block(headers)
        else:
            self._block = request_headers(plan.path, "bench", GOOD_S if plan.per_s else 10.0)

    async def run(self) -> dict[str, Any]:
        plan = self._plan
        self._loop = asyncio.get_running_loop()
        wires = [await self._connect() for _ in range(plan.connections)]
        await asyncio.sleep(0.1)  # the servers' settings
        pump = self._send_by_clock(wires) if plan.per_s else self._keep_in_flight(wires)
        sending = asyncio.create_task(pump)
        await asyncio.sleep(WARM_S)
        before, began = self._snapshot(), self._loop.time()
        await asyncio.wait([sending], timeout=plan.seconds)
        after, took_s = self._snapshot(), self._loop.time() - began
        exhausted = self._over
        self._over = True
        sending.cancel()
        for wire in wires:
            wire.close()
        await asyncio.sleep(0)
        answers, good, sent = (b - a for a, b in zip(before, after, strict=True))
        return {
            "per_s": answers / took_s,
            "good_per_s": good / took_s,
            "sent_per_s": sent / took_s,
            "seconds": took_s,
            "answers": answers,
            "p50_ms": self._latency.percentile_ms(50),
            "p99_ms": self._latency.percentile_ms(99),
            "outcomes": dict(self._outcomes),
            "exhausted": exhausted,
        }

    def _snapshot(self) -> tuple[int, int, int]:
        return self._latency.count, self._good, self._sent

    async def _connect(self) -> Wire:
        kind = JsonWire if self._plan.as_json else Wire
        _, wire = await self._loop.create_connection(
            lambda: kind(self._loop, lambda: None), "127.0.0.1", self._plan.port
        )
        return wire

    def _message(self) -> bytes | None:
        if self._next == len(self._messages):
            if not self._plan.repeat:
                self._over = True
                return None
            self._next = 0
        self._next += 1
        return self._messages[self._next - 1]

    def _call(self, wire: Wire, due_at: float, timeout_s: float) -> None:
        message = None if self._over else self._message()
        if message is not None:
            self._sent += 1
            wire.call(self._block, message, timeout_s, partial(self._on_done, wire, due_at))

    def _on_done(self, wire: Wire, due_at: float, answer: Answer, body: bytes) -> None:
        if self._over:
            return
        now = self._loop.time()
        self._latency.record(now - due_at)
        self._outcomes[self._outcome(answer, body)] += 1
        self._good += answer.code == OK and now - due_at <= GOOD_S
        if answer is ANSWER_LOST and not wire.alive:
            return
        if not self._plan.per_s:
            self._call(wire, now, 10.0)

    def _outcome(self, answer: Answer, body: bytes) -> str:
        """Name an answer; field 1 of both replies is the outcome."""
        if answer.code != OK:
            return answer.name
        if self._plan.as_json:
            return "PACKET" if b'"PACKET"' in body else "other"
        return self._names.get(body[1] if body[:1] == b"\x08" else 0, "unknown")

    async def _keep_in_flight(self, wires: list[Wire]) -> None:
        for index in range(self._plan.in_flight):
            self._call(wires[index % len(wires)], self._loop.time(), 10.0)
        while not self._over:
            await asyncio.sleep(0.05)
            for wire in wires:
                wire.expire(self._loop.time(), 5.0)

    async def _send_by_clock(self, wires: list[Wire]) -> None:
        start, sent = self._loop.time(), 0
        while not self._over:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            wanted = int((now - start) * self._plan.per_s)
            for number in range(sent, wanted):
                due_at = start + number / self._plan.per_s
                wire = wires[number % len(wires)]
                if wire.has_free_stream:
                    self._call(wire, due_at, GOOD_S)
                else:  # as a phone whose connection takes no more: it gives up at once
                    self._outcomes[NO_STREAM] += 1
            sent = wanted
            for wire in wires:
                wire.expire(now, 5.0)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Driver(Drive(**json.loads(sys.argv[1]))).run())))
