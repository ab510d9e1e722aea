"""Owns the client that people use: sessions, shakes and opens that obey the server.

It waits as long as the server says, repeats what may be repeated, keeps its claim tokens, and
goes to the next gateway when one is gone. Load runs use the leaner wire (client/load.py).
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import stamina

from hongbao.client.draws import Draw, seeded_draw
from hongbao.client.gateways import Gateway
from hongbao.client.status import (
    LOST,
    REPEATABLE,
    UNAUTHENTICATED,
    UNAVAILABLE,
    Answer,
    retry_after_s,
)
from hongbao.client.tokens import TokenBox
from hongbao.domain.errors import NotFound, Rejected, Transient, Unauthenticated
from hongbao.domain.ids import CampaignId
from hongbao.proto.v1 import access_pb2, redeem_pb2

_TIMEOUT_S: Final = 5.0
_NOT_FOUND: Final = 5
_BACKOFF_S_MAX: Final = 5.0


class _Refused(Exception):
    """Carries a failed call's answer to whoever decides about a repetition."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.name} {answer.message}")
        self.answer = answer


class HongbaoClient:
    """Is one user at one campaign. Use it as an async context manager."""

    def __init__(
        self,
        gateways: Sequence[Gateway],
        campaign: CampaignId,
        jwt_of: Callable[[], str],
        *,
        tokens: TokenBox | None = None,
        give_up_s: float = 30.0,
        draw: Draw | None = None,
    ) -> None:
        if not gateways:
            raise Rejected("no gateway is given", field="gateways")
        self._gateways = tuple(gateways)
        self._campaign = campaign
        self._jwt_of = jwt_of
        self._give_up_s = give_up_s
        self._draw = draw or seeded_draw(id(self))
        self._channels: list[grpc.aio.Channel] = []
        self._current = 0
        self._session = b""
        self._next_shake_at = 0.0
        self.tokens = tokens or TokenBox()
        self.tuning = access_pb2.Tuning()

    async def __aenter__(self) -> Self:
        self._channels = [
            grpc.aio.insecure_channel(f"{gateway.host}:{gateway.port}")
            for gateway in self._gateways
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for channel in self._channels:
            await channel.close()

    async def open_session(self) -> None:
        """Exchange the JWT for a session; done by itself when a call needs one."""
        request = access_pb2.OpenSessionRequest(campaign=self._campaign, jwt=self._jwt_of())
        reply = await self._repeat(
            "/hongbao.v1.Access/OpenSession", request, access_pb2.OpenSessionReply
        )
        self._session = reply.session
        self._tune(reply)

    async def shake(self) -> access_pb2.ShakeReply:
        """Shake once, not before the server allows it; a won token is kept before this returns.

        Not repeated by itself: a lost reply may have carried a packet, which then stays
        unclaimed; the next shake is a new chance.
        """
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._next_shake_at - loop.time()))

        def request() -> access_pb2.ShakeRequest:
            return access_pb2.ShakeRequest(campaign=self._campaign, session=self._session)

        try:
            reply = await self._in_session(
                "/hongbao.v1.Access/Shake", request, access_pb2.ShakeReply, self._call
            )
        except _Refused as refused:
            wait_s = refused.answer.retry_after_s or 1.0
            self._next_shake_at = loop.time() + wait_s
            raise _error_of(refused.answer) from None
        if reply.claim_token:
            self.tokens.won(reply.claim_token)
        self._tune(reply)
        wait_ms = max(reply.retry_after_ms, self.tuning.shake_interval_ms)
        self._next_shake_at = loop.time() + wait_ms / 1000
        return reply  # type: ignore[no-any-return]

    async def open(self, token: bytes) -> redeem_pb2.OpenReply:
        """Open a packet; repeated until there is a definite answer (F3) or time is up.

        Raises Unauthenticated for a token that is not good, Transient when there was no
        answer: the token stays in `tokens` then, and opening it again is safe.
        """

        def request() -> redeem_pb2.OpenRequest:
            return redeem_pb2.OpenRequest(
                campaign=self._campaign, session=self._session, claim_token=token
            )

        try:
            reply = await self._in_session(
                "/hongbao.v1.Redeem/Open", request, redeem_pb2.OpenReply, self._repeat
            )
        except Rejected:
            self.tokens.done(token)
            raise
        self.tokens.done(token)
        return reply  # type: ignore[no-any-return]

    async def spread_open(self, token: bytes) -> redeem_pb2.OpenReply:
        """Open after the random delay that the server's tuning asks for."""
        await asyncio.sleep(self.tuning.open_delay_ms_max / 1000 * self._draw())
        return await self.open(token)

    def _tune(self, reply: Any) -> None:
        if reply.HasField("tuning"):
            self.tuning = reply.tuning

    async def _in_session(self, path: str, request: Any, reply: Any, call: Any) -> Any:
        """Call with a session; a session that ran out is renewed once."""
        if not self._session:
            await self.open_session()
        try:
            return await call(path, request(), reply)
        except (_Refused, Unauthenticated) as error:
            if isinstance(error, _Refused) and error.answer.code != UNAUTHENTICATED:
                raise
        await self.open_session()
        return await call(path, request(), reply)

    async def _repeat(self, path: str, request: Any, reply: Any) -> Any:
        """Call until there is a definite answer; waits as the server says, else with jitter."""

        def again(error: Exception) -> bool | float:
            if not isinstance(error, _Refused) or error.answer.code not in REPEATABLE:
                return False
            return error.answer.retry_after_s or True

        retrying = stamina.retry_context(
            on=again, attempts=None, timeout=self._give_up_s, wait_max=_BACKOFF_S_MAX
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._call(path, request, reply)
        except _Refused as refused:
            raise _error_of(refused.answer) from None
        raise AssertionError("a retry context ends with a return or an error")

    async def _call(self, path: str, request: Any, reply: Any) -> Any:
        channel = self._channels[self._current]
        method = channel.unary_unary(
            path, type(request).SerializeToString, response_deserializer=reply.FromString
        )
        try:
            return await method(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            answer = _answer_of(error)
        if answer.code in (UNAVAILABLE, LOST):
            self._current = (self._current + 1) % len(self._channels)
        raise _Refused(answer)


def _answer_of(error: grpc.aio.AioRpcError) -> Answer:
    trailers = dict(error.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin", b"")
    return Answer(error.code().value[0], error.details() or "", retry_after_s(details))


def _error_of(answer: Answer) -> Rejected | Transient:
    """Translate an answer to the exceptions of the domain."""
    text = f"{answer.name}: {answer.message}"
    if answer.code in REPEATABLE:
        return Transient(text, retry_after_s=answer.retry_after_s or 1.0)
    if answer.code == UNAUTHENTICATED:
        return Unauthenticated(text)
    return NotFound(text) if answer.code == _NOT_FOUND else Rejected(text)
