"""Owns gRPC unary over raw ASGI, as pyvoy embeds it in Envoy; refuses to know any handler.

gRPC-Web and JSON arrive here as gRPC too: Envoy translates both before this filter. Raw ASGI
messages because every layer between costs more than a shake does (shared/prototypes).

Envoy hands over only whole requests (buffer filter), so `receive()` is answered at once unless
the process is behind: the time it takes is the queueing time that admission works on.
A caller that goes away cannot be seen while a handler runs (pyvoy tells it with the answer);
the deadline bounds what is wasted on it.
"""

import gc
import os
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

import structlog

from hongbao.domain.errors import Exhausted, Rejected
from hongbao.transport.deadlines import Deadlines
from hongbao.transport.dispatcher import Dispatcher, Route
from hongbao.transport.errors import DeadlineExceeded, Failure, Outcome, Unimplemented, failure_of
from hongbao.transport.failure_log import log_failure
from hongbao.transport.transcoded import ORIGINAL_PATH, check_transcoded

Event = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Hook = Callable[[], Awaitable[None]]

log = structlog.get_logger()

FRAME: Final = Struct(">BI").pack
FRAME_BYTES: Final = 5
COLLECTOR_THRESHOLDS: Final = (100_000, 50, 100)
OK: Final = int(Outcome.OK)
START: Final[Event] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
TRAILERS: Final[Event] = {
    "type": "http.response.trailers",
    "headers": [(b"grpc-status", b"0")],
    "more_trailers": False,
}
NO_BODY: Final[Event] = {"type": "http.response.body", "body": b"", "more_body": False}
UNIT_S: Final = {
    b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Is what one call may take.

    `request_bytes_max`: 16 KiB; the largest public message (a session request with its JWT)
    is under 4 KiB. `deadline_s_max`: 10 s; no public call has a reason to run longer.
    """

    request_bytes_max: int = 16 << 10
    deadline_s_max: float = 10.0


async def nothing() -> None:
    """Is the hook of a process that has nothing to start or stop."""


def make_app(
    dispatcher: Dispatcher,
    startup: Hook = nothing,
    shutdown: Hook = nothing,
    limits: CallLimits = CallLimits(),
) -> App:
    """Build the ASGI application that serves `dispatcher`.

    `startup` runs before the first call and may still add methods; when it raises, Envoy does
    not start. `shutdown` runs after SIGTERM, and Envoy waits for it; calls are cut off by then,
    so admin.EnvoyAdmin.drain comes before SIGTERM.
    """
    routes = dispatcher.routes
    admit = dispatcher.admit
    admission = dispatcher.admission
    bytes_max = limits.request_bytes_max
    deadlines = Deadlines()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await run_lifespan(receive, send, startup, shutdown)
        route = routes.get(scope["path"])
        if route is None:
            return await send_failure(send, failure_of(Unimplemented("no such method")))
        began = monotonic()
        try:
            if admission.shedding:
                admission.check_early(route.priority, began)
            event = await receive()
            if event.get("more_body"):
                event = await read_rest(event, receive, bytes_max)
            if "body" not in event:
                return None  # the caller is gone
            payload = unframe(event["body"], bytes_max)
            now = monotonic()
            waited_s = now - began
            timeout, original_path = find_headers(scope["headers"])
            deadline_s = limits.deadline_s_max
            if timeout is not None:
                deadline_s = min(parse_timeout(timeout), deadline_s)
            if original_path is not None:
                check_transcoded(original_path, payload, route.singular)
            if waited_s >= deadline_s:
                raise DeadlineExceeded("the deadline has passed")
            answer = route.handler(admit(route, payload, waited_s, now))
            if route.is_async:
                answer = await deadlines.run(answer, began + deadline_s)
            reply = answer.SerializeToString()
        except Exception as error:  # the outermost level of a call
            return await fail(send, route, error, monotonic() - began)
        await send(START)
        await send(
            {
                "type": "http.response.body",
                "body": FRAME(0, len(reply)) + reply,
                "more_body": False,
            }
        )
        await send(TRAILERS)
        route.counts.count(OK, monotonic() - began)

    return app


async def read_rest(event: Event, receive: Receive, bytes_max: int) -> Event:
    """Join a body that comes in parts; stops reading what is too large anyway."""
    parts, size = [event["body"]], len(event["body"])
    while event.get("more_body") and size <= bytes_max + FRAME_BYTES:
        event = await receive()
        if "body" not in event:
            return event
        parts.append(event["body"])
        size += len(event["body"])
    return {"body": b"".join(parts)}


def unframe(body: bytes, bytes_max: int) -> bytes:
    """Return the one message of a unary gRPC request."""
    size = len(body) - FRAME_BYTES
    if size > bytes_max:
        raise Exhausted(f"the request is larger than {bytes_max} bytes")
    if size < 0 or int.from_bytes(body[1:FRAME_BYTES]) != size:
        raise Rejected("the request is not one whole gRPC message")
    if body[0]:
        raise Unimplemented("compressed messages are not taken")
    return body[FRAME_BYTES:]


def find_headers(headers: list[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None]:
    """Return the values of grpc-timeout and of the path before transcoding."""
    timeout = original_path = None
    for name, value in headers:
        if name == b"grpc-timeout":
            timeout = value
        elif name == ORIGINAL_PATH:
            original_path = value
    return timeout, original_path


def parse_timeout(value: bytes) -> float:
    """Read a grpc-timeout header (at most eight digits and a unit) as seconds."""
    digits, unit = value[:-1], UNIT_S.get(value[-1:])
    if unit is None or not 1 <= len(digits) <= 8 or not digits.isdigit():
        raise Rejected("grpc-timeout is malformed")
    return int(digits) * unit


async def fail(send: Send, route: Route, error: Exception, latency_s: float) -> None:
    """Answer a call that raised; only failures that a person must look at are logged."""
    failure = failure_of(error)
    route.counts.count(failure.outcome, latency_s)
    if failure.outcome is Outcome.SYSTEM:
        log_failure(route.path, failure, error)
    await send_failure(send, failure)


async def send_failure(send: Send, failure: Failure) -> None:
    """Send a failure as a gRPC response of headers only."""
    headers = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", str(failure.code).encode()),
        (b"grpc-message", quote(failure.message, safe=" !#$&'()*+,/:;<=>?@[]^_`{|}~\"").encode()),
        (b"grpc-status-details-bin", b64encode(failure.details).rstrip(b"=")),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(NO_BODY)


def tune_collector() -> None:
    """Keep the cycle collector away from the calls in flight.

    With 8,192 in flight its default thresholds cost a quarter of all shakes (21k/s → 16k/s).
    What startup made lives as long as the process; calls leave no cycles but on failures.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def take_requests_in_batches() -> None:
    """Let this thread be woken without stopping Envoy's for it (SCHED_BATCH, one's own right).

    Where both share a core, Envoy's thread was stopped for every request that it handed over:
    1.5 switches of thread per open became 0.4, and 11.8k opens/s 14.5k. Other threads keep theirs.
    """
    with suppress(AttributeError, OSError):  # not on Linux, or a sandbox forbids it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def run_lifespan(receive: Receive, send: Send, startup: Hook, shutdown: Hook) -> None:
    """Follow the ASGI lifespan protocol: start, wait, stop."""
    await receive()
    try:
        await startup()
    except Exception as error:  # told to Envoy, which then does not start
        log.error("startup_failed", error=repr(error), exc_info=error)
        return await send({"type": "lifespan.startup.failed", "message": repr(error)})
    tune_collector()
    take_requests_in_batches()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await shutdown()
    await send({"type": "lifespan.shutdown.complete"})
