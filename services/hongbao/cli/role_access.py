"""Owns how an access process is put together from its place in a run."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

import structlog

from hongbao.access.limits import AccessLimits
from hongbao.access.pod import AccessPod, PodIdentity, PodKeys, PodStores
from hongbao.cli.prepare import role_keyring
from hongbao.cli.process import Process
from hongbao.cli.rain import BINDING_KEY_VARIABLE, POD_EPOCH_VARIABLE
from hongbao.cli.serving import StartedRole
from hongbao.cli.stores import SharedState
from hongbao.domain.errors import Rejected
from hongbao.shards.member import keep_member

EXIT_SUPERSEDED: Final = 76
SUPERSEDED_LOOK_S: Final = 0.5
SUPERSEDED_DRAIN_S_MAX: Final = 3.0

log = structlog.get_logger()


async def start_access(process: Process, stores: SharedState) -> StartedRole:
    """Start the pod; it serves what its orders say once this returns."""
    campaign = process.campaign
    pod = AccessPod(
        PodIdentity(campaign.campaign, process.name, process.spec.pod, _pod_epoch()),
        _pod_keys(process),
        PodStores(
            process.objects(),
            stores.log_store,
            stores.coordination,
            process.run.cache(process.name),
        ),
        wall_ms=process.clock.wall_ms,
        monotonic_s=process.clock.monotonic_s,
        limits=replace(AccessLimits(), user_packets_max=campaign.per_user_packets),
        exposure_weights={one.index: one.exposure_weight for one in campaign.sponsors},
    )
    ttl_s, monotonic_s = process.settings.lease_ttl_s, process.clock.monotonic_s
    member = asyncio.create_task(
        keep_member(stores.coordination, process.member(), ttl_s=ttl_s, monotonic_s=monotonic_s)
    )
    await pod.start()
    leaving = asyncio.create_task(leave_when_superseded(pod, os._exit))

    async def drain() -> None:
        leaving.cancel()
        member.cancel()
        await pod.drain()

    def counters() -> Mapping[str, int]:
        counts = pod.counts()
        outcomes = {f"shakes_{name}": number for name, number in counts.outcomes.items()}
        return outcomes | {
            "issued": counts.issued,
            "shakes_refused": counts.shakes_refused,
            "residue": counts.residue,
            "remaining": counts.remaining,
            "files_here": counts.files_here,
            "files_active": counts.files_active,
            "files_refused": counts.files_refused,
        }

    return StartedRole(pod.methods, drain, counters)


class Supersedable(Protocol):
    """Is a pod as far as its end is concerned."""

    @property
    def superseded(self) -> bool: ...

    async def drain(self) -> None: ...


async def leave_when_superseded(pod: Supersedable, end: Callable[[int], object]) -> None:
    """End the process once a later start of its pod is known, so that it is started anew.

    A superseded pod issues nothing for ever: as a living process nobody would replace it. `end`
    is `os._exit`, because inside Envoy no exception ends the process.
    """
    while not pod.superseded:  # noqa: ASYNC110  (the pod learns it from a watch, not an event)
        await asyncio.sleep(SUPERSEDED_LOOK_S)
    log.error("pod_superseded", exit_status=EXIT_SUPERSEDED)
    try:
        async with asyncio.timeout(SUPERSEDED_DRAIN_S_MAX):
            await pod.drain()  # what it reserved is left to no one
    except Exception:
        log.exception("superseded_pod_not_drained")
    end(EXIT_SUPERSEDED)


def _pod_keys(process: Process) -> PodKeys:
    keyring = role_keyring(process.run, "access")
    binding_key = bytes.fromhex(os.environ.pop(BINDING_KEY_VARIABLE, ""))
    if len(binding_key) != 32:
        raise Rejected("must be 64 hexadecimal digits", field=BINDING_KEY_VARIABLE)
    return PodKeys(
        binding_key=binding_key,
        session_key=keyring.session_key,
        verify_key=keyring.verify_key,
        jwks=json.loads(process.run.jwks.read_bytes()),
    )


def _pod_epoch() -> int:
    text = os.environ.get(POD_EPOCH_VARIABLE, "")
    if not text.isdecimal() or int(text) < 1:
        raise Rejected(f"{text!r} is not a pod epoch", field=POD_EPOCH_VARIABLE)
    return int(text)
