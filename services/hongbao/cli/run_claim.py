"""Owns which run a store belongs to: logs of one run are never served or settled by another.

A run's id is made once and lies in its folder, beside the keys and the ledger that its logs need,
and goes with them. Refuses to know where stores are.
"""

import asyncio
import contextlib
import os

import sqlalchemy as sa

from hongbao.adapters import sql
from hongbao.cli.run_dir import RunDir
from hongbao.cli.settings import ClusterStore, UpSettings
from hongbao.domain.errors import Ambiguous, Rejected, Transient
from hongbao.mint.durable import publish_bytes
from hongbao.shards.ports import Coordination, LogStore

ID_NAME = "run.id"
ID_BYTES = 16
KEY = "run"
"""Holds the id, in the log store and in coordination; created once, never changed."""


async def claim_stores(
    run: RunDir, settings: UpSettings, log_store: LogStore, coordination: Coordination
) -> None:
    """Put this run's id into both stores. Raises Rejected where another run's id is there.

    Safe to repeat. Looks into both before it writes to one.
    """
    own = settle_id(run)
    tikv, etcd = settings.tikv, settings.etcd
    _check(run, "tikv", tikv, await log_store.get(KEY.encode()) or own, own)
    _check(run, "etcd", etcd, (await coordination.read(KEY)).value or own, own)
    with contextlib.suppress(Ambiguous):  # what became of it is read back
        await log_store.create(KEY.encode(), own)
    _check(run, "tikv", tikv, await log_store.get(KEY.encode()), own)
    with contextlib.suppress(Ambiguous):
        await coordination.compare_and_put(KEY, own, revision=0)
    _check(run, "etcd", etcd, (await coordination.read(KEY)).value, own)


def claim_ledger(run: RunDir, url: str, campaign: str) -> sa.Engine:
    """Open this run's ledger, made where it is missing.

    Raises Rejected where it is another run's, Transient while the database is away.
    """
    engine = sql.open_engine(url)
    try:
        sql.prepare_schema(engine, campaign, settle_id(run).decode())
    except BaseException:
        engine.dispose()
        raise
    return engine


async def check_unclaimed(
    settings: UpSettings,
    log_store: LogStore | None,
    coordination: Coordination | None,
    own: bytes = b"",
) -> None:
    """Raise Rejected where a shared store holds another run than `own`; empty: one begins anew.

    None stands for a store that lies in the run's own folder. Writes nothing.
    """
    known = (own, None, b"")
    if settings.ledger_url:
        found_run = await asyncio.to_thread(_find_run, settings.ledger_url)
        if found_run and found_run.encode() not in known:
            raise Rejected(
                f"{settings.ledger_url} holds a run already, and this would begin another: choose "
                "another database",
                field="ledger_url",
            )
    claimed = [
        ("tikv", settings.tikv, log_store and await log_store.get(KEY.encode())),
        ("etcd", settings.etcd, coordination and (await coordination.read(KEY)).value),
    ]
    for field, store, found in claimed:
        if store is not None and found not in known:
            raise Rejected(
                f"{field}: namespace {_name(store)} holds a run already, and this would begin "
                f"another: choose another {field}.namespace",
                field=f"{field}.namespace",
            )


def _find_run(url: str) -> str | None:
    engine = sql.open_engine(url)
    try:
        return sql.find_run(engine)
    finally:
        engine.dispose()


def known_id(run: RunDir) -> bytes:
    """Return the run's id, empty before its first start."""
    path = run.path / ID_NAME
    return path.read_bytes() if path.exists() else b""


def settle_id(run: RunDir) -> bytes:
    """Return the run's id, made at its first start and durable before anybody learns it."""
    if not known_id(run):
        made = os.urandom(ID_BYTES).hex().encode()
        publish_bytes(made, run.path / f".{ID_NAME}", run.path / ID_NAME)
    return known_id(run)


def _check(
    run: RunDir, field: str, store: ClusterStore | None, found: bytes | None, own: bytes
) -> None:
    """Raise Rejected where a store belongs to another run."""
    if not found:
        raise Transient(f"{field}: it is not known yet whether the store took this run's id")
    if found == own:
        return
    if store is None:
        message = f"{run.store} holds another run than {run.path}: bring back what was there"
        raise Rejected(message, field="run_dir")
    raise Rejected(
        f"{field}: namespace {_name(store)} belongs to another run than "
        f"{run.path}: choose another {field}.namespace, or start that run from its own folder",
        field=f"{field}.namespace",
    )


def _name(store: ClusterStore) -> str:
    return store.namespace or "(the campaign id)"
