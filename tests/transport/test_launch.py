"""Finding libpython and the configuration as a pure function."""

import json
import re
from pathlib import Path

import pytest
from hongbao.transport import launch
from hongbao.transport.envoy import GatewayConfig, build_gateway_config
from hongbao.transport.upstreams import Endpoint, Upstream, build_localities


def test_without_libpython_the_debian_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("find_libpython.candidate_paths", lambda: iter(()))
    found = launch.find_embedding()
    assert found.library is None
    assert re.fullmatch(r"libpython3\.\d+", found.debian_package)
    assert "libpython" in found.reason
    with pytest.raises(RuntimeError, match="libpython"):
        launch.envoy_command(Path("envoy.json"), embedding=found)


def test_another_versions_libpython_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "libpython3.1.so.1.0"
    other.touch()
    monkeypatch.setattr("find_libpython.candidate_paths", lambda: iter((str(other),)))
    assert launch.find_embedding().library is None


def test_the_command_preloads_libpython_and_keeps_one_worker() -> None:
    embedding = launch.Embedding("/lib/libpython3.so")
    command, environment = launch.envoy_command(Path("envoy.json"), embedding=embedding)
    assert command[command.index("--concurrency") + 1] == "1"
    assert environment["LD_PRELOAD"] == "/lib/libpython3.so"
    assert "" not in environment["PYTHONPATH"].split(":")


def test_the_admin_interface_is_no_port() -> None:
    """faults.md: whoever reaches the admin can stop the process."""
    config = GatewayConfig(
        port=1, app="a:b", local_services=("hongbao.v1.Access",), zone="a", admin_path="/run/x"
    )
    built = build_gateway_config(config)
    assert built["admin"]["address"] == {"pipe": {"path": "/run/x", "mode": 0o600}}
    assert json.loads(json.dumps(built)) == built


@pytest.mark.parametrize("web", [True, False])
def test_what_arrives_as_grpc_passes_by_the_filters_that_translate(web: bool) -> None:
    """JSON and gRPC-Web meet other routes first, so the filters stay for them."""
    config = GatewayConfig(
        port=1, app="a:b", local_services=("hongbao.v1.Access",), zone="a", admin_path="/run/x",
        web=web, upstreams=(Upstream("redeem", ("hongbao.v1.Redeem",), ()),),
    )  # fmt: skip
    listener = build_gateway_config(config)["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    translating = {"envoy.filters.http.grpc_web", "envoy.filters.http.grpc_json_transcoder"}
    assert translating & {one["name"] for one in manager["http_filters"]} == (
        translating if web else set()
    )
    (host,) = manager["route_config"]["virtual_hosts"]
    for service in ("hongbao.v1.Access", "hongbao.v1.Redeem"):
        wanted = (f"/{service}/", "/")
        first = next(
            route for route in host["routes"]
            if route["match"]["prefix"] in wanted and "grpc" in route["match"]
        )  # fmt: skip
        passed = first.get("typed_per_filter_config", {})
        assert {name for name, one in passed.items() if one["disabled"]} == (
            translating if web else set()
        )
    assert all(
        "grpc" in route["match"] for route in host["routes"] if route.get("typed_per_filter_config")
    )


def test_the_own_zone_comes_first_and_the_others_share_the_rest() -> None:
    endpoints = tuple(Endpoint("10.0.0.1", port, zone) for port, zone in enumerate("abcb"))
    found = {
        group["locality"]["zone"]: (group["priority"], group["load_balancing_weight"])
        for group in build_localities("b", endpoints)
    }
    assert found == {"b": (0, 2), "a": (1, 1), "c": (1, 1)}


def test_a_zone_without_processes_uses_all_others_alike() -> None:
    endpoints = (Endpoint("10.0.0.1", 1, "b"), Endpoint("10.0.0.1", 2, "c"))
    assert {group["priority"] for group in build_localities("a", endpoints)} == {0}


def test_only_annotated_services_are_transcoded() -> None:
    upstream = Upstream("redeem", ("hongbao.v1.Redeem", "hongbao.v1.Shards"), ())
    config = GatewayConfig(
        port=1,
        app="a:b",
        local_services=("hongbao.v1.Access",),
        zone="a",
        admin_path="/run/x",
        upstreams=(upstream,),
    )
    text = json.dumps(build_gateway_config(config))
    services = re.search(r'"services": (\["[^]]*\])', text)
    assert services is not None
    assert sorted(json.loads(services[1])) == ["hongbao.v1.Access", "hongbao.v1.Redeem"]
