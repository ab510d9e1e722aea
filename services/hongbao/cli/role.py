"""Is `hongbao role`: one process of a run, started by the supervisor, never by hand."""

import asyncio
import ctypes
import json
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from hongbao.adapters.clock import SystemClock
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.store_server import StoreServer
from hongbao.cli.embedded import PROCESS_VARIABLE, RUN_VARIABLE, serving_of
from hongbao.cli.forward import forward_opens
from hongbao.cli.process import Process, find_process, set_up_logs
from hongbao.cli.role_settle import run_settle
from hongbao.cli.serving import serve_until_signal
from hongbao.domain.errors import Rejected
from hongbao.transport.envoy import GatewayConfig, build_gateway_config
from hongbao.transport.grpc_server import GrpcServer, start_grpc_server
from hongbao.transport.launch import Embedding, envoy_command, find_embedding
from hongbao.transport.metrics import serve_metrics
from hongbao.transport.upstreams import Endpoint, Upstream

ACCESS_SERVICE = "hongbao.v1.Access"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
REDEEM_SERVICE = "hongbao.v1.Redeem"


def role(
    role: Annotated[str, typer.Argument(help="store, access, redeem or settle")],
    run: Annotated[Path, typer.Option(help="The run's folder.")],
    process: Annotated[str, typer.Option(help="The process's name.")],
) -> None:
    """Be one process of a run (started by `hongbao up`)."""
    place = find_process(run, process)
    if place.spec.role != role:
        raise Rejected(f"{process} is of role {place.spec.role}, not {role}", field="role")
    set_up_logs(process)
    end_with_supervisor()
    if role == "store":
        asyncio.run(_run_store(place))
    elif role == "settle":
        asyncio.run(run_settle(place))
    elif (embedding := find_embedding()).library:
        _become_envoy(place, embedding)
    else:
        asyncio.run(_serve_with_grpcio(place))


def end_with_supervisor() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies: orphans would hold ports and leases.

    Holds over execve, so for Envoy too.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _run_store(process: Process) -> None:
    """Be the one writer of the embedded store."""
    store = LmdbStore(process.run.store, monotonic_s=SystemClock().monotonic_s)
    server = StoreServer(store, process.run.socket)

    async def start() -> None:
        await server.start()
        serve_metrics("127.0.0.1", process.spec.ports["metrics"])

    await serve_until_signal(start, server.stop)


def gateway_config(process: Process) -> GatewayConfig:
    """Return how this process's Envoy serves: access routes opens, nearest zone first."""
    redeem = tuple(
        Endpoint("127.0.0.1", spec.ports["public"], spec.zone)
        for spec in process.specs
        if spec.role == "redeem"
    )
    is_gateway = process.spec.role == "access"
    return GatewayConfig(
        port=process.spec.ports["public"],
        address=process.settings.listen if is_gateway else "127.0.0.1",
        app="hongbao.cli.embedded:app",
        local_services=(ACCESS_SERVICE if is_gateway else REDEEM_SERVICE,),
        zone=process.spec.zone,
        web=is_gateway,
        admin_path=str(process.socket("admin")),
        internal_path=str(process.socket("internal")),
        upstreams=(Upstream("redeem", (REDEEM_SERVICE,), redeem),) if is_gateway else (),
        node=process.name,
    )


def _become_envoy(process: Process, embedding: Embedding) -> None:
    """Replace this process by Envoy with Python inside."""
    process.socket("admin").unlink(missing_ok=True)
    config = process.run.path / "sock" / f"{process.name}.json"
    config.write_text(json.dumps(build_gateway_config(gateway_config(process))))
    command, environ = envoy_command(config, embedding=embedding)
    environ |= {RUN_VARIABLE: str(process.run.path), PROCESS_VARIABLE: process.name}
    os.execve(command[0], command, environ)


async def _serve_with_grpcio(process: Process) -> None:
    """Serve the same methods without Envoy: gRPC only; access forwards opens itself."""
    serving = serving_of(process)
    servers: list[GrpcServer] = []

    async def start() -> None:
        await serving.start()
        if process.spec.role == "access":
            serving.dispatcher.add(forward_opens(process))
        address = f"{process.settings.listen}:{process.spec.ports['public']}"
        servers.append(
            await start_grpc_server(serving.dispatcher, address, services=(ACCESS_SERVICE,))
        )

    async def stop() -> None:
        for server in servers:
            await server.drain(grace_s=5.0)
        await serving.stop()

    await serve_until_signal(start, stop)
