"""Owns which adapters a run's folder means; every command reaches stored state through here."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hongbao.adapters.clock import SystemClock
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.store_client import StoreClient
from hongbao.cli.late_edit import run_campaign
from hongbao.cli.run_dir import RunDir
from hongbao.cli.run_objects import run_objects
from hongbao.cli.settings import UpSettings
from hongbao.domain.campaign import Campaign
from hongbao.domain.objects import ObjectStore
from hongbao.shards.ports import Coordination, LogStore

DEFAULT_RUN = Path("out/run")


@dataclass(frozen=True)
class Stores:
    """Is everything stored of one run."""

    run: RunDir
    settings: UpSettings
    campaign: Campaign
    log_store: LogStore
    coordination: Coordination
    objects: ObjectStore
    ledger_url: str
    live: bool  # the run's own store process answers


@asynccontextmanager
async def open_stores(run_path: Path = DEFAULT_RUN) -> AsyncIterator[Stores]:
    """Open a run's stores: through its store process when that runs, else the files themselves.

    Raises NotFound when the folder holds no run.
    """
    run = RunDir(run_path.absolute())  # noqa: ASYNC240  (once, before anything waits)
    settings, _ = run.read_specs()
    campaign = run_campaign(run, settings)
    live = _answers(run.socket)
    clock = SystemClock()
    store: StoreClient | LmdbStore
    if live:
        store = StoreClient(run.socket, run.store)
    else:
        store = LmdbStore(run.store, monotonic_s=clock.monotonic_s)
        await store.start()
    try:
        yield Stores(
            run=run,
            settings=settings,
            campaign=campaign,
            log_store=store,
            coordination=store,
            objects=run_objects(run, settings),
            ledger_url=run.ledger_url(settings),
            live=live,
        )
    finally:
        await store.close()


def _answers(path: Path) -> bool:
    """Say whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
