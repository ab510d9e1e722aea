"""Owns which adapters a run's settings mean; all that is stored is reached through here."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hongbao.adapters.clock import SystemClock
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.store_client import StoreClient
from hongbao.cli.late_edit import run_campaign
from hongbao.cli.run_dir import RunDir
from hongbao.cli.run_objects import run_objects
from hongbao.cli.settings import ClusterStore, EtcdSettings, TikvSettings, UpSettings
from hongbao.domain.campaign import Campaign
from hongbao.domain.objects import ObjectStore
from hongbao.shards.ports import Coordination, LogStore

if TYPE_CHECKING:
    from hongbao.adapters.etcd import EtcdCoordination
    from hongbao.adapters.etcd_facts import WriteCounts
    from hongbao.adapters.tikv import TikvStore
    from hongbao.adapters.tikv_txn import TikvTxnStore

DEFAULT_RUN = Path("out/run")

Close = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class SharedState:
    """Is a process's way to what all processes of a run share: logs, and leases and facts."""

    log_store: LogStore
    coordination: Coordination
    close: Close
    etcd_writes: "WriteCounts | None" = None
    """What this process asked etcd to write, where it talks with one."""


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
    live: bool
    """Processes of the run are up."""


async def connect_stores(
    run: RunDir, settings: UpSettings, campaign: str, *, offline: bool = False
) -> SharedState:
    """Open TiKV and etcd where the settings name them, else the run's own store.

    Connections come and go by themselves afterwards. `offline`: the run's store process is down,
    so its files are opened instead. Raises Rejected when a client library is missing.
    """
    async with AsyncExitStack() as opening:
        tikv, etcd = _open_clusters(opening, settings, campaign)
        log_store: LogStore | None = tikv
        coordination: Coordination | None = etcd
        if settings.embedded:
            store = await _open_embedded(run, offline=offline)
            opening.push_async_callback(store.close)
            log_store, coordination = log_store or store, coordination or store
        assert log_store is not None
        assert coordination is not None
        writes = None if etcd is None else etcd.writes
        return SharedState(log_store, coordination, opening.pop_all().aclose, writes)


@asynccontextmanager
async def open_clusters(
    settings: UpSettings, campaign: str
) -> AsyncIterator[tuple[LogStore | None, Coordination | None]]:
    """Open the stores that other runs may share; None for what lies in the run's own folder."""
    async with AsyncExitStack() as opening:
        yield _open_clusters(opening, settings, campaign)


@asynccontextmanager
async def open_stores(run_path: Path = DEFAULT_RUN) -> AsyncIterator[Stores]:
    """Open a run's stores: where it runs through its processes, else as they lie.

    Raises NotFound when the folder holds no run.
    """
    run = RunDir(run_path.absolute())  # noqa: ASYNC240  (once, before anything waits)
    settings, _ = run.read_specs()
    campaign = run_campaign(run, settings)
    answers = _answers(run.socket)
    shared = await connect_stores(run, settings, campaign.campaign, offline=not answers)
    try:
        yield Stores(
            run=run,
            settings=settings,
            campaign=campaign,
            log_store=shared.log_store,
            coordination=shared.coordination,
            objects=run_objects(run, settings),
            ledger_url=run.ledger_url(settings),
            live=answers if settings.embedded else await _members_live(shared.coordination),
        )
    finally:
        await shared.close()


def _open_clusters(
    opening: AsyncExitStack, settings: UpSettings, campaign: str
) -> "tuple[TikvStore | TikvTxnStore | None, EtcdCoordination | None]":
    tikv, etcd = None, None
    if settings.tikv is not None:
        tikv = _open_tikv(settings.tikv, campaign)
        opening.push_async_callback(tikv.close)
    if settings.etcd is not None:
        etcd = _open_etcd(settings.etcd, campaign)
        opening.push_async_callback(etcd.close)
    return tikv, etcd


def _open_tikv(settings: TikvSettings, campaign: str) -> "TikvStore | TikvTxnStore":
    """Open the cluster; its client is loaded only here, because that takes a while."""
    namespace = _namespace(settings, campaign).encode()
    if settings.api == "txn":
        from hongbao.adapters.tikv_txn import TikvTxnStore

        return TikvTxnStore(settings.pd, namespace=namespace)
    from hongbao.adapters.tikv import TikvStore, TikvTls

    tls = TikvTls(settings.ca, settings.cert, settings.key) if settings.ca else None
    return TikvStore(settings.pd, namespace=namespace, tls=tls)


def _open_etcd(settings: EtcdSettings, campaign: str) -> "EtcdCoordination":
    from hongbao.adapters import etcd, etcd_members

    tls = etcd_members.EtcdTls(settings.ca, settings.cert, settings.key) if settings.ca else None
    namespace = _namespace(settings, campaign)
    return etcd.EtcdCoordination(
        etcd_members.EtcdSettings(settings.endpoints, namespace=namespace, tls=tls)
    )


def _namespace(settings: ClusterStore, campaign: str) -> str:
    return f"hongbao/{settings.namespace or campaign}/"


async def _open_embedded(run: RunDir, *, offline: bool) -> StoreClient | LmdbStore:
    if not offline:
        return StoreClient(run.socket, run.store)
    store = LmdbStore(run.store, monotonic_s=SystemClock().monotonic_s)
    await store.start()
    return store


async def _members_live(coordination: Coordination) -> bool:
    return bool(await coordination.read_prefix("lease/member/"))


def _answers(path: Path) -> bool:
    """Say whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
