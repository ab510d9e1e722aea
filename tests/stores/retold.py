"""Stands between a client and one etcd member at the level of calls: done, but told otherwise."""

from collections import deque
from collections.abc import Awaitable, Callable

import grpc

from tests.waiting import LIMIT_S

Raw = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class Retold(grpc.GenericRpcHandler):
    """Is a server that carries unary calls to a member, and answers some with an error instead."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._planned: dict[str, deque[tuple[grpc.StatusCode, str, bool]]] = {}

    async def __aenter__(self) -> "Retold":
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
        await self._channel.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def plan(self, method: str, code: grpc.StatusCode, text: str, *, done: bool) -> None:
        """Answer one call of a method (its last name) so; `done`: carry it to the member first."""
        self._planned.setdefault(method, deque()).append((code, text, done))

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = handler_call_details.method
        onward = self._channel.unary_unary(path)
        planned = self._planned.setdefault(path.rpartition("/")[2], deque())

        async def carry(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
            code, text, done = planned.popleft() if planned else (grpc.StatusCode.OK, "", True)
            reply = b""
            if done:
                try:
                    reply = await onward(request, timeout=LIMIT_S)
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details() or "")
            if code is not grpc.StatusCode.OK:
                await context.abort(code, text)
            return reply

        return grpc.unary_unary_rpc_method_handler(carry)
