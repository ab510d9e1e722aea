"""Runs a store server: python store_process.py FOLDER SOCKET [MAP_BYTES [FILE_BYTES_MAX]]."""

import asyncio
import resource
import sys
import time
from pathlib import Path

from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.lmdb_writer import LmdbLimits
from hongbao.adapters.store_server import StoreServer


async def main(
    folder: str, socket: str, map_bytes: str = str(64 << 20), file_bytes_max: str = "-1"
) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_bytes_max), -1))  # the disk is full there
    limits = LmdbLimits(map_bytes=int(map_bytes))
    store = LmdbStore(Path(folder), monotonic_s=time.monotonic, limits=limits)
    server = StoreServer(store, Path(socket))
    await server.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
