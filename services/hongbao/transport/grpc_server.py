"""Owns the grpcio server of a process: health, reflection, and the whole dispatcher where Envoy
cannot embed Python; refuses to know any handler.
"""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hongbao.transport.asgi import CallLimits
from hongbao.transport.dispatcher import Dispatcher, Route
from hongbao.transport.errors import Outcome, failure_of
from hongbao.transport.failure_log import log_failure

log = structlog.get_logger()

Extra = Callable[[grpc.aio.Server], None]
STATUS_OF_CODE: Final = {status.value[0]: status for status in grpc.StatusCode}
KEEPALIVE_S_MIN: Final = 5
PUBLIC_LIMITS: Final = CallLimits()


class GrpcServer:
    """Is a started server; `drain` is its only way to stop without breaking calls."""

    def __init__(
        self, server: grpc.aio.Server, checks: health.aio.HealthServicer, port: int
    ) -> None:
        self._server = server
        self._checks = checks
        self.port: Final = port

    async def set_serving(self, service: str, serving: bool) -> None:
        """Say whether one service ("" is the process) can take calls."""
        states = health_pb2.HealthCheckResponse
        await self._checks.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def drain(self, *, settle_s: float = 0.0, grace_s: float = 5.0) -> None:
        """Turn health to NOT_SERVING, let callers notice for `settle_s`, finish what runs."""
        await self._checks.enter_graceful_shutdown()
        await asyncio.sleep(settle_s)
        await self._server.stop(grace_s)


async def start_grpc_server(
    dispatcher: Dispatcher | None,
    address: str,
    *,
    services: Iterable[str] = (),
    extra: Iterable[Extra] = (),
    limits: CallLimits = PUBLIC_LIMITS,
    calls_max: int | None = None,
) -> GrpcServer:
    """Serve `dispatcher` (None: health and reflection only) at "host:port" or "unix:/path".

    `services` are the full names that health and reflection tell of; `extra` adds grpcio
    services (streams, internal calls). More than `calls_max` calls at once are refused with
    RESOURCE_EXHAUSTED before any Python runs.
    """
    options = [
        ("grpc.max_receive_message_length", limits.request_bytes_max if dispatcher else 4 << 20),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S_MIN * 1000),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=calls_max)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = tuple(services)
    known = (*names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(known, server)
    for add in extra:
        add(server)
    if dispatcher is not None:
        server.add_generic_rpc_handlers((DispatchHandler(dispatcher, limits),))
    port = server.add_insecure_port(address)
    await server.start()
    started = GrpcServer(server, checks, port)
    for name in ("", *names):
        await started.set_serving(name, True)
    return started


class DispatchHandler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Lets grpcio call the dispatcher with raw bytes."""

    def __init__(self, dispatcher: Dispatcher, limits: CallLimits) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Find the handler of a path; None lets grpcio answer UNIMPLEMENTED."""
        route = self._dispatcher.routes.get(details.method)
        if route is None:
            return None
        if route.path not in self._handlers:
            self._handlers[route.path] = grpc.unary_unary_rpc_method_handler(self._serve(route))
        return self._handlers[route.path]

    def _serve(self, route: Route) -> Callable[[bytes, Any], Any]:
        dispatcher, deadline_s = self._dispatcher, self._limits.deadline_s_max

        async def serve(payload: bytes, context: Any) -> bytes:
            began = monotonic()
            try:
                answer = route.handler(dispatcher.admit(route, payload, 0.0, began))
                if route.is_async:
                    async with asyncio.timeout(deadline_s):
                        answer = await answer
                reply: bytes = answer.SerializeToString()
            except Exception as error:  # the outermost level of a call
                return await abort(context, route, error, monotonic() - began)
            route.counts.count(Outcome.OK, monotonic() - began)
            return reply

        return serve


async def abort(context: Any, route: Route, error: Exception, latency_s: float) -> bytes:
    """End a call that raised, with the same status and details as the ASGI application."""
    failure = failure_of(error)
    route.counts.count(failure.outcome, latency_s)
    if failure.outcome is Outcome.SYSTEM:
        log_failure(route.path, failure, error)
    trailers = (("grpc-status-details-bin", failure.details),)
    await context.abort(STATUS_OF_CODE[failure.code], failure.message, trailers)
    raise AssertionError("abort raises")
