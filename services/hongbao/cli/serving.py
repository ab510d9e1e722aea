"""Owns what the public roles have in common: from a started role to a served process.

A role is served inside Envoy (`cli/embedded.py`) or, where no libpython is found, by grpcio.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hongbao.cli.process import Process
from hongbao.cli.stores import SharedState
from hongbao.shards.wire import unix_target
from hongbao.transport.admission import Admission
from hongbao.transport.dispatcher import Dispatcher, Method
from hongbao.transport.gateway_metrics import GatewayMetrics, read_admin
from hongbao.transport.grpc_server import Extra, GrpcServer, start_grpc_server
from hongbao.transport.metrics import CallMetrics, serve_metrics

if TYPE_CHECKING:
    from hongbao.adapters.etcd_facts import WriteCounts

log = structlog.get_logger()


@dataclass(frozen=True)
class StartedRole:
    """Is a role that can answer calls."""

    methods: Sequence[Method]
    drain: Callable[[], Awaitable[None]]
    counters: Callable[[], Mapping[str, int]]
    internal: Sequence[Extra] = field(default_factory=tuple)
    """Services for other processes, on the process's internal port."""


StartRole = Callable[[Process, SharedState], Awaitable[StartedRole]]


class RoleCounters(Collector):
    """Shows a role's own counters as `hongbao_<role>_<name>`."""

    def __init__(self, role: str, counters: Callable[[], Mapping[str, int]]) -> None:
        self._role = role
        self._counters = counters

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """Return each counter; those that also fall are gauges."""
        families: list[CounterMetricFamily | GaugeMetricFamily] = []
        for name, value in self._counters().items():
            full = f"hongbao_{self._role}_{name}"
            falls = name in ("in_flight", "remaining") or name.startswith("files_")
            kind = GaugeMetricFamily if falls else CounterMetricFamily
            families.append(kind(full, name.replace("_", " "), value=float(value)))
        return families


class EtcdWrites(Collector):
    """Shows what this process asked etcd to write, by purpose: nothing of it is per call."""

    def __init__(self, writes: "WriteCounts") -> None:
        self._writes = writes

    def collect(self) -> list[CounterMetricFamily]:
        """Return the counters; keep-alives of leases are counted but are no writes to etcd."""
        family = CounterMetricFamily(
            "hongbao_etcd_requests", "requests that write, or renew", labels=["purpose", "kind"]
        )
        for labels, count in self._writes.by_purpose().items():
            family.add_metric(labels, float(count))
        return [family]


class Serving:
    """Is one process that serves one role; `start` once, `stop` once."""

    def __init__(self, process: Process, start_role: StartRole) -> None:
        self._process = process
        self._start_role = start_role
        self.dispatcher = Dispatcher((), Admission(), CallMetrics())
        self._stores: SharedState | None = None
        self._role: StartedRole | None = None
        self._servers: list[GrpcServer] = []

    async def start(self) -> None:
        """Start the role, then let others reach it."""
        process = self._process
        self._stores = await process.connect()
        role = self._role = await self._start_role(process, self._stores)
        self.dispatcher.add(role.methods)
        services = sorted({method.path.split("/")[1] for method in role.methods})
        unix = process.socket("internal")
        unix.unlink(missing_ok=True)
        self._servers.append(await start_grpc_server(None, unix_target(unix), services=services))
        if role.internal:
            address = f"127.0.0.1:{process.spec.ports['internal']}"
            self._servers.append(await start_grpc_server(None, address, extra=role.internal))
        REGISTRY.register(self.dispatcher.metrics)
        REGISTRY.register(RoleCounters(process.spec.role, role.counters))
        if self._stores.etcd_writes is not None:
            REGISTRY.register(EtcdWrites(self._stores.etcd_writes))
        if process.spec.role == "access":
            REGISTRY.register(GatewayMetrics(read_admin(str(process.socket("admin")))))
        serve_metrics("127.0.0.1", process.spec.ports["metrics"])
        log.info("role_started", role=process.spec.role, zone=process.spec.zone)

    async def stop(self) -> None:
        """Finish what the role has under way; calls no longer arrive."""
        if self._role is not None:
            await self._role.drain()
            log.info("role_drained", **self._role.counters())
        for server in self._servers:
            await server.drain(grace_s=1.0)
        if self._stores is not None:
            await self._stores.close()


async def serve_until_signal(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> None:
    """Start, wait for SIGTERM or SIGINT, stop."""
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    await start()
    await done.wait()
    await stop()
