"""`python -m tests.servers demo`: the demo on TiKV ×3, etcd ×3, S3 and PostgreSQL, which break too.

Starts the servers, writes the settings and the faults that `hongbao demo` takes, and does what the
faults ask for: the demo's commands only leave a wish in a folder and wait until it is done.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import postgres
from tests.servers import binaries, s3
from tests.servers.etcd import EtcdCluster
from tests.servers.s3 import S3Server
from tests.servers.tikv import OUR_KEYS, TikvCluster

ROOT = Path(__file__).resolve().parents[2]
DOWN_S = {"tikv-leader": 3.0, "etcd-leader": 3.0, "pd": 0.5}
"""A killed server is started again after this, as a cluster would. The test store asks PD for a
timestamp at each write, which TiKV's raw API does not: longer without PD shows only that."""
WISH_S_MAX = 15.0
BUCKET = "red-packets"
POLL_S = 0.02

LOAD = ("--rate", "700", "--users", "2500")
"""Thirteen more processes share the cores with the demo's own: less load than there."""

FAULTS = (
    (1, 0.15, "tikv-leader", "a TiKV store killed"),
    (4, 0.1, "etcd-leader", "the etcd leader killed"),
    (5, 0.15, "pd", "PD killed and restarted"),
)
"""Slot, share of it, wish, text: early, so that the slot has work until service must be back."""


@dataclass(frozen=True)
class Servers:
    """Is all stores of an evening."""

    tikv: TikvCluster
    etcd: EtcdCluster
    s3: S3Server
    ledger_url: str

    def settings(self, run_dir: Path) -> dict[str, Any]:
        """Return the demo's settings with these stores in the place of the embedded ones."""
        path = ROOT / "examples" / "demo.yaml"
        document: dict[str, Any] = yaml.safe_load(path.read_text())
        return document | {
            "campaign": str(ROOT / "examples" / document["campaign"]),
            "run_dir": str(run_dir),
            "lease_ttl_s": 2.0,  # etcd grants no less
            "tikv": {"pd": self.tikv.pd_endpoints},
            "etcd": {"endpoints": self.etcd.endpoints},
            "objects_url": f"s3://{BUCKET}/demo",
            "objects_endpoint": self.s3.endpoint,
            "ledger_url": self.ledger_url,
        }

    def faults(self) -> Mapping[str, tuple[Callable[[], str], Callable[[], None]]]:
        """Return, by wish, what breaks something and tells what, and what mends it."""
        killed: dict[str, int] = {}

        def kill_tikv() -> str:
            killed["tikv"] = self.tikv.leader_of(OUR_KEYS)
            self.tikv.kill_store(killed["tikv"])
            return f"store {killed['tikv']}, which led the region of all logs"

        def kill_etcd() -> str:
            killed["etcd"] = self.etcd.leader()
            self.etcd.kill(killed["etcd"])
            return f"member {killed['etcd']}"

        def kill_pd() -> str:
            self.tikv.kill_pd()
            return f"down for {DOWN_S['pd']:g} s"

        return {
            "tikv-leader": (kill_tikv, lambda: self.tikv.start_store(killed["tikv"])),
            "etcd-leader": (kill_etcd, lambda: self.etcd.start(killed["etcd"])),
            "pd": (kill_pd, self.tikv.start_pd),
        }


def why_not() -> str | None:
    """Return why the evening cannot be played here."""
    return binaries.why_not() or s3.why_not() or postgres.why_not()


@contextlib.contextmanager
def running_servers(folder: Path) -> Iterator[Servers]:
    """Start every server; stop them afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        yield Servers(
            stack.enter_context(TikvCluster(folder / "tikv", stores=3)),
            stack.enter_context(EtcdCluster(folder / "etcd", members=3)),
            stack.enter_context(s3.running_s3(folder / "s3", BUCKET)),
            stack.enter_context(postgres.running_cluster()),
        )


def play(folder: Path, arguments: list[str]) -> int:
    """Play the demo on real stores; return its exit status."""
    with running_servers(folder) as servers:
        settings, faults = folder / "settings.yaml", folder / "faults.yaml"
        settings.write_text(yaml.safe_dump(servers.settings(folder / "run")))
        faults.write_text(yaml.safe_dump([_fault(folder, *one) for one in FAULTS]))
        return asyncio.run(_play(servers, folder, [str(settings), *LOAD, *arguments], faults))


def _fault(folder: Path, slot: int, share: float, wish: str, text: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.servers", "break", wish, str(folder)]
    return {"slot": slot, "share": share, "text": text, "command": command}


async def _play(servers: Servers, folder: Path, arguments: list[str], faults: Path) -> int:
    command = [sys.executable, "-m", "hongbao.cli.main", "demo", *arguments]
    demo = await asyncio.create_subprocess_exec(
        *command, "--store-faults", str(faults), cwd=ROOT, env=_environ(servers)
    )
    granting = asyncio.create_task(_grant_wishes(servers, folder))
    playing = asyncio.create_task(demo.wait())
    try:
        await asyncio.wait([granting, playing], return_when=asyncio.FIRST_COMPLETED)
        if granting.done():
            await granting  # a fault or its mending failed: nothing is proved
        return await playing
    finally:
        granting.cancel()
        if demo.returncode is None:
            demo.terminate()
            await demo.wait()


def _environ(servers: Servers) -> dict[str, str]:
    return {**os.environ, **servers.s3.environ()}


async def _grant_wishes(servers: Servers, folder: Path) -> None:
    """Break what is wished for, tell that it is done, and mend it a little later."""
    faults = servers.faults()
    while True:
        for wish, (spoil, mend) in faults.items():
            if _wish(folder, wish).exists():
                said = await asyncio.to_thread(spoil)
                _wish(folder, wish).rename(_done(folder, wish, said))
                await asyncio.sleep(DOWN_S[wish])
                await asyncio.to_thread(mend)
        await asyncio.sleep(POLL_S)


def wish_for(wish: str, folder: Path) -> str:
    """Ask the running evening for a fault, wait until it is there, and return what it was."""
    _wish(folder, wish).touch()
    give_up_s = time.monotonic() + WISH_S_MAX
    while time.monotonic() < give_up_s:
        for path in folder.glob(f"done-{wish}-*"):
            return path.name.removeprefix(f"done-{wish}-")
        time.sleep(POLL_S)
    raise TimeoutError(f"nobody broke {wish} within {WISH_S_MAX:g} s")


def _wish(folder: Path, wish: str) -> Path:
    return folder / f"wish-{wish}"


def _done(folder: Path, wish: str, said: str) -> Path:
    return folder / f"done-{wish}-{said}"
