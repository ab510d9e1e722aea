"""Owns a whole run on this machine: prepare, deploy, start every role, keep placement, drain.

`hongbao up` shows it, `hongbao demo` breaks it, the process tests check it.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import stamina

from hongbao.adapters.clock import SystemClock
from hongbao.cipher.derive import binding_key
from hongbao.cli.child_environ import objects_environ
from hongbao.cli.documents import deploy_documents, keep_placement
from hongbao.cli.late_edit import run_campaign
from hongbao.cli.prepare import Prepared, Step, prepare
from hongbao.cli.run_claim import check_unclaimed, claim_ledger, claim_stores, known_id
from hongbao.cli.run_dir import (
    ProcessSpec,
    RunDir,
    access_pods,
    check_sockets,
    hold_ports,
    plan_processes,
)
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import SharedState, connect_stores, open_clusters
from hongbao.cli.supervisor import Supervisor, role_command
from hongbao.client.gateways import Gateway
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import NotFound, Transient
from hongbao.domain.timeline import Timeline
from hongbao.shards.ports import Coordination
from hongbao.transport.admin import DrainTimes, EnvoyAdmin
from hongbao.transport.launch import Embedding, find_embedding

BINDING_KEY_VARIABLE = "HONGBAO_BINDING_KEY"
POD_EPOCH_VARIABLE = "HONGBAO_POD_EPOCH"
DRAIN_TIMES = DrainTimes(settle_s=0.2, finish_s=5.0)
EPOCH_TRIES_MAX = 10
DEPLOY_S_MAX = 30.0
"""How long a start asks again while a store gives no definite answer; elections are over sooner."""


@dataclass
class Rain:
    """Is a running campaign on this machine."""

    run: RunDir
    settings: UpSettings
    campaign: Campaign
    timeline: Timeline
    specs: tuple[ProcessSpec, ...]
    supervisor: Supervisor
    stores: SharedState
    clock: SystemClock
    embedding: Embedding

    def gateways(self) -> list[Gateway]:
        """Return where clients shake."""
        return [
            Gateway(spec.zone, self.settings.listen, spec.ports["public"])
            for spec in self.specs
            if spec.role == "access"
        ]

    def of(self, *, role: str = "", zone: str = "") -> list[ProcessSpec]:
        """Return the processes of a role, of a zone, or of both."""
        return [
            spec
            for spec in self.specs
            if (not role or spec.role == role) and (not zone or spec.zone == zone)
        ]


def prepare_run(settings: UpSettings, step: Step) -> tuple[RunDir, Campaign, Prepared]:
    """Do all that needs no process: keys, mint, verify. Raises Rejected."""
    check_sockets(settings)
    run = RunDir(settings.run_dir)
    campaign = run_campaign(run, settings)
    with contextlib.suppress(Transient):  # a store is away: it is asked again once all is minted
        asyncio.run(_check_claims(run, settings, campaign.campaign))
    return run, campaign, prepare(run, settings, campaign, step)


async def _check_claims(run: RunDir, settings: UpSettings, campaign: str) -> None:
    """Raise Rejected where a store outside the folder holds another run than it."""
    async with open_clusters(settings, campaign) as (log_store, coordination):
        await check_unclaimed(settings, log_store, coordination, known_id(run))


@contextlib.asynccontextmanager
async def rain(
    settings: UpSettings,
    run: RunDir,
    campaign: Campaign,
    prepared: Prepared,
    timeline: Timeline,
    environ: Callable[[ProcessSpec], Mapping[str, str]] | None = None,
) -> AsyncIterator[Rain]:
    """Start every role, ready when entered; drain in order when left.

    Raises Rejected, before anything is deployed, when the stores hold another run.
    `environ` says what is added to a process's environment (fault injection in tests). The caller
    holds `run.supervised()` where another supervisor could come.
    """
    clock = SystemClock()
    run.path.joinpath("sock").mkdir(parents=True, exist_ok=True)
    specs = _known_specs(run, settings) or plan_processes(settings)
    run.write_specs(settings, specs)
    with hold_ports(specs):
        stores = await connect_stores(run, settings, campaign.campaign)
        embedding = find_embedding()
        supervisor = _supervise(run, settings, prepared, stores, embedding, environ, clock)
        up = Rain(
            run, settings, campaign, timeline, tuple(specs), supervisor, stores, clock, embedding
        )
        pods = access_pods(specs)
        placement = None
        try:
            await supervisor.start(up.of(role="store"))
            again = stamina.retry_context(
                on=Transient, attempts=None, timeout=DEPLOY_S_MAX, wait_max=1.0
            )
            async for attempt in again:
                with attempt:
                    await _deploy(up, prepared)
            await supervisor.start([*up.of(role="redeem"), *up.of(role="settle")])
            await supervisor.start(up.of(role="access"))
            placement = asyncio.create_task(
                keep_placement(stores.coordination, campaign.campaign, pods, clock.wall_ms)
            )
            yield up
        finally:
            if placement is not None:
                placement.cancel()
            # Upstream first: a gateway stops taking shakes, then opens end, then they are credited.
            for role in ("access", "redeem", "settle", "store"):
                await supervisor.drain(up.of(role=role))
            await stores.close()


def _supervise(
    run: RunDir,
    settings: UpSettings,
    prepared: Prepared,
    stores: SharedState,
    embedding: Embedding,
    environ: Callable[[ProcessSpec], Mapping[str, str]] | None,
    clock: SystemClock,
) -> Supervisor:
    """Return what starts, asks and drains the processes of a run."""

    async def environment(spec: ProcessSpec) -> Mapping[str, str]:
        secrets = (
            await _pod_secrets(stores.coordination, prepared.token_root, spec) if spec.pod else {}
        )
        reach = objects_environ(os.environ, settings, spec.role)
        return {**reach, **(environ(spec) if environ else {}), **secrets}

    async def ready(spec: ProcessSpec) -> bool:
        return await _is_ready(run, spec, embedding)

    async def drain(spec: ProcessSpec) -> None:
        if embedding.library and "admin" in spec.ports:
            await _drain_envoy(run, spec)

    return Supervisor(
        run,
        environ=environment,
        ready=ready,
        drain=drain,
        monotonic_s=clock.monotonic_s,
        command=role_command,
    )


async def _deploy(up: Rain, prepared: Prepared) -> None:
    """Make the stores this run's own, then write its documents. Safe to repeat."""
    coordination = up.stores.coordination
    await claim_stores(up.run, up.settings, up.stores.log_store, coordination)
    with contextlib.suppress(Transient):  # opens need no ledger; settle asks again when it is back
        url = up.run.ledger_url(up.settings)
        ledger = await asyncio.to_thread(claim_ledger, up.run, url, up.campaign.campaign)
        ledger.dispose()
    await deploy_documents(
        coordination,
        up.campaign.campaign,
        up.timeline,
        prepared.active_scheme_number,
        prepared.plans,
        access_pods(up.specs),
        rehearsal=up.timeline.slots != up.campaign.slots,
        now_ms=up.clock.wall_ms(),
    )


