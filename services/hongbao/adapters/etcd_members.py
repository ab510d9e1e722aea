"""Owns the connections to etcd's members: TLS, time limits, and going to the next member.

Every member has a channel of its own, so that a paused one (its connection stays up) is left as
soon as one call has waited for it. No call waits without a limit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import grpc

from hongbao.domain.errors import Ambiguous, Transient
from hongbao.proto.etcd import rpc_pb2 as pb

CALL_S_MAX: Final = 5.0
"""A call over all attempts: longer than an election (1–2 s with etcd's defaults)."""
ATTEMPT_S_MAX: Final = 1.0
"""One member's time for one attempt."""
ROUND_PAUSE_S: Final = 0.05
"""After every member has failed once: they may be electing a leader."""
QUIET_S_MAX: Final = 1.0
"""A member that was not heard for this long is asked whether it is there."""
MESSAGE_BYTES_MAX: Final = 512 << 20
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # else clients of one process share connections
)
HAS_LEADER: Final = (("hasleader", "true"),)
"""A member that is cut off from the quorum then refuses, and ends its watches."""
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_NOT_SENT: Final = ("failed to connect to all addresses", "DNS resolution failed")
_NOT_PROPOSED: Final = "etcdserver: no leader"
_NOT_TAKEN: Final = "etcdserver: too many requests"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """Names the files of a TLS connection (PEM); without cert and key, only etcd is proved."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Names a cluster (`host:port` of each member) and what is ours in it (a key prefix)."""

    endpoints: tuple[str, ...]
    namespace: str = "hongbao/"
    tls: EtcdTls | None = None


class Closed(Transient):
    """Says that our own connections were closed, before the call or under it."""

    def __init__(self) -> None:
        super().__init__("etcd: the connections are closed")


class NoSpace(Ambiguous):
    """Says that etcd is full: this attempt was done before the answer or never will be.

    `doubtful`: an earlier attempt of the same call may still be done.
    """

    def __init__(self, message: str, *, doubtful: bool) -> None:
        super().__init__(message)
        self.doubtful = doubtful


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """Is a reply; `doubtful`: an earlier attempt of the same call may have been done as well."""

    reply: T
    doubtful: bool


