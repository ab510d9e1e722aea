"""Owns what a process counts about its calls; refuses to count per user, token or packet.

Few and meaningful (R29): calls by method and outcome, latency by method. Counting is two list
writes on the shake path; Prometheus text is made when somebody scrapes.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hongbao.transport.admission import KEYS, Admission
from hongbao.transport.errors import Outcome

LATENCY_BOUNDS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip


class MethodCounts:
    """Is what one method has seen; written by the loop thread only."""

    __slots__ = ("buckets", "outcomes", "path", "sum_s")

    def __init__(self, path: str) -> None:
        self.path = path
        self.outcomes = [0] * len(Outcome)
        self.buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def count(self, outcome: int, latency_s: float) -> None:
        """Count one finished call."""
        self.outcomes[outcome] += 1
        self.buckets[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1
        self.sum_s += latency_s


class CallMetrics(Collector):
    """Collects the counts of every method of one process."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodCounts] = {}
        self._admission: Admission | None = None

    def method(self, path: str) -> MethodCounts:
        """Return the counts of `path`, made at the first call."""
        return self._methods.setdefault(path, MethodCounts(path))

    def watch(self, admission: Admission) -> None:
        """Tell of the process's admission too."""
        self._admission = admission

    def collect(self) -> Iterable[Metric]:
        """Yield the families; called by the scraper's thread."""
        calls = CounterMetricFamily(
            "hongbao_calls",
            "Finished calls by method and outcome (R29); system is what our callers retry",
            labels=("method", "outcome"),
        )
        latency = HistogramMetricFamily(
            "hongbao_call_latency_seconds",
            "From the request's arrival in this process to its answer",
            labels=("method",),
        )
        for counts in list(self._methods.values()):
            for outcome in Outcome:
                calls.add_metric((counts.path, outcome.name.lower()), counts.outcomes[outcome])
            latency.add_metric((counts.path,), cumulative(counts.buckets), counts.sum_s)
        yield calls
        yield latency
        if self._admission is not None:
            yield GaugeMetricFamily(
                "hongbao_admitted_part",
                "How far the admission threshold is open: 1 admits every priority (R25)",
                value=self._admission.threshold / KEYS,
            )
            yield GaugeMetricFamily(
                "hongbao_queue_seconds",
                "Least queueing time in the last window: the standing queue",
                value=self._admission.queue_s,
            )


def cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Turn counts per bucket to Prometheus's cumulative ones."""
    pairs, total = [], 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), buckets, strict=True):
        total += count
        pairs.append((bound, float(total)))
    return pairs


def serve_metrics(
    address: str, port: int, registry: CollectorRegistry = REGISTRY
) -> tuple[WSGIServer, threading.Thread]:
    """Serve `/metrics` from a daemon thread; shut it down with `server.shutdown()`."""
    return start_http_server(port, addr=address, registry=registry)
