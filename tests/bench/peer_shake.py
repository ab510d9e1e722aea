"""The peer of shakes: an access process that serves the same handler with grpcio's aio server.

usage: python -m tests.bench.peer_shake RUN PROCESS PORT      (secrets: the pod's environment)
"""

import asyncio
import sys
from pathlib import Path

from hongbao.cli.embedded import serving_of
from hongbao.cli.process import find_process, set_up_logs
from hongbao.cli.serving import serve_until_signal
from hongbao.transport.grpc_server import GrpcServer, start_grpc_server


async def main(run: Path, name: str, port: int) -> None:
    set_up_logs(name)
    serving = serving_of(find_process(run, name))

    held: list[GrpcServer] = []  # grpcio stops a server that nobody refers to

    async def start() -> None:
        await serving.start()
        held.append(await start_grpc_server(serving.dispatcher, f"127.0.0.1:{port}"))

    await serve_until_signal(start, serving.stop)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
