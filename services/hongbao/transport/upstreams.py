"""Owns where routed services live: clusters, zone priorities, health, ejection, retries.

Retries and ejection are Envoy's: instances that answer badly or slowly lose their load to the
others (R26), and when most are bad the gateway refuses by itself (R27).
"""

from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

TYPE: Final = "type.googleapis.com/"
INTERNAL_CLUSTER: Final = "internal"
READY_PATH: Final = "/readyz"
STREAMS_PER_CONNECTION_MAX: Final = 32
"""Calls at once on an HTTP/2 connection, at both of its ends: a gateway that does not know the
limit of its upstream floods each new connection before the upstream's settings arrive, and what
is refused then passes the retry budget (1-4 % of a burst of 256 opens)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Is one process that serves an upstream."""

    address: str
    port: int
    zone: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """Is a cluster of equal processes and the services that they answer.

    All public calls are safe to repeat, so a call that failed as UNAVAILABLE goes to another
    process, `retries_max` times and within `retry_budget_percent` of the calls in flight.
    """

    cluster: str
    services: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    retries_max: int = 2
    retry_budget_percent: float = 20.0
    try_timeout_s: float = 3.0
    calls_max: int = 4096
    embedded: bool = True
    """Served by an Envoy like ours, which is asked for READY_PATH; else the gRPC health service."""


def build_clusters(
    zone: str, upstreams: tuple[Upstream, ...], internal_path: str | None
) -> list[Json]:
    """Build all clusters, the process's own grpcio server included."""
    clusters = [build_cluster(zone, upstream) for upstream in upstreams]
    if internal_path is not None:
        address = {"endpoint": {"address": {"pipe": {"path": internal_path}}}}
        clusters.append(
            {
                "name": INTERNAL_CLUSTER,
                "type": "STATIC",
                "connect_timeout": "0.5s",
                "typed_extension_protocol_options": http2(),
                "load_assignment": {
                    "cluster_name": INTERNAL_CLUSTER,
                    "endpoints": [{"lb_endpoints": [address]}],
                },
            }
        )
    return clusters


def build_cluster(zone: str, upstream: Upstream) -> Json:
    """Build one cluster: own zone first, the others only when it cannot carry the load."""
    return {
        "name": upstream.cluster,
        "type": "STATIC",
        "connect_timeout": "0.5s",
        "lb_policy": "LEAST_REQUEST",
        "typed_extension_protocol_options": http2(),
        "load_assignment": {
            "cluster_name": upstream.cluster,
            "endpoints": build_localities(zone, upstream.endpoints),
        },
        "health_checks": [build_health_check(upstream.embedded)],
        # A call is an error only after its retries; one slow instance must not take the rest.
        "outlier_detection": {
            "consecutive_gateway_failure": 5,
            "enforcing_consecutive_gateway_failure": 100,
            "consecutive_5xx": 10,
            "interval": "1s",
            "base_ejection_time": "3s",
            "max_ejection_percent": 50,
            # A process can pass its probe and fail its calls: only time brings it back.
            "successful_active_health_check_uneject_host": False,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": upstream.calls_max,
                    "max_pending_requests": upstream.calls_max,
                    "retry_budget": {
                        "budget_percent": {"value": upstream.retry_budget_percent},
                        "min_retry_concurrency": 10,
                    },
                }
            ]
        },
        # Load beyond what the good ones carry is refused (circuit breakers, R27), not sent to
        # bad ones; only when every probe fails is it the probes that are not believed.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
    }


def build_health_check(embedded: bool) -> Json:
    """Build the probe of one endpoint: gone after three misses, back after one answer.

    It finds processes that hang; dead ones are found by their calls, at once. Shorter times
    take processes away that only wait for a busy core.
    """
    ready = {"http_health_check": {"path": READY_PATH, "codec_client_type": "HTTP2"}}
    return {
        "timeout": "1s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        **(ready if embedded else {"grpc_health_check": {}}),
    }


def build_localities(zone: str, endpoints: tuple[Endpoint, ...]) -> list[Json]:
    """Group endpoints by zone; priority 0 is our own, the rest share priority 1."""
    zones = sorted({endpoint.zone for endpoint in endpoints}, key=lambda name: (name != zone, name))
    own = bool(zones) and zones[0] == zone
    return [
        {
            "locality": {"zone": name},
            "priority": 0 if name == zone or not own else 1,
            "load_balancing_weight": sum(endpoint.zone == name for endpoint in endpoints),
            "lb_endpoints": [
                {"endpoint": {"address": socket_address(endpoint)}}
                for endpoint in endpoints
                if endpoint.zone == name
            ],
        }
        for name in zones
    ]


def socket_address(endpoint: Endpoint) -> Json:
    """Build an address that is connected to."""
    return {"socket_address": {"address": endpoint.address, "port_value": endpoint.port}}


def http2() -> Json:
    """Build the protocol options of a cluster that speaks gRPC."""
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        kind: {
            "@type": TYPE + kind,
            "explicit_http_config": {
                "http2_protocol_options": {
                    "max_concurrent_streams": STREAMS_PER_CONNECTION_MAX,
                    "connection_keepalive": {"interval": "5s", "timeout": "2s"},
                }
            },
        }
    }


def retry_policy(upstream: Upstream) -> Json:
    """Build the retries of a route: in another zone if there is one, at another host; bounded."""
    predicate = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    priority = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    return {
        "retry_on": "unavailable,connect-failure,refused-stream,reset",
        "num_retries": upstream.retries_max,
        "per_try_timeout": f"{upstream.try_timeout_s:.3f}s",
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        # Each draws a host anew, and the last one is taken even if the call has failed there.
        "host_selection_retry_max_attempts": 10,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": TYPE + predicate},
            }
        ],
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {"@type": TYPE + priority, "update_frequency": 1},
        },
    }
