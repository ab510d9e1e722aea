"""The seam to the servers that are measured: a whole run of `hongbao up`, pinned to cores.

All that the bench knows of the platform's processes is here.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from hongbao.adapters import sql
from hongbao.adapters.clock import SystemClock
from hongbao.audit.tables import bucket_quantile_s
from hongbao.cipher.derive import binding_key
from hongbao.cipher.keyring import Keyring
from hongbao.cli.prepare import role_keyring
from hongbao.cli.rain import (
    BINDING_KEY_VARIABLE,
    POD_EPOCH_VARIABLE,
    Rain,
    prepare_run,
    rain,
)
from hongbao.cli.settings import UpSettings
from hongbao.domain.timeline import Timeline

from tests.bench import budget
from tests.bench.drive import write_requests
from tests.bench.pinned import (
    LOAD_CORE,
    SERVER_CORE,
    cpu_s,
    pin,
    running,
    wait_listening,
)
from tests.servers.started import free_port

ACCESS, REDEEM, STORE, SETTLE = "access-a-0", "redeem-a-0", "store", "settle-a-0"
PACE_PER_S = 50_000
"""Packets leave evenly over the slot; it is as long as to let so many leave in a second."""
SLOT_S_MIN = 90.0
TICKET_SHARDS, CLAIMS_SHARDS = 4, 4
SESSION_S = 6 * 3600


@dataclass
class Servers:
    """Is a running campaign whose processes can be moved between cores."""

    live: Rain
    folder: Path
    keyring: Keyring  # token root and session key: the bench seals its own tokens
    opens_used: int = 0
    tokens: list[bytes] = field(default_factory=list)

    def port(self, process: str) -> int:
        return next(s.ports["public"] for s in self.live.specs if s.process == process)

    def pid(self, process: str) -> int:
        pid = self.live.supervisor.pid(process)
        assert pid is not None, f"{process} is down"
        return pid

    def put_on_server_core(self, *processes: str) -> None:
        """Give these processes the server core; all others share the load core."""
        for spec in self.live.specs:
            if self.live.supervisor.pid(spec.process):
                wanted = SERVER_CORE if spec.process in processes else LOAD_CORE
                pin(self.pid(spec.process), wanted)

    async def shake_only(self) -> None:
        """Take the opening side away: packets leave by the pace alone, no quota holds them."""
        endless = {"opens_per_s": 10**9, "at_ms": 1 << 52}
        self.live.supervisor.lose([*self.live.of(role="redeem"), *self.live.of(role="settle")])
        await asyncio.sleep(0.2)  # a quota under way
        quota = json.dumps({"opens_per_s": 10**9, "processes": {"bench": endless}}).encode()
        await self.live.stores.coordination.put(f"campaigns/{self.campaign}/quota", quota)

    async def open_only(self) -> None:
        """Take shaking and settling away, and wait until their leases are gone.

        Both would share the core of the generator: settlement alone takes half of it.
        """
        self.live.supervisor.lose([*self.live.of(role="access"), *self.live.of(role="settle")])
        await asyncio.sleep(2 * self.live.settings.lease_ttl_s)

    @contextmanager
    def costing(self, cost_s: Counter[str], *processes: str) -> Iterator[None]:
        """Add what processes use in the block, in seconds of a core, by process and part of it."""
        before = {process: cpu_s(self.pid(process)) for process in processes}
        yield
        for process in processes:
            for part, used in (cpu_s(self.pid(process)) - before[process]).items():
                cost_s[f"{process} {part}"] += used

    def shake_file(self) -> Path:
        path = self.folder / "shakes"
        if not path.exists():
            write_requests(path, budget.shake_requests(self.campaign, self._sessions()))
        return path

    def json_shake_file(self) -> Path:
        path = self.folder / "json_shakes"
        if not path.exists():
            write_requests(path, budget.json_shakes(self._sessions()))
        return path

    async def open_file(self, count: int) -> Path:
        """Write opens of `count` packets that nobody has opened yet."""
        stored = await self.live.stores.coordination.read("pods/1/epoch")
        path = self.folder / "opens"
        files = sorted((self.live.run.objects / self.campaign).rglob("tickets-*.hbt"))
        messages = budget.open_requests(
            self.campaign,
            files,
            self.keyring,
            self._sessions(),
            pod=1,
            epoch=int(stored.value),
            expiry_s=self._expiry_s(),
            skip=self.opens_used,
            count=count,
        )
        write_requests(path, messages)
        self.opens_used += count
        return path

    def credited(self) -> tuple[int, float | None]:
        """Return how many claims were credited and the p99 of open → credited."""
        engine = sql.open_engine(self.live.run.ledger_url(self.live.settings))
        table = sql.credit_latency
        query = sa.select(table.c.bucket, sa.func.sum(table.c.claims)).group_by(table.c.bucket)
        with engine.connect() as connection:
            rows = [(int(bucket), int(claims)) for bucket, claims in connection.execute(query)]
        engine.dispose()
        return sum(claims for _, claims in rows), bucket_quantile_s(rows, 0.99) if rows else None

    @asynccontextmanager
    async def grpcio_instead(self) -> AsyncIterator[tuple[int, int]]:
        """Serve this run's access role by grpcio in the place of Envoy; gives port and pid."""
        spec = next(spec for spec in self.live.specs if spec.role == "access")
        self.live.supervisor.lose([spec])
        await asyncio.sleep(0.2)
        stored = await self.live.stores.coordination.read(f"pods/{spec.pod}/epoch")
        epoch = int(stored.value) + 1
        await self.live.stores.coordination.put(f"pods/{spec.pod}/epoch", str(epoch).encode())
        secret = binding_key(self.keyring.token_root, spec.pod, epoch)
        environ = {BINDING_KEY_VARIABLE: secret.hex(), POD_EPOCH_VARIABLE: str(epoch)}
        port, log = free_port(), self.folder / "peer_shake.log"
        command = [sys.executable, "-m", "tests.bench.peer_shake"]
        command += [str(self.live.run.path), spec.process, str(port)]
        with running(command, core=SERVER_CORE, log=log, environ=environ) as process:
            await asyncio.to_thread(wait_listening, port, process, log)
            yield port, process.pid

    def opened(self) -> int:
        """Return how many opens the redeem process has counted since it started."""
        spec = next(spec for spec in self.live.specs if spec.process == REDEEM)
        url = f"http://127.0.0.1:{spec.ports['metrics']}/metrics"
        for line in httpx.get(url).text.splitlines():
            if line.startswith("hongbao_redeem_opened_total "):
                return int(float(line.split()[1]))
        return 0

    @property
    def campaign(self) -> str:
        return self.live.campaign.campaign

    def _expiry_s(self) -> int:
        return self.live.clock.wall_ms() // 1000 + SESSION_S

    def _sessions(self) -> list[bytes]:
        if not self.tokens:
            self.tokens = budget.sessions(self.keyring, self.campaign, self._expiry_s())
        return self.tokens


@asynccontextmanager
async def servers(
    folder: Path,
    packets: int,
    *,
    campaign: str = budget.CAMPAIGN,
    pace_per_s: int = PACE_PER_S,
    stores: Mapping[str, Any] | None = None,
) -> AsyncIterator[Servers]:
    """Mint and start a campaign of so many packets whose one slot is open; all roles once.

    `stores`: settings of stores other than the embedded ones.
    """
    settings = UpSettings.model_validate(
        {
            "campaign": budget.write_campaign(folder / "campaign", packets, campaign),
            "run_dir": folder / "run",
            "ticket_shards": TICKET_SHARDS,
            "claims_shards": CLAIMS_SHARDS,
            **(stores or {}),
        }
    )
    run, model, prepared = await asyncio.to_thread(prepare_run, settings, lambda *_: None)
    # Shares the clock of the run itself; the slot opens while the processes start.
    now_ms = SystemClock().wall_ms()
    timeline = Timeline(model.slots).rehearsed(
        now_ms, int(max(SLOT_S_MIN, packets / pace_per_s) * 1000)
    )
    keyring = role_keyring(run, "redeem")
    async with rain(settings, run, model, prepared, timeline) as live:
        yield Servers(live, folder, keyring)
