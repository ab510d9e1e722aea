"""What a process tells Prometheus about its calls."""

import urllib.request

from hongbao.transport.admission import Admission
from hongbao.transport.dispatcher import Dispatcher
from hongbao.transport.errors import Outcome
from hongbao.transport.gateway_metrics import GatewayMetrics, families, outcome_of
from hongbao.transport.metrics import CallMetrics, serve_metrics
from prometheus_client import CollectorRegistry, generate_latest

from tests.transport.gateway_app import METHODS
from tests.waiting import LIMIT_S

SHAKE = "/hongbao.v1.Access/Shake"


def test_calls_are_told_by_method_and_outcome_and_latency_by_bucket() -> None:
    metrics = CallMetrics()
    metrics.method(SHAKE).count(Outcome.OK, 0.0004)
    metrics.method(SHAKE).count(Outcome.SHED, 0.003)
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    assert f'hongbao_calls_total{{method="{SHAKE}",outcome="ok"}} 1.0' in text
    assert f'hongbao_calls_total{{method="{SHAKE}",outcome="shed"}} 1.0' in text
    assert f'hongbao_call_latency_seconds_bucket{{le="0.0005",method="{SHAKE}"}} 1.0' in text
    assert f'hongbao_call_latency_seconds_bucket{{le="+Inf",method="{SHAKE}"}} 2.0' in text


def test_a_process_serves_its_metrics_with_its_admission() -> None:
    metrics = CallMetrics()
    Dispatcher(METHODS, Admission(), metrics)
    registry = CollectorRegistry()
    registry.register(metrics)
    server, thread = serve_metrics("127.0.0.1", 0, registry)
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        text = answer.read().decode()
    server.shutdown()
    server.server_close()
    thread.join()
    assert "hongbao_admitted_part 1.0" in text
    assert f'method="{SHAKE}"' in text


def test_codes_that_a_caller_got_fall_into_the_classes_of_r29() -> None:
    assert [outcome_of(code).name for code in (0, 3, 8, 14, 2)] == [
        "OK",
        "LOGICAL",
        "SHED",
        "SYSTEM",
        "SYSTEM",
    ]


def test_envoys_counts_become_final_calls() -> None:
    counts = {
        "cluster.redeem.grpc.hongbao.v1.Redeem.Open.0": 5,
        "cluster.redeem.grpc.hongbao.v1.Redeem.Open.14": 2,
        "cluster.redeem.grpc.hongbao.v1.Redeem.Open.13": 1,
        "cluster.redeem.upstream_rq_retry": 7,
    }
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(counts)
        for sample in family.samples
    }
    assert found["hongbao_gateway_calls_total", "/hongbao.v1.Redeem/Open", "ok"] == 5
    assert found["hongbao_gateway_calls_total", "/hongbao.v1.Redeem/Open", "system"] == 3
    assert found["hongbao_gateway_retries_total",] == 7


def test_registering_does_not_ask_envoy() -> None:
    def unreachable() -> dict[str, int]:
        raise AssertionError("asked")

    CollectorRegistry().register(GatewayMetrics(unreachable))
