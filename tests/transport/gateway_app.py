"""The application that the tests and the bench run inside a real Envoy: no store, no keys."""

import asyncio
import hashlib
import os
import struct
from pathlib import Path

from hongbao.domain import errors
from hongbao.proto.v1 import access_pb2
from hongbao.transport.admission import Admission
from hongbao.transport.asgi import make_app
from hongbao.transport.dispatcher import Dispatcher, Method
from hongbao.transport.grpc_server import GrpcServer, start_grpc_server
from hongbao.transport.metrics import CallMetrics

FAILURES = {
    "rejected": errors.Rejected("the slot is not a number", field="slot"),
    "unauthenticated": errors.Unauthenticated("the MAC of pod 3 is wrong"),
    "not-found": errors.NotFound("no campaign not-found"),
    "exhausted": errors.Exhausted("more than 20 sessions"),
    "transient": errors.Transient("the store is slow", retry_after_s=0.25),
    "overloaded": errors.Overloaded("shed", retry_after_s=2.0),
    "ambiguous": errors.Ambiguous("a write may have happened"),
    "fenced": errors.Fenced("epoch 3 is over"),
    "corrupt": errors.Corrupt("block 7 of shard 3 contradicts its checksum"),
    "bug": KeyError("secret detail"),
}

SESSION_KEY, BINDING_KEY = os.urandom(32), os.urandom(32)
RECORDS = os.urandom(26 * 100_000)
PACK = struct.Struct("<26sQIH").pack
position = 0


def shake(request: access_pb2.ShakeRequest) -> access_pb2.ShakeReply:
    """Do what the prototype's shake does."""
    global position
    if request.campaign in FAILURES:
        raise FAILURES[request.campaign]
    hashlib.blake2b(request.session[:8], key=SESSION_KEY, digest_size=16).digest()
    start, position = position, (position + 26) % len(RECORDS)
    token = PACK(RECORDS[start : start + 26], 7, 1700000000, 3)
    token += hashlib.blake2b(token, key=BINDING_KEY, digest_size=16).digest()
    return access_pb2.ShakeReply(claim_token=token, outcome=access_pb2.PACKET)


async def open_session(request: access_pb2.OpenSessionRequest) -> access_pb2.OpenSessionReply:
    """Answer with the JWT's length after as many milliseconds as the campaign says."""
    if request.campaign in FAILURES:
        raise FAILURES[request.campaign]
    if request.campaign.startswith("wait-"):
        await asyncio.sleep(int(request.campaign.removeprefix("wait-")) / 1000)
    return access_pb2.OpenSessionReply(session=b"s", expires_at_s=len(request.jwt))


METHODS = (
    Method(
        "/hongbao.v1.Access/OpenSession",
        access_pb2.OpenSessionRequest,
        access_pb2.OpenSessionReply,
        open_session,
        priority=1,
    ),
    Method("/hongbao.v1.Access/Shake", access_pb2.ShakeRequest, access_pb2.ShakeReply, shake),
)
dispatcher = Dispatcher(METHODS, Admission(), CallMetrics())
folder = Path(os.environ.get("HONGBAO_TEST_FOLDER", ""))
state: dict[str, GrpcServer] = {}


async def startup() -> None:
    """Start the process's own grpcio server, which Envoy routes health and reflection to."""
    if "HONGBAO_TEST_FOLDER" in os.environ:
        state["server"] = await start_grpc_server(
            None, f"unix:{folder / 'internal'}", services=("hongbao.v1.Access",)
        )


async def shutdown() -> None:
    """Take a while, as a role that flushes its state does."""
    if "server" in state:
        await state["server"].drain()
        await asyncio.sleep(0.5)
        (folder / "flushed").write_text("all")


app = make_app(dispatcher, startup, shutdown)
