"""Puts each store adapter behind one face: memory, LMDB, and a client of a real server."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.store_client import StoreClient

STORE_PROCESS = Path(__file__).parent.parent / "shards" / "store_process.py"


class StoreProcess:
    """Is a store server in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, *limits: int) -> None:
        self.path = folder / "store"  # as in a run
        self.socket = folder / "store.sock"
        self._limits = limits
        self.start()

    def start(self) -> None:
        program = [sys.executable, str(STORE_PROCESS)]
        command = [*program, str(self.path), str(self.socket), *map(str, self._limits)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class Contract:
    """Is a store under test with names of its own, and a way to restart what is behind it."""

    ttl_s = 0.2
    """The shortest lease that it grants."""
    gives_early = False
    """Whether a lease may go to another early: where etcd's leader starved (docs/stores.md)."""

    def __init__(self, store: Any, prefix: str) -> None:
        self.store = store
        self.prefix = prefix

    def key(self, name: str) -> bytes:
        return f"{self.prefix}/{name}".encode()

    def fact(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    async def split(self, name: str) -> None:
        """Cut the store in two before a key that nobody writes, where it has such parts."""

    async def restart(self) -> None:
        raise NotImplementedError

    async def forget_history(self) -> None:
        """Drop the history that a watch could read again, where the store ever drops any."""

    async def close(self) -> None:
        pass


class MemoryContract(Contract):
    async def restart(self) -> None:
        self.store.restart()


class LmdbContract(Contract):
    async def restart(self) -> None:
        await self.store.close()
        self.store = LmdbStore(self.store.path, monotonic_s=time.monotonic)
        await self.store.start()

    async def close(self) -> None:
        await self.store.close()


class ClientContract(Contract):
    def __init__(self, process: StoreProcess, prefix: str) -> None:
        super().__init__(StoreClient(process.socket, process.path), prefix)
        self.process = process

    async def restart(self) -> None:
        await asyncio.to_thread(self.process.kill)
        await asyncio.to_thread(self.process.start)

    async def close(self) -> None:
        await self.store.close()
