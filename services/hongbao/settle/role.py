"""Owns how the parts of settlement fit together in one process; refuses to choose adapters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hongbao.domain.manifest import Manifest
from hongbao.domain.objects import ObjectStore
from hongbao.settle.host import SettleHost, SettleMember
from hongbao.settle.metrics import SettleMetrics
from hongbao.settle.pause import PauseSwitch
from hongbao.settle.payout import Payout
from hongbao.settle.ports import Ledger, Sink, TransferState
from hongbao.settle.rules import LoadSchemes, Rules
from hongbao.settle.run import Settlement
from hongbao.settle.settler import Settler
from hongbao.shards.ports import Coordination, LogStore


class Clock(Protocol):
    """Reads wall and monotonic time."""

    def wall_ms(self) -> int: ...

    def monotonic_s(self) -> float: ...


@dataclass(frozen=True)
class SettlePorts:
    """Is everything outside that a settle process works with."""

    log_store: LogStore
    coordination: Coordination
    ledger: Ledger
    sink: Sink | None  # None: the ledger itself is the payment, claims are credited as posted
    load_schemes: LoadSchemes
    clock: Clock


def make_host(
    ports: SettlePorts,
    campaign: str,
    member: SettleMember,
    shards: Iterable[int],
    metrics: SettleMetrics | None = None,
) -> SettleHost:
    """Return the host that settles its share of the claims shards; `await host.run()`."""
    rules = Rules(ports.coordination, campaign, ports.load_schemes)
    wall_ms = ports.clock.wall_ms
    pause = PauseSwitch(ports.coordination, member.process, wall_ms)
    state = TransferState.PENDING if ports.sink else TransferState.CREDITED

    def settlement_of(shard: int) -> Settlement:
        payout = None
        if ports.sink is not None:
            payout = Payout(shard, ports.ledger, ports.sink, wall_ms=wall_ms, campaign=campaign)
        return Settlement(
            ports.log_store,
            Settler(shard, ports.ledger, state=state, wall_ms=wall_ms),
            rules,
            payout=payout,
            paused=pause.paused,
            counts=metrics,
        )

    return SettleHost(ports.coordination, member, shards, settlement_of, ports.clock.monotonic_s)


async def fetch_amounts(
    objects: ObjectStore, manifests: Sequence[Manifest], cache: Path
) -> list[tuple[Manifest, Path]]:
    """Bring the amount tables of these schemes to this machine, once each."""
    schemes, missing = _cached(manifests, cache)
    for name, path in missing:
        await objects.fetch(name, path)
    return schemes


def shards_of(manifests: Iterable[Manifest]) -> list[int]:
    """Return the claims shards that the ticket files of these schemes belong to."""
    return sorted({int(file.claims_shard) for one in manifests for file in one.files})


def _cached(
    manifests: Sequence[Manifest], cache: Path
) -> tuple[list[tuple[Manifest, Path]], list[tuple[str, Path]]]:
    cache.mkdir(parents=True, exist_ok=True)
    schemes = [(one, cache / f"{one.amounts.sha256}.bin") for one in manifests]
    return schemes, [(one.amounts.name, path) for one, path in schemes if not path.exists()]
