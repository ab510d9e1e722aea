"""Owns where our internal gRPC calls go and how domain errors cross them.

Public edges have their own table.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import grpc

from hongbao.domain import errors
from hongbao.proto.v1 import shards_pb2 as pb

MESSAGE_BYTES_MAX: Final = 64 << 20
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_KIND_KEY: Final = "hongbao-error"
_KINDS: Final[dict[str, type[errors.HongbaoError]]] = {
    kind.__name__: kind
    for kind in (
        errors.Rejected,
        errors.Unauthenticated,
        errors.NotFound,
        errors.Exhausted,
        errors.Transient,
        errors.Overloaded,
        errors.Ambiguous,
        errors.Fenced,
        errors.Corrupt,
    )
}


def unix_target(socket: Path) -> str:
    """Return how gRPC names a Unix socket: it decodes percents, and cuts at # and ?.

    A client takes a comma for the end of an address, encoded or not: runs are refused there.
    """
    return f"unix:{quote(str(socket))}"


def make_error(kind: str, message: str, retry_after_s: float = 0.0) -> errors.HongbaoError:
    """Return the error of that name; an unknown one leaves the outcome open."""
    made = _KINDS.get(kind, errors.Ambiguous)(message)
    if isinstance(made, errors.Transient) and retry_after_s > 0:
        made.retry_after_s = retry_after_s
    return made


def failure_of(index: int, error: errors.HongbaoError) -> pb.Failure:
    """Return how one of the many operations of a call failed."""
    retry_after_s = error.retry_after_s if isinstance(error, errors.Transient) else 0.0
    kind = type(error).__name__
    return pb.Failure(index=index, kind=kind, message=str(error), retry_after_s=retry_after_s)


def error_of(failure: pb.Failure) -> errors.HongbaoError:
    """Return the error that `failure_of` described."""
    return make_error(failure.kind, failure.message, failure.retry_after_s)


def translated(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    """Wrap a unary handler so that its domain errors reach the caller by name."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await handler(request)
        except errors.HongbaoError as error:
            await abort(context, error)

    return handle


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.HongbaoError) -> None:
    """End a call with a domain error."""
    kind = ((_KIND_KEY, type(error).__name__),)
    await context.abort(grpc.StatusCode.ABORTED, str(error), trailing_metadata=kind)


def received(error: grpc.aio.AioRpcError) -> errors.HongbaoError:
    """Return what the other side raised; Ambiguous when it is the call itself that failed."""
    kind = dict(error.trailing_metadata() or ()).get(_KIND_KEY)
    text = f"{error.code().name}: {error.details()}" if kind is None else str(error.details())
    return make_error(str(kind), text)
