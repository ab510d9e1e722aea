"""Owns what a gateway's Envoy knows and its Python does not: how routed calls ended for callers.

A process that answers UNAVAILABLE may be saved by a retry; only what the caller gets after all
retries is a final system failure (R29).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import httpx
from google.rpc import code_pb2
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hongbao.transport.errors import Outcome

Statistics = Callable[[], Mapping[str, int]]

SCRAPE_S_MAX: Final = 2.0
PATTERN: Final = (
    r"\.grpc\..*\.\d+$|^http\.public\.downstream_(cx|rq)_active$"
    r"|\.upstream_rq_retry$|\.outlier_detection\.ejections_active$"
)
SYSTEM_CODES: Final = {
    code_pb2.UNKNOWN,
    code_pb2.DEADLINE_EXCEEDED,
    code_pb2.INTERNAL,
    code_pb2.UNAVAILABLE,
    code_pb2.DATA_LOSS,
}
# cluster.<cluster>.grpc.<service>.<method>.<code>; a service's name has dots of its own
CALL: Final = re.compile(
    r"cluster\.(?:[^.]+)\.grpc\.(?P<service>.+)\.(?P<method>\w+)\.(?P<code>\d+)"
)


def outcome_of(code: int) -> Outcome:
    """Return the class of a gRPC code that a caller got."""
    if code == code_pb2.OK:
        return Outcome.OK
    if code == code_pb2.RESOURCE_EXHAUSTED:
        return Outcome.SHED
    return Outcome.SYSTEM if code in SYSTEM_CODES else Outcome.LOGICAL


def read_admin(admin_path: str) -> Statistics:
    """Return a reader of the statistics of the Envoy behind `admin_path`; {} while it is away."""

    def read() -> Mapping[str, int]:
        wire = httpx.HTTPTransport(uds=admin_path)
        try:
            with httpx.Client(transport=wire, timeout=SCRAPE_S_MAX) as client:
                text = client.get("http://envoy/stats", params={"filter": PATTERN}).text
        except httpx.HTTPError:
            return {}
        lines = (line.rpartition(": ") for line in text.splitlines())
        return {name: int(value) for name, _, value in lines if value.isdigit()}

    return read


class GatewayMetrics(Collector):
    """Collects from Envoy when somebody scrapes."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def describe(self) -> Iterable[Metric]:
        """Name the families, so that registering does not ask an Envoy that is not up yet."""
        return families({})

    def collect(self) -> Iterable[Metric]:
        """Yield the families; called by the scraper's thread."""
        return families(self._statistics())


def families(statistics: Mapping[str, int]) -> list[Metric]:
    """Build the metric families of one reading."""
    final = CounterMetricFamily(
        "hongbao_gateway_calls",
        "Routed calls as callers saw them end, after all retries (R29)",
        labels=("method", "outcome"),
    )
    counts: Counter[tuple[str, str]] = Counter()
    for name, value in statistics.items():
        if found := CALL.fullmatch(name):
            outcome = outcome_of(int(found["code"])).name.lower()
            counts[f"/{found['service']}/{found['method']}", outcome] += value
    for labels, value in sorted(counts.items()):
        final.add_metric(labels, value)
    retries = CounterMetricFamily("hongbao_gateway_retries", "Tries beyond the first")
    retries.add_metric((), total(statistics, ".upstream_rq_retry"))
    gauges = {
        "connections": ("Open connections of callers", ".downstream_cx_active"),
        "calls_in_flight": ("Calls being answered", ".downstream_rq_active"),
        "ejected": ("Processes without load because they fail (R26)", ".ejections_active"),
    }
    return [
        final,
        retries,
        *(
            GaugeMetricFamily(f"hongbao_gateway_{name}", text, value=total(statistics, suffix))
            for name, (text, suffix) in gauges.items()
        ),
    ]


def total(statistics: Mapping[str, int], suffix: str) -> int:
    """Sum the statistics whose names end alike."""
    return sum(value for name, value in statistics.items() if name.endswith(suffix))
