"""Owns what a gRPC answer means to a client: its code, and when to repeat.

Refuses to know the transport it came by (client/wire.py, grpc.aio).
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

OK: Final = 0
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16
LOST: Final = -1  # ours: the connection went before a definite answer came

# Nothing is known to have happened, or it may happen later: the same call may be repeated.
# CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE
REPEATABLE: Final = frozenset({LOST, 1, 2, 4, 8, 10, 13, 14})
SHED: Final = frozenset({RESOURCE_EXHAUSTED, UNAVAILABLE})

_NAMES: Final[dict[int, str]] = {LOST: "LOST"} | {
    number: name for name, number in code_pb2.Code.items()
}

# What a gRPC client makes of a bare HTTP status (grpc: doc/http-grpc-status-mapping.md).
_FROM_HTTP: Final = {
    "400": INTERNAL,
    "401": UNAUTHENTICATED,
    "403": 7,
    "404": 12,
    "429": UNAVAILABLE,
    "502": UNAVAILABLE,
    "503": UNAVAILABLE,
    "504": UNAVAILABLE,
}


class Answer:
    """Is a gRPC status with what the server says about a repetition; shared between calls."""

    __slots__ = ("code", "message", "retry_after_s")

    def __init__(self, code: int, message: str = "", retry_after_s: float | None = None) -> None:
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def name(self) -> str:
        return _NAMES.get(self.code, str(self.code))


ANSWER_LOST: Final = Answer(LOST, "connection lost")
ANSWER_LATE: Final = Answer(DEADLINE_EXCEEDED, "no answer in time")


def answer_of(headers: Mapping[str, str]) -> Answer | None:
    """Return the status in a block of response headers or trailers, None if it has none."""
    if "grpc-status" in headers:
        return Answer(
            int(headers["grpc-status"]),
            headers.get("grpc-message", ""),
            retry_after_s(headers.get("grpc-status-details-bin", "")),
        )
    http = headers.get(":status", "200")
    if http == "200":
        return None
    after = headers.get("retry-after", "")
    return Answer(
        _FROM_HTTP.get(http, 2), f"HTTP {http}", float(after) if after.isdecimal() else None
    )


def retry_after_s(details: str | bytes) -> float | None:
    """Return the RetryInfo of a `grpc-status-details-bin` value (base64 text or raw bytes)."""
    if not details:
        return None
    try:
        if isinstance(details, str):
            details = base64.b64decode(details + "=" * (-len(details) % 4))
        status = status_pb2.Status.FromString(details)
    except (binascii.Error, DecodeError):
        return None
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            delay = retry.retry_delay
            return int(delay.seconds) + int(delay.nanos) / 1e9
    return None
