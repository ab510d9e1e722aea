"""Owns what a settle process shows to Prometheus; few and meaningful (R29)."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from hongbao.settle.settler import Settled


class SettleMetrics:
    """Is a settle.run.Counts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._claims = Counter(
            "hongbao_settle_claims",
            "Claims read from the log, by what became of them",
            ("outcome",),
            registry=registry,
        )
        self._lag_blocks = Gauge(
            "hongbao_settle_lag_blocks",
            "Applied blocks of the claims log that are not settled yet",
            ("shard",),
            registry=registry,
        )
        self._payouts = Counter(
            "hongbao_settle_payouts",
            "Answers of the payment sink",
            ("answer",),
            registry=registry,
        )

    def settled(self, shard: int, settled: Settled, lag_blocks: int) -> None:
        """Count one posting."""
        self._claims.labels("posted").inc(settled.transfers)
        self._claims.labels("repeated").inc(settled.repeated)
        self._claims.labels("quarantined").inc(settled.quarantined)
        self._lag_blocks.labels(str(shard)).set(lag_blocks)

    def paid_out(self, shard: int, answer: str, transfers: int) -> None:
        """Count answers of one kind."""
        self._payouts.labels(answer).inc(transfers)
