"""`hongbao up` as operators and callers see it: JSON on the gateway, health, Ctrl-C, the audit."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import grpc
import httpx
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hongbao.cli.prepare import issuer_key
from hongbao.cli.run_dir import RunDir
from hongbao.cli.stores import open_stores
from hongbao.client.identity import TestIdentity
from hongbao.transport.launch import find_embedding

from tests.processes.rainy import CAMPAIGN, ROOT, Plot, hongbao, short_folder, write_campaign
from tests.waiting import LIMIT_S

REHEARSAL_S = 120  # of one slot: it is still open when Ctrl-C comes
USERS = 6
SHAKES = 400

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(
        find_embedding().library is None,
        reason=f"JSON needs Python inside Envoy: {find_embedding().reason}",
    ),
]


@dataclass
class Terminal:
    """Is a running `hongbao up`."""

    process: "subprocess.Popen[bytes]"
    run: RunDir
    output: Path
    opened: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        _, specs = self.run.read_specs()
        return next(one.ports["public"] for one in specs if one.role == "access")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def jwt(self, user: int) -> str:
        identity = TestIdentity.from_pem(issuer_key(self.run).read_bytes())
        return identity.jwt_of(user, CAMPAIGN, int((self.run.path / "run.json").stat().st_mtime))

    def wait(self, fact: Callable[[], bool]) -> None:
        give_up_s = monotonic() + LIMIT_S
        while not fact():
            assert self.process.poll() is None, self.output.read_text()
            assert monotonic() < give_up_s, self.output.read_text()
            sleep(0.1)


@pytest.fixture(scope="module")
def up(seed: int) -> Iterator[Terminal]:
    with short_folder() as folder:
        campaign = write_campaign(folder / "campaign", Plot(seed, slots=1))
        settings = {
            "campaign": str(campaign),
            "run_dir": str(folder / "run"),
            "zones": ["a"],
            "claims_shards": 2,
            "ticket_shards": 2,
            "lease_ttl_s": 30.0,  # nobody dies: a stall must not move what a test compares
        }
        (folder / "up.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "hongbao.cli.main", "up", str(folder / "up.yaml")]
        command += ["--rehearsal", str(REHEARSAL_S), "--start-in", "0"]
        output = folder / "up.log"
        with (
            output.open("wb") as log,
            subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process,
        ):
            terminal = Terminal(process, RunDir(folder / "run"), output)
            try:
                terminal.wait(lambda: "gateway a" in output.read_text())
                yield terminal
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait(LIMIT_S)


@pytest.fixture
def web(up: Terminal) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=up.url, timeout=LIMIT_S, trust_env=False) as client:
        yield client


def test_a_user_wins_and_opens_a_packet_with_nothing_but_json(
    up: Terminal, web: httpx.Client
) -> None:
    sessions = []
    for user in range(1, USERS + 1):
        answer = web.post(f"/v1/campaigns/{CAMPAIGN}/sessions", json={"jwt": up.jwt(user)})
        assert answer.status_code == 200, answer.text
        sessions.append(answer.json()["session"])
    for turn in range(SHAKES):
        session = sessions[turn % USERS]
        shaken = web.post(f"/v1/campaigns/{CAMPAIGN}:shake", json={"session": session})
        assert shaken.status_code == 200, shaken.text
        if shaken.json()["outcome"] != "PACKET":
            continue
        body = {"session": session, "claimToken": shaken.json()["claimToken"]}
        first, again = (web.post(f"/v1/campaigns/{CAMPAIGN}:open", json=body) for _ in range(2))
        assert first.json()["outcome"] == "OPENED"
        assert first.json() == again.json()
        stolen = web.post(
            f"/v1/campaigns/{CAMPAIGN}:open",
            json={**body, "session": sessions[(turn + 1) % USERS]},
        )
        assert stolen.status_code == 401
        up.opened.append(first.json())
        if len(up.opened) >= 20:
            break
    assert len(up.opened) >= 20
    assert len({one["packet"] for one in up.opened}) == len(up.opened)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"/v1/campaigns/{CAMPAIGN}:shake", b"{", 400),
        (f"/v1/campaigns/{CAMPAIGN}:shake", b'{"session": 1e23}', 400),
        (f"/v1/campaigns/{CAMPAIGN}:shake", b'{"session": "AAAA"}', 401),
        (f"/v1/campaigns/{CAMPAIGN}:open", b'{"session": "AAAA", "claimToken": "AAAA"}', 401),
        (f"/v1/campaigns/{CAMPAIGN}/sessions", b'{"jwt": "a.b.c"}', 401),
        ("/v1/campaigns/another/sessions", b'{"jwt": "a.b.c"}', 404),
        ("/v1/nonsense", b"{}", 404),
        (f"/v1/campaigns/{CAMPAIGN}:shake?nonsense=1", b"{}", 400),
    ],
)
def test_errors_have_one_json_shape(web: httpx.Client, path: str, body: bytes, status: int) -> None:
    answer = web.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"code", "message", "details"}


async def test_health_is_served_on_the_public_port(up: Terminal) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{up.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_second_up_on_the_same_run_is_refused_and_harms_nothing(up: Terminal) -> None:
    """It would raise the pods' epochs and put another timeline under the first one's feet."""
    before = health_of(up)
    told = asyncio.run(hongbao("up", str(up.run.path.parent / "up.yaml"), expect=2))
    assert "another" in told
    assert health_of(up) == before
    switches = json.loads(
        asyncio.run(hongbao("switch", "status", "--run", str(up.run.path), "--json"))
    )
    assert switches


def health_of(up: Terminal) -> list[tuple[str, int, bytes]]:
    """Return every fact of the run that a second start would change."""

    async def read() -> list[tuple[str, int, bytes]]:
        async with open_stores(up.run.path) as opened:
            facts = [
                fact
                for prefix in ("campaigns/", "pods/", "lease/")
                for fact in await opened.coordination.read_prefix(prefix)
            ]
        return [
            (fact.key, fact.revision, fact.value)
            for fact in facts
            if not fact.key.endswith("/quota")  # measured anew every second
        ]

    return asyncio.run(read())


def test_ctrl_c_drains_without_residue_and_the_audit_proves_it(up: Terminal) -> None:
    """Last: it ends the run."""
    run = str(up.run.path)
    asyncio.run(hongbao("fund", "pay-in", "--all", "--run", run))
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(LIMIT_S) == 0, up.output.read_text()
    told = up.output.read_text()
    assert "drained" in told
    assert "Traceback" not in told
    line = json.loads(asyncio.run(hongbao("audit", run, "--json")))
    assert line["equations"] == "hold"
    assert line["residue_packets"] == 0
    assert line["packets_opened"] == len(up.opened)
    assert line["opened_fen"] == sum(one["amountFen"] for one in up.opened)
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and run in command_of(pid)]
    assert left == []


def command_of(pid: str) -> str:
    """Return a process's command line; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