def _known_specs(run: RunDir, settings: UpSettings) -> list[ProcessSpec] | None:
    """Return the processes of an earlier start with the same settings: pods keep their numbers."""
    try:
        known, specs = run.read_specs()
    except NotFound:
        return None
    return specs if known == settings else None


async def _pod_secrets(
    coordination: Coordination, token_root: bytes, spec: ProcessSpec
) -> Mapping[str, str]:
    """Raise the pod's epoch and derive its binding key: all it may know of the token root."""
    key = f"pods/{spec.pod}/epoch"
    for _ in range(EPOCH_TRIES_MAX):
        known = await coordination.read(key)
        epoch = int(known.value or b"0") + 1
        if await coordination.compare_and_put(key, str(epoch).encode(), revision=known.revision):
            secret = binding_key(token_root, spec.pod, epoch)
            return {BINDING_KEY_VARIABLE: secret.hex(), POD_EPOCH_VARIABLE: str(epoch)}
    raise Transient(f"{key} keeps changing: is another supervisor running?")


async def _is_ready(run: RunDir, spec: ProcessSpec, embedding: Embedding) -> bool:
    """Say whether a process serves: Envoy by its admin, the others by their metrics port."""
    if spec.role == "store":
        return await _listens(str(run.socket))
    if embedding.library and "admin" in spec.ports:
        admin = EnvoyAdmin(str(run.socket_of(spec.process, "admin")))
        try:
            return await admin.is_ready()
        finally:
            await admin.close()
    return await _listens(spec.ports["metrics"])


async def _listens(where: str | int) -> bool:
    try:
        if isinstance(where, str):
            _, writer = await asyncio.open_unix_connection(where)
        else:
            _, writer = await asyncio.open_connection("127.0.0.1", where)
    except OSError:
        return False
    writer.close()
    return True


async def _drain_envoy(run: RunDir, spec: ProcessSpec) -> None:
    admin = EnvoyAdmin(str(run.socket_of(spec.process, "admin")))
    try:
        await admin.drain(DRAIN_TIMES)
    except Transient:
        return  # it died before it could drain: SIGTERM comes next
    finally:
        await admin.close()
