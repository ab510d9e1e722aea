"""Owns the gateway's Envoy configuration; refuses to start processes (launch.py does).

One port takes gRPC and, at the gateway, gRPC-Web and JSON. Services of this process are answered
by Python inside Envoy; the others are routed to clusters, nearest zone first; health and reflection
go to its own grpcio server. All functions are pure: GatewayConfig in, a dict for JSON out.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, Final

from hongbao.transport import descriptors, local_reply
from hongbao.transport.upstreams import (
    INTERNAL_CLUSTER,
    READY_PATH,
    STREAMS_PER_CONNECTION_MAX,
    Upstream,
    build_clusters,
    retry_policy,
)

Json = dict[str, Any]

TYPE: Final = "type.googleapis.com/"
HTTP: Final = f"{TYPE}envoy.extensions.filters.http."
INTERNAL_SERVICES: Final = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "grpc.reflection.v1.ServerReflection",
)


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Is what one gateway process takes from outside; what is over is refused in Envoy."""

    connections_max: int = 20_000
    """Connections at once; further ones are closed unread."""
    streams_per_connection_max: int = STREAMS_PER_CONNECTION_MAX
    """HTTP/2 calls at once on a connection: the excess waits at the caller, where it is free."""
    header_kib_max: int = 16
    headers_max: int = 64
    body_bytes_max: int = 24 << 10
    """Of anything; the gRPC message in it has its own, lower limit (asgi.CallLimits)."""
    receive_timeout_s: float = 5.0
    """From the first byte of a request to its last one: slow senders are cut off."""
    call_timeout_s: float = 10.0
    idle_timeout_s: float = 60.0
    requests_per_s: int = 0
    """Token bucket over all calls; 0: none. One second's worth may come at once."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Is where the gateway's certificate chain and key lie."""

    certificate_path: str
    key_path: str


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Is all that decides the configuration of one gateway process.

    `app` is the ASGI application ("module:attribute"), `local_services` are the full names of
    the services that it answers. `internal_path` is the Unix socket of the process's own
    grpcio server, `admin_path` that of Envoy's admin interface (never a public port).
    """

    port: int
    app: str
    local_services: tuple[str, ...]
    zone: str
    admin_path: str
    address: str = "0.0.0.0"
    web: bool = True
    """Whether gRPC-Web and JSON are taken too; gateways alone call the others, in gRPC."""
    internal_path: str | None = None
    upstreams: tuple[Upstream, ...] = ()
    tls: Tls | None = None
    node: str = "gateway"
    limits: GatewayLimits = field(default_factory=GatewayLimits)


def build_gateway_config(config: GatewayConfig) -> Json:
    """Build Envoy's bootstrap as a dict that is ready for JSON."""
    return {
        "node": {"id": config.node, "cluster": "hongbao", "locality": {"zone": config.zone}},
        "admin": {"address": {"pipe": {"path": config.admin_path, "mode": 0o600}}},
        "static_resources": {
            "listeners": [build_listener(config)],
            "clusters": build_clusters(config.zone, config.upstreams, config.internal_path),
        },
        "overload_manager": build_overload_manager(config.limits),
    }


def build_overload_manager(limits: GatewayLimits) -> Json:
    """Build the limit of connections, which holds over all listeners."""
    monitor = "envoy.resource_monitors.global_downstream_max_connections"
    kind = "downstream_connections.v3.DownstreamConnectionsConfig"
    return {
        "resource_monitors": [
            {
                "name": monitor,
                "typed_config": {
                    "@type": f"{TYPE}envoy.extensions.resource_monitors.{kind}",
                    "max_active_downstream_connections": limits.connections_max,
                },
            }
        ]
    }


def build_listener(config: GatewayConfig) -> Json:
    """Build the one public listener."""
    chain: Json = {
        "filters": [
            {
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": build_connection_manager(config),
            }
        ]
    }
    if config.tls is not None:
        chain["transport_socket"] = build_tls(config.tls)
    address = {"address": config.address, "port_value": config.port}
    return {
        "name": "public",
        "address": {"socket_address": address},
        # Else two gateways on one port would share its callers, and nobody would notice.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 64 << 10,
        "filter_chains": [chain],
    }