class Member:
    """Is one member: its channel, the methods that we call, and when it was last heard."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.channel = (
            grpc.aio.insecure_channel(endpoint, options=OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(endpoint, credentials, options=OPTIONS)
        )
        self.range = self._method("KV/Range", pb.RangeResponse)
        self.txn = self._method("KV/Txn", pb.TxnResponse)
        self.grant = self._method("Lease/LeaseGrant", pb.LeaseGrantResponse)
        self.revoke = self._method("Lease/LeaseRevoke", pb.LeaseRevokeResponse)
        self.watch = self._stream("Watch/Watch", pb.WatchResponse)
        self._keep_alive = self._stream("Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)
        self._heard_s = 0.0
        self._probe: asyncio.Task[bool] | None = None

    async def close(self) -> None:
        """Let go of the connection."""
        if self._probe is not None:
            self._probe.cancel()
        await self.channel.close()

    def heard(self) -> None:
        """Note that the member answered just now."""
        self._heard_s = asyncio.get_running_loop().time()

    async def alive(self) -> bool:
        """Tell whether the member answers; all who ask in the same second share one call."""
        if asyncio.get_running_loop().time() < self._heard_s + QUIET_S_MAX:
            return True
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._answers())
        return await asyncio.shield(self._probe)

    async def keep_alive(self, lease_id: int, timeout_s: float) -> int:
        """Return the seconds that the lease has now; 0 when there is no such lease."""
        call = self._keep_alive(timeout=timeout_s, metadata=HAS_LEADER)
        try:
            await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
            reply = await call.read()
            if reply is grpc.aio.EOF:
                raise _ended(await call.code(), await call.details())
            return int(reply.TTL)
        finally:
            call.cancel()

    async def _answers(self) -> bool:
        request = pb.RangeRequest(key=b"\0", serializable=True, keys_only=True)
        try:
            await self.range(request, timeout=ATTEMPT_S_MAX)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _REFUSALS:
                return False
        self.heard()
        return True

    def _method(self, name: str, reply: Any) -> Any:
        return self.channel.unary_unary(
            f"/etcdserverpb.{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reply.FromString,
        )

    def _stream(self, name: str, reply: Any) -> Any:
        return self.channel.stream_stream(
            f"/etcdserverpb.{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reply.FromString,
        )


class Members:
    """Sends calls to one member of the cluster, and to the next as soon as that one fails."""

    def __init__(self, settings: EtcdSettings) -> None:
        credentials = None if settings.tls is None else _credentials(settings.tls)
        self._members = [Member(endpoint, credentials) for endpoint in settings.endpoints]
        self._preferred = 0
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def preferred(self) -> Member:
        """Return the member that answered last."""
        return self._members[self._preferred]

    def leave(self, member: Member) -> None:
        """Prefer the next member from now on."""
        if member is self.preferred:
            self._preferred = (self._preferred + 1) % len(self._members)

    async def close(self) -> None:
        """Let go of all connections; what is under way ends at once."""
        if not self._closing.done():
            self._closing.set_result(None)
        for member in self._members:
            await member.close()

    async def while_open(self, call: Awaitable[T]) -> T:
        """Return what a call gives. Raises Closed as soon as the connections are let go.

        gRPC cancels what is under way then, or lets it hang; neither must reach the caller.
        """
        doing = asyncio.ensure_future(call)
        either: set[asyncio.Future[Any]] = {doing, self._closing}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            answered = doing.done() and not doing.cancelled() and doing.exception() is None
            if self._closing.done() and not answered:
                raise Closed
            return doing.result()
        finally:
            doing.cancel()

    def check_open(self) -> None:
        """Raise Closed when the connections were let go."""
        if self._closing.done():
            raise Closed

    async def call(
        self,
        attempt: Callable[[Member, float], Awaitable[T]],
        *,
        attempt_s: float = ATTEMPT_S_MAX,
    ) -> Answer[T]:
        """Attempt a call, which may be done twice, at one member after the other.

        Raises Transient when it was surely not done, else NoSpace or Ambiguous.
        """
        now_s = asyncio.get_running_loop().time
        ends_s, failures, doubtful = now_s() + CALL_S_MAX, 0, False
        while True:
            member = self.preferred
            if self._closing.done():
                raise Ambiguous(str(Closed())) if doubtful else Closed
            try:
                reply = await self.while_open(attempt(member, min(attempt_s, ends_s - now_s())))
            except Closed as closed:
                raise Ambiguous(str(closed)) from None
            except asyncio.CancelledError:
                self.leave(member)  # whoever cancels has a limit of its own, which passed here
                raise
            except grpc.aio.AioRpcError as error:
                text = f"etcd {member.endpoint}: {error.code().name}: {error.details()}"
                if _out_of_space(error):
                    raise NoSpace(text, doubtful=doubtful) from None
                if error.code() in _REFUSALS and not doubtful:
                    raise Transient(text) from None
                self.leave(member)
                doubtful = doubtful or not surely_not_done(error)
                failures += 1
                if failures % len(self._members) == 0:
                    await asyncio.sleep(ROUND_PAUSE_S)
                if now_s() + ROUND_PAUSE_S >= ends_s or error.code() in _REFUSALS:
                    raise (Ambiguous if doubtful else Transient)(text) from None
            else:
                member.heard()
                return Answer(reply, doubtful)


def surely_not_done(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a failed call cannot have changed anything, now or later."""
    if error.code() in _REFUSALS:
        return not _out_of_space(error)
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and (
        details == _NOT_PROPOSED or details.startswith(_NOT_SENT)
    )


def _out_of_space(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether etcd may have done a write and refused it nevertheless.

    Its quotaApplierV3 (3.6) applies what crosses the quota, and answers "no space" then.
    """
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and error.details() != _NOT_TAKEN


def _credentials(tls: EtcdTls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=None if tls.key is None else tls.key.read_bytes(),
        certificate_chain=None if tls.cert is None else tls.cert.read_bytes(),
    )


def _ended(code: grpc.StatusCode, details: str | None) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details)
