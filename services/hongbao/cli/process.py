"""Owns what every process of a run needs: its spec, stores, logs, membership, metrics."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from stamina.instrumentation import RetryDetails, RetryHook, set_on_retry_hooks

from hongbao.adapters.clock import SystemClock
from hongbao.cli.late_edit import run_campaign
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.run_objects import run_objects
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import SharedState, connect_stores
from hongbao.domain.campaign import Campaign
from hongbao.domain.errors import NotFound
from hongbao.domain.ids import CampaignId
from hongbao.domain.manifest import Manifest, manifest_name, parse_manifest, signature_name
from hongbao.domain.objects import ObjectStore
from hongbao.shards.member import Member

RETRY_LINE_S: Final = 1.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Process:
    """Is one process of a run, from inside."""

    run: RunDir
    settings: UpSettings
    spec: ProcessSpec
    specs: tuple[ProcessSpec, ...]
    clock: SystemClock

    @property
    def name(self) -> str:
        return self.spec.process

    @property
    def campaign(self) -> Campaign:
        return run_campaign(self.run, self.settings)

    async def connect(self) -> SharedState:
        """Return this process's way to the logs and to coordination."""
        return await connect_stores(self.run, self.settings, self.campaign.campaign)

    def objects(self) -> ObjectStore:
        return run_objects(self.run, self.settings)

    def socket(self, purpose: str) -> Path:
        """Return the path of one of this process's Unix sockets."""
        return self.run.socket_of(self.name, purpose)

    def member(self) -> Member:
        """Return what others may know of this process."""
        internal = self.spec.ports.get("internal")
        address = f"127.0.0.1:{internal}" if internal else ""
        return Member(self.name, self.spec.zone, address, self.spec.role)


def find_process(run_path: Path, name: str) -> Process:
    """Read a process's place in its run. Raises NotFound."""
    run = RunDir(run_path)
    settings, specs = run.read_specs()
    spec = next((spec for spec in specs if spec.process == name), None)
    if spec is None:
        names = ", ".join(spec.process for spec in specs)
        raise NotFound(f"{run_path} has no process {name!r}; it has {names}", field="process")
    return Process(run, settings, spec, tuple(specs), SystemClock())


def set_up_logs(process: str) -> None:
    """Write JSON lines to standard error, which is the process's log file."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[os.environ.get("HONGBAO_LOG", "INFO").upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    set_on_retry_hooks([tell_retries(SystemClock().monotonic_s)])


def tell_retries(monotonic_s: Callable[[], float]) -> RetryHook:
    """Say that calls are repeated, once a second with the count: a backend that is down fails all.

    Stamina's own hook writes a line with a traceback for each.
    """
    told_s, suppressed = -RETRY_LINE_S, 0

    def tell(details: RetryDetails) -> None:
        nonlocal told_s, suppressed
        if monotonic_s() < told_s + RETRY_LINE_S:
            suppressed += 1
            return
        reason, retry = repr(details.caused_by), details.retry_num
        log.warning("call_repeated", reason=reason, retry=retry, suppressed=suppressed)
        told_s, suppressed = monotonic_s(), 0

    return tell


async def read_manifests(
    objects: ObjectStore, campaign: CampaignId, verify_key: bytes
) -> list[Manifest]:
    """Return the campaign's verified manifests, by scheme number. Raises Corrupt."""
    names = await objects.names(f"{campaign}/")
    numbers = sorted(
        int(parts[1])
        for name in names
        if len(parts := name.split("/")) == 3 and parts[2] == "manifest.json"
    )
    return [
        parse_manifest(
            await objects.get(manifest_name(campaign, number)),
            await objects.get(signature_name(campaign, number)),
            verify_key,
        )
        for number in numbers
    ]
