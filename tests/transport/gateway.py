"""Runs a real gateway for tests: Envoy with tests/transport/gateway_app.py inside."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hongbao.transport import launch
from hongbao.transport.admin import EnvoyAdmin
from hongbao.transport.envoy import GatewayConfig, build_gateway_config

from tests.servers.started import free_port
from tests.waiting import LIMIT_S


@dataclass(frozen=True, slots=True)
class Gateway:
    """Is a gateway that runs."""

    port: int
    folder: Path
    admin: EnvoyAdmin
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def gateway_config(folder: Path, **changes: object) -> GatewayConfig:
    config = GatewayConfig(
        port=free_port(),
        address="127.0.0.1",
        app="tests.transport.gateway_app:app",
        local_services=("hongbao.v1.Access",),
        zone="a",
        admin_path=str(folder / "admin"),
        internal_path=str(folder / "internal"),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def running_gateway(config: GatewayConfig, folder: Path) -> AsyncIterator[Gateway]:
    embedding = launch.find_embedding()
    if embedding.library is None:
        pytest.skip(f"{embedding.reason}; apt-get install {embedding.debian_package}")
    path = folder / "envoy.json"
    path.write_text(json.dumps(build_gateway_config(config)))
    command, environment = launch.envoy_command(path, embedding=embedding, drain_s=1)
    environment["HONGBAO_TEST_FOLDER"] = str(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  (only forks)
            command, env=environment, stdout=log, stderr=log, cwd=os.getcwd()
        )
    admin = EnvoyAdmin(config.admin_path)
    try:
        await admin.wait_ready(LIMIT_S, is_alive=lambda: process.poll() is None)
        yield Gateway(config.port, folder, admin, process)
    finally:
        await admin.close()
        process.kill()
        await asyncio.to_thread(process.wait)