def build_tls(tls: Tls) -> Json:
    """Build the TLS side of the public listener."""
    certificate = {
        "certificate_chain": {"filename": tls.certificate_path},
        "private_key": {"filename": tls.key_path},
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "tls_certificates": [certificate],
                "alpn_protocols": ["h2", "http/1.1"],
            },
        },
    }


def build_connection_manager(config: GatewayConfig) -> Json:
    """Build the HTTP side: protocols, limits, filters, routes, the one error shape."""
    limits = config.limits
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return {
        "@type": TYPE + kind,
        "stat_prefix": "public",
        "generate_request_id": False,
        # Ours is the edge: what callers say about themselves in x-envoy-* is not believed.
        "use_remote_address": True,
        "skip_xff_append": True,
        "internal_address_config": {"unix_sockets": False},
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "max_request_headers_kb": limits.header_kib_max,
        "request_timeout": seconds(limits.receive_timeout_s),
        "request_headers_timeout": seconds(limits.receive_timeout_s),
        "stream_idle_timeout": seconds(limits.call_timeout_s),
        "common_http_protocol_options": {
            "idle_timeout": seconds(limits.idle_timeout_s),
            "max_headers_count": limits.headers_max,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "http2_protocol_options": {
            "max_concurrent_streams": limits.streams_per_connection_max,
            "initial_stream_window_size": 64 << 10,
            "initial_connection_window_size": 1 << 20,
        },
        "http_filters": build_filters(config),
        "route_config": {
            "name": "public",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": build_routes(config)}],
        },
        "local_reply_config": local_reply.build_local_reply(),
    }


def build_filters(config: GatewayConfig) -> list[Json]:
    """Build the HTTP filters in the order that a request meets them."""
    filters = [build_ready_filter()]
    if config.limits.requests_per_s:
        filters.append(build_rate_limit(config.limits.requests_per_s))
    filters += [
        # Python sees whole requests only: slow and oversized bodies end here.
        http_filter("buffer", "buffer.v3.Buffer", max_request_bytes=config.limits.body_bytes_max),
    ]
    if config.web:  # an open costs Envoy's thread an eighth less without these two
        filters += [http_filter("grpc_web", "grpc_web.v3.GrpcWeb"), build_transcoder(config)]
    filters.append(build_python_filter(config))
    if config.upstreams:
        filters.append(build_call_counter(config))
    return [*filters, http_filter("router", "router.v3.Router", suppress_envoy_headers=True)]


def build_call_counter(config: GatewayConfig) -> Json:
    """Build the counts of routed calls (gateway_metrics); callers cannot invent names in them."""
    routed = (name for upstream in config.upstreams for name in upstream.services)
    methods = descriptors.method_names()
    services = [{"name": name, "method_names": methods[name]} for name in routed]
    return http_filter(
        "grpc_stats",
        "grpc_stats.v3.FilterConfig",
        individual_method_stats_allowlist={"services": services},
    )


def http_filter(name: str, kind: str, **options: Any) -> Json:
    """Build one entry of http_filters."""
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": {"@type": HTTP + kind, **options},
    }


def build_ready_filter() -> Json:
    """Build the probe: 200, or 503 once the admin was told /healthcheck/fail."""
    path = {"name": ":path", "string_match": {"exact": READY_PATH}}
    return http_filter(
        "health_check", "health_check.v3.HealthCheck", pass_through_mode=False, headers=[path]
    )


def build_rate_limit(requests_per_s: int) -> Json:
    """Build the token bucket over everything that this process is asked."""
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return http_filter(
        "local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        stat_prefix="public",
        token_bucket={
            "max_tokens": requests_per_s,
            "tokens_per_fill": max(1, requests_per_s // 20),
            "fill_interval": "0.05s",
        },
        filter_enabled=always,
        filter_enforced=always,
        rate_limited_as_resource_exhausted=True,
        response_headers_to_add=[{"header": {"key": "retry-after", "value": "1"}}],
    )


def build_transcoder(config: GatewayConfig) -> Json:
    """Build the JSON transcoder over every service that has google.api.http annotations."""
    routed = tuple(name for upstream in config.upstreams for name in upstream.services)
    services = descriptors.annotated_services(config.local_services + routed)
    return http_filter(
        "grpc_json_transcoder",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor_bin=b64encode(descriptors.gateway_descriptors()).decode(),
        services=services,
        convert_grpc_status=True,
        print_options={"always_print_primitive_fields": True},
        request_validation_options={
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
    )


def build_python_filter(config: GatewayConfig) -> Json:
    """Build pyvoy's filter, skipped for all but gRPC calls of this process's own services."""
    from hongbao.transport import launch

    services = [header_prefix(":path", f"/{name}/") for name in config.local_services]
    own = services[0] if len(services) == 1 else {"or_matcher": {"predicate": services}}
    grpc = header_prefix("content-type", "application/grpc")
    skip = {
        "name": "skip",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.filters.common.matcher.action.v3.SkipFilter"
        },
    }
    foreign = {"not_matcher": {"and_matcher": {"predicate": [own, grpc]}}}
    return {
        "name": "python",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": launch.python_extension(config.app),
            "xds_matcher": {
                "matcher_list": {"matchers": [{"predicate": foreign, "on_match": {"action": skip}}]}
            },
        },
    }


def header_prefix(header: str, prefix: str) -> Json:
    """Build a predicate of Envoy's matching API."""
    kind = f"{TYPE}envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
    return {
        "single_predicate": {
            "input": {"name": header, "typed_config": {"@type": kind, "header_name": header}},
            "value_match": {"prefix": prefix},
        }
    }


def build_routes(config: GatewayConfig) -> list[Json]:
    """Build the routes of all that Python does not answer."""
    routes = [
        refusal({"prefix": f"/{service}/", "grpc": {}}, 404, "no such method") | untranslated()
        for service in config.local_services
        if config.web
    ]
    routes += [
        build_upstream_route(service, upstream, config)
        for upstream in config.upstreams
        for service in upstream.services
    ]
    if config.internal_path is not None:
        routes += [
            {
                "match": {"prefix": f"/{service}/", "grpc": {}},
                "route": {"cluster": INTERNAL_CLUSTER, "timeout": "0s"},
                "typed_per_filter_config": unbuffered(),
            }
            for service in INTERNAL_SERVICES
        ]
    routes.append(refusal({"prefix": "/", "grpc": {}}, 404, "no such method"))
    for service in config.local_services:
        routes.append(refusal({"prefix": f"/{service}/"}, 415, "the content type is not gRPC"))
    routes.append(refusal({"prefix": "/"}, 404, "no such resource"))
    return routes


def build_upstream_route(service: str, upstream: Upstream, config: GatewayConfig) -> Json:
    """Build the route of one service that other processes answer."""
    limits = config.limits
    route = {
        "match": {"prefix": f"/{service}/", "grpc": {}},
        "route": {
            "cluster": upstream.cluster,
            "timeout": seconds(limits.call_timeout_s),
            "max_stream_duration": {"grpc_timeout_header_max": seconds(limits.call_timeout_s)},
            "retry_policy": retry_policy(upstream),
        },
    }
    return route | untranslated() if config.web else route


def untranslated() -> Json:
    """Build the exception from translation for what arrives as gRPC, which needs none.

    Filters are chosen by a request's first route; JSON and gRPC-Web have another one by then.
    """
    off = {"@type": f"{TYPE}envoy.config.route.v3.FilterConfig", "disabled": True}
    names = ("grpc_web", "grpc_json_transcoder")
    return {"typed_per_filter_config": {f"envoy.filters.http.{name}": off for name in names}}


def unbuffered() -> Json:
    """Build the exception from buffering that streams need."""
    return {
        "envoy.filters.http.buffer": {"@type": f"{HTTP}buffer.v3.BufferPerRoute", "disabled": True}
    }


def refusal(match: Json, status: int, message: str) -> Json:
    """Build a route that answers with an error; local_reply gives it its shape."""
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": message}},
    }


def seconds(value: float) -> str:
    """Write a duration as protobuf's JSON does."""
    return f"{value:.3f}s"
